"""Which scorers there are, and which one each benchmark task has.

`fixed` scorers are ours and the default; `released` ones decide as the published scripts do, and
serve only to compare with published numbers.

    find_scorer("vqa").score_all(["Yes."], [{"gold": "yes"}])    -> [1.0]
"""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from data_prep.stream import MANIFEST, Stream, StreamError, open_stream
from eval.scorers import cider, fixed, released
from eval.scorers.answer_text import GoldRecord, final_answer, gold_answers

Array = NDArray[np.float64]
SampleScorer = Callable[[str, GoldRecord], float]
MOST_CIDER = 10.0
# Which scorers a recipe names: one for all tasks, or by task.
Named = str | Mapping[str, str] | None


class ScorerError(ValueError):
    """A function of one's own failed on an answer, or gave no number from 0 to 1."""


@dataclass(frozen=True)
class Scorer:
    """How one kind of answer is scored.

    Attributes:
        name: the name used in stream.json and on the command line.
        judge: scores one answer; None if an answer can only be scored with its whole test set.
        tokens: turns text into tokens, for captions.
        read: finds the answer in a model's output; None: the whole output is judged.
    """

    name: str
    judge: SampleScorer | None
    tokens: Callable[[str], list[str]] | None = None
    read: Callable[[str], str] | None = None

    @property
    def sample(self) -> SampleScorer | None:
        """Return what scores one output; None if that needs the whole test set."""
        if self.judge is None or self.read is None:
            return self.judge
        judge, read = self.judge, self.read
        return lambda output, record: judge(read(output), record)

    def score_all(self, predictions: Sequence[str], records: Sequence[GoldRecord]) -> list[float]:
        """Return one score in 0..1 for each answer; CIDEr-D is divided by its maximum of 10."""
        sample = self.sample
        if sample is not None:
            return [sample(p, r) for p, r in zip(predictions, records, strict=True)]
        answers, references = self.caption_tokens(predictions, records)
        # A caption equal to its references may pass the maximum by a rounding error.
        scores = cider.cider_d(answers, references)
        return [min(score / MOST_CIDER, 1.0) for score in scores]

    def caption_tokens(
        self, predictions: Sequence[str], records: Sequence[GoldRecord]
    ) -> tuple[list[list[str]], list[list[list[str]]]]:
        """Return the tokens of each answer, and those of each of its references."""
        tokens, read = self.tokens or str.split, self.read or str
        references = [[tokens(text) for text in gold_answers(r)] for r in records]
        return [tokens(read(prediction)) for prediction in predictions], references

    def with_thoughts(self) -> Scorer:
        """Return the scorer that judges the whole output, what was thought included."""
        return self if self.read is None else replace(self, read=str)

    def aggregate(self, scores: Sequence[float]) -> float:
        """Return the task's score in 0..1: the mean; for captions CIDEr x 100 clipped to 100."""
        if not scores:
            return float("nan")
        return float(self.of_mean(np.asarray(fmean(scores))))

    def of_mean(self, mean: Array) -> Array:
        """Return the task's score in 0..1 of a mean sample score, element by element."""
        # Single captions may pass CIDEr 1 (100 in print); only the mean of the test set is clipped.
        return mean if self.sample is not None else np.minimum(mean * MOST_CIDER, 1.0)


def _table(
    read: Callable[[str], str] | None,
    caption_tokens: Callable[[str], list[str]],
    *judges: SampleScorer,
) -> dict[str, Scorer]:
    """Return scorers by name: each judge's own, and that of captions."""
    scorers = [Scorer(judge.__name__, judge, read=read) for judge in judges]
    scorers.append(Scorer("caption", None, caption_tokens, read))
    return {scorer.name: scorer for scorer in scorers}


FIXED = _table(
    final_answer, cider.ptb_tokens, fixed.vqa, fixed.exact, fixed.compact, fixed.label,
    fixed.choice, fixed.contains, fixed.grounding, fixed.relaxed, fixed.ocr, fixed.science,
    fixed.number,
)  # fmt: skip
RELEASED = _table(
    None, str.split, released.contained, released.equal_compacted, released.two_way_substring,
    released.substring, released.vqa, released.equal_lower, released.equal_lower_prediction,
    released.grounding, released.substring_any_case, released.any_substring,
    released.substring_compacted, released.science, released.equal_upper,
    released.two_way_substring_cased, released.first_letter, released.ten_answers,
    released.grounding_stripped, released.equal_lower_stripped,
)  # fmt: skip
VARIANTS = {"fixed": FIXED, "released": RELEASED}


def find_scorer(name: str, variant: str = "fixed") -> Scorer:
    """Return the scorer called `name`.

    Raises:
        ValueError: an unknown variant or name; the message lists the known ones.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: found {variant!r}, expected one of {sorted(VARIANTS)}")
    table = VARIANTS[variant]
    if name not in table:
        own = f"; a function of your own is {name}:FUNCTION" if name.endswith(".py") else ""
        hint = own or _did_you_mean(name, table)
        raise ValueError(f"scorer: found {name!r}, expected one of {sorted(table)}{hint}")
    return table[name]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def own_scorer(name: str) -> Scorer:
    """Return the scorer that is a function of one's own, called as `my_scorer.py:score`.

    The function is given what follows a thought in the output, and the record with its `gold`; it
    returns a number from 0 to 1. Only a person names one, on the command line or in the recipe
    that is run: a file that a downloaded stream or run folder names is never run.

    Raises:
        ValueError: there is no such file or function, or it does not take answer and record.
    """
    place, _, function = name.rpartition(":")
    path = Path(place)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"scorer: found {name!r}, expected FILE.py:FUNCTION; no file {place!r}")
    try:
        known = runpy.run_path(str(path))
    # Even a file that calls sys.exit() is a mistake to be named, not an end of the run.
    except (Exception, SystemExit) as error:
        raise ValueError(f"scorer: {path} cannot be run: {error!r}") from error
    judge = known.get(function)
    if not callable(judge):
        hint = _did_you_mean(function, (key for key, value in known.items() if callable(value)))
        raise ValueError(f"scorer: {path} has no function {function!r}{hint}")
    try:
        inspect.signature(judge).bind("", {})
    except TypeError as error:
        raise ValueError(
            f"scorer: {name} must take two arguments, the answer and the record: {error}"
        ) from error

    def judged(answer: str, record: GoldRecord) -> float:
        sample = record.get("id", record.get("question_id"))
        try:
            score = judge(answer, record)
        except Exception as error:
            raise ScorerError(f"scorer: {name}, sample {sample!r}: {error!r}") from error
        # numpy's bool, which comparisons of arrays give, is no Real.
        if isinstance(score, Real | np.bool_) and 0 <= float(score) <= 1:
            return float(score)
        raise ScorerError(
            f"scorer: {name}, sample {sample!r}: returned {score!r}, expected a number from 0 to 1"
        )

    return Scorer(name, judged, read=final_answer)


def is_own(name: str) -> bool:
    """Tell whether a scorer's name is that of a function of one's own, FILE.py:FUNCTION."""
    return ":" in name


def _judged_in_the_run(answer: str, record: GoldRecord) -> float:
    raise ValueError("a scorer of one's own judges only in the run whose recipe names it")


def described() -> list[str]:
    """Return a line for each `fixed` scorer: its name, and what it accepts."""
    lines = []
    for name, scorer in FIXED.items():
        text = (scorer.judge or cider.cider_d).__doc__ or ""
        lines.append(f"{name:<10} {' '.join(text.split(chr(10) * 2)[0].split())}")
    return lines


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: as on the command line.
        fixed: name of the default scorer.
        released: name of the scorer that follows the published script; None: none is known.
        in_published_mean: StrCVIT's published mean leaves GQA and ChartQA out.
        printed: the published script's percent of a whole test set, from answers and references,
            where it has no score of a single answer.
    """

    name: str
    fixed: str
    released: str | None
    in_published_mean: bool = True
    printed: Callable[[Sequence[str], Sequence[Sequence[str]]], float] | None = None

    def scorer(self, variant: str) -> Scorer:
        """Return the scorer of this task; raises ValueError where no such variant is known."""
        name = self.fixed if variant == "fixed" else self.released
        if name is not None:
            return find_scorer(name, variant)
        why = (
            "the published script has one score for the whole test set: a run's scores.json has it"
            " under 'published'"
        )
        why = why if self.printed else "no published scorer is known"
        raise ValueError(f"task {self.name!r}: {why}; use --variant fixed")


_ALL = (
    Task("AD", "choice", "contained"),
    Task("RS", "choice", "contained"),
    Task("Fin", "compact", "equal_compacted"),
    Task("ImageNet", "label", "two_way_substring"),
    Task("Places365", "label", "two_way_substring"),
    Task("ChartQA", "relaxed", "substring", in_published_mean=False),
    Task("VQAv2", "vqa", "vqa"),
    Task("OCRVQA", "exact", "equal_lower"),
    Task("GQA", "vqa", "equal_lower_prediction", in_published_mean=False),
    Task("Grounding", "grounding", "grounding"),
    Task("TextCaps", "caption", "caption"),
    # MLLM-CL: domains, then abilities. Math was scored by a language model's judgement, for APP no
    # script was published: there is nothing to reproduce.
    Task("MLLM-CL/RS", "contains", "contained"),
    Task("MLLM-CL/Med", "contains", "substring_any_case"),
    Task("MLLM-CL/AD", "contains", "contained"),
    Task("MLLM-CL/Sci", "science", "science"),
    Task("MLLM-CL/Fin", "compact", "equal_compacted"),
    Task("MLLM-CL/OCR", "ocr", "any_substring"),
    Task("MLLM-CL/Math", "number", None),
    Task("MLLM-CL/VP", "contains", "substring_compacted"),
    Task("MLLM-CL/APP", "choice", None),
    # UCIT. Its captions are printed as the mean of seven metrics.
    Task("UCIT/ImageNet-R", "label", "equal_upper"),
    Task("UCIT/ArxivQA", "choice", "equal_upper"),
    Task("UCIT/VizWiz", "caption", None, printed=released.mean_of_seven),
    Task("UCIT/IconQA", "choice", "equal_upper"),
    Task("UCIT/CLEVR", "number", "equal_upper"),
    Task("UCIT/Flickr30k", "caption", None, printed=released.mean_of_seven),
    Task("CoIN/ScienceQA", "choice", "first_letter"),
    Task("CoIN/TextVQA", "vqa", "ten_answers"),
    Task("CoIN/ImageNet", "label", "two_way_substring_cased"),
    Task("CoIN/GQA", "vqa", "equal_lower_stripped"),
    Task("CoIN/VizWiz", "vqa", "equal_upper"),
    Task("CoIN/Grounding", "grounding", "grounding_stripped"),
    Task("CoIN/VQAv2", "vqa", "equal_upper"),
    Task("CoIN/OCRVQA", "exact", "equal_lower"),
)
TASKS = {task.name: task for task in _ALL}
STRCVIT = tuple(name for name in TASKS if "/" not in name)
# Streams of other benchmarks, by their names: what stands before their tasks' names above.
PREFIXES = {"mllm-cl-dcl": "MLLM-CL/", "mllm-cl-acl": "MLLM-CL/", "ucit": "UCIT/", "coin": "CoIN/"}


def find_task(name: str) -> Task:
    """Return the task called `name`; raises ValueError that lists the known ones."""
    if name in TASKS:
        return TASKS[name]
    hint = _did_you_mean(name, TASKS)
    raise ValueError(f"task: found {name!r}, expected one of {list(TASKS)}{hint}")


def scorer_of(stream: Stream, task: str) -> Scorer:
    """Return the `fixed` scorer of a task; one of the recipe's own has its name and judges nothing.

    Raises:
        StreamError: the stream has no such task.
        ValueError: there is no such scorer.
    """
    name = stream.task(task).scorer
    if is_own(name):
        return Scorer(name, _judged_in_the_run)
    return find_scorer(name)


def with_scorers(stream: Stream, named: Named) -> Stream:
    """Return the stream with the scorers that a recipe names over those of stream.json.

    Args:
        named: one scorer for all tasks, or scorers by task (of periods: by the task they are of).

    Raises:
        StreamError: it names a task that has no test set.
        ValueError: there is no such scorer.
    """
    for name in [named] if isinstance(named, str) else (named or {}).values():
        if not is_own(name):
            find_scorer(name)
    by_task = {} if isinstance(named, str) else dict(named or {})
    known = {name for test in stream.tests.values() for name in (test.name, test.trained_as)}
    if unknown := sorted(by_task.keys() - known):
        raise StreamError(
            f"eval.scorer: {', '.join(unknown)} is not in {stream.root / MANIFEST}; it has: "
            f"{', '.join(stream.tasks)}"
        )
    tests = {}
    for name, test in stream.tests.items():
        own = named if isinstance(named, str) else by_task.get(name, by_task.get(test.trained_as))
        # stream.json's best constant answer was judged by the scorer that it names.
        tests[name] = replace(test, scorer=own, majority=None) if own else test
    return replace(stream, tests=tests)


def open_scored_stream(folder: Path, named: Named = None) -> Stream:
    """Return the stream in a folder, every task of which can be scored.

    Args:
        named: the scorers that a recipe names, see `with_scorers`.

    Raises:
        StreamError: there is no stream, or it cannot be read.
        ValueError: a task names an unknown scorer.
    """
    stream = open_stream(folder)
    for name, test in stream.tests.items():
        try:
            find_scorer(test.scorer)
        except ValueError as error:
            raise ValueError(f"{stream.root / MANIFEST}: tasks.{name}: {error}") from error
    return with_scorers(stream, named)
