"""Score any file of answers: `python -m eval.score --task VQAv2 --variant fixed FILE`.

FILE is JSON Lines of {question_id, gold, prediction}; Grounding's gold is {answer_bbox, size},
TextCaps' a list of captions. One JSON line a sample goes to standard output, {question_id, score}
with score in 0..1 (captions: CIDEr-D / 10, and `cider` beside it), then a summary to standard
error. --list names the scorers; `--scorer my_scorer.py:score` takes a function of your own,
score(answer, record) -> 0..1, whose file's sha256 is printed with the result. `fixed` judges what
follows a thought (<think>...</think>); a thought without an end is an empty answer. Where the
file is too small for CIDEr, captions have `chrf` too, from 0 to 1, and the summary says so. A
sample without an answer, or one that cannot be scored, earns 0, says why in `error`, and is named
with its line. The exit code is 2 where the file as a whole cannot be trusted: no JSON, no sample,
a question twice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from data_prep.files import Record, is_missing, numbered_jsonl, print_lines, sha256_file
from eval.scorers import cider
from eval.scorers.answer_text import final_answer, find_answer, gold_answers
from eval.scorers.registry import (
    MOST_CIDER,
    TASKS,
    Scorer,
    described,
    find_scorer,
    find_task,
    is_own,
    own_scorer,
)

REQUIRED = ("question_id", "gold", "prediction")
MOST_NAMED = 20
Numbered = tuple[int, Record]


def score_records(records: Sequence[Record], scorer: Scorer) -> list[Record]:
    """Return one result a record, in order: question_id, score, and `error` where there is none.

    A missing answer (null, or an `error` in the record) and a record that cannot be scored earn
    0 and say so; they never reach the scorer. NaN, which pandas writes for an empty cell, is an
    empty answer to the `fixed` scorers.
    """
    if scorer.read is not None:
        records = [_without_nan(record) for record in records]
    if scorer.sample is None:
        results = _score_captions(records, scorer)
    else:
        results = [_score_one(record, scorer) for record in records]
    if scorer.read is final_answer:
        _mark_unfinished(records, results)
    return results


def _without_nan(record: Record) -> Record:
    answer = record.get("prediction")
    return record | {"prediction": ""} if answer is not None and is_missing(answer) else record


def _problem(record: Record) -> str | None:
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        return f"missing keys {missing}; expected {list(REQUIRED)}"
    if record.get("error"):
        return f"no answer: {record['error']}"
    if record["prediction"] is None:
        return "no answer"
    if not isinstance(record["prediction"], str):
        return f"prediction: found {record['prediction']!r}, expected text"
    gold = record["gold"]
    if is_missing(gold) or gold in (math.inf, -math.inf):
        return f"gold: found {gold!r}, expected an answer"
    return None


def _score_one(record: Record, scorer: Scorer) -> Record:
    problem = _problem(record)
    score = 0.0
    if problem is None and scorer.sample is not None:
        try:
            score = scorer.sample(record["prediction"], record)
        # A gold or size of a strange type must not end the scoring of all other lines.
        except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
            problem = f"cannot be scored: {error}"
    return _result(record, score, problem)


def _score_captions(records: Sequence[Record], scorer: Scorer) -> list[Record]:
    # Document frequencies are the whole file's, failed samples included.
    problems = [_problem(record) or _reference_problem(record) for record in records]
    usable = [r for r in records if not is_missing(r.get("gold")) and not _reference_problem(r)]
    answers = ["" if _problem(r) else r["prediction"] for r in usable]
    # By identity: two records may be equal.
    scores = dict(zip(map(id, usable), scorer.score_all(answers, usable), strict=True))
    small = cider.too_small(scorer.caption_tokens(answers, usable)[1])
    results = []
    for record, problem in zip(records, problems, strict=True):
        result = _result(record, 0.0 if problem else scores[id(record)], problem)
        result["cider"] = result["score"] * MOST_CIDER
        if small and not problem:
            read = scorer.read or str
            result["chrf"] = cider.chrf(read(record["prediction"]), gold_answers(record))
        results.append(result)
    return results


def _reference_problem(record: Record) -> str | None:
    """Return why a record has no reference captions, None if it has."""
    if not isinstance(record.get("gold"), list | str | dict) or not record["gold"]:
        return f"gold: found {record.get('gold')!r}, expected a list of captions"
    try:
        gold_answers(record)
    except ValueError as error:
        return str(error)
    return None


def _result(record: Record, score: float, problem: str | None) -> Record:
    result: Record = {"question_id": record.get("question_id"), "score": score}
    return result | ({"error": problem} if problem else {})


def _mark_unfinished(records: Sequence[Record], results: Sequence[Record]) -> None:
    """Note in the results which outputs end inside a thought."""
    for record, result in zip(records, results, strict=True):
        answer = record.get("prediction")
        if isinstance(answer, str) and "error" not in result and find_answer(answer).unfinished:
            result["unfinished_thought"] = True


def summarise(task: str, variant: str, results: Sequence[Record], scorer: Scorer) -> str:
    """Return the summary line; captions are reported as CIDEr x 100."""
    failed = sum("error" in result for result in results)
    if failed == len(results):
        return f"{task} ({variant}): no score, all {failed} samples failed"
    scores = [float(result["score"]) for result in results]
    # Captions as papers print them, unclipped; the score of a run is clipped to 100.
    mean = 100.0 * sum(scores) / len(scores) * (1.0 if scorer.sample else MOST_CIDER)
    text = f"{task} ({variant}): {mean:.2f} over {len(results)} samples, {failed} failed"
    text += " (failed samples earn nothing)" if failed else ""
    unfinished = sum("unfinished_thought" in result for result in results)
    if unfinished:
        text += f", {unfinished} thoughts without an end (empty answers)"
    return text


def caption_note(results: Sequence[Record]) -> str | None:
    """Return what is to be said of a file of captions that is too small for CIDEr, else None."""
    scores = [float(result["chrf"]) for result in results if "chrf" in result]
    if not scores:
        return None
    return (
        f"too small for CIDEr: it weighs words by how rare they are in the whole file, and words"
        f" that stand with every picture earn 0, with one picture all of them ({len(results)} here,"
        f" fewer than {cider.FEWEST_IMAGES} say little); chrF (characters) of the same captions:"
        f" {100 * fmean(scores):.2f} of 100"
    )


def duplicates(lines: Sequence[Numbered]) -> list[str]:
    """Return a sentence for every question that stands in the file a second time."""
    seen: dict[str, int] = {}
    repeated = []
    for number, record in lines:
        if "question_id" not in record:
            continue
        # JSON keeps 7 and "7" apart, as the published scripts do; 7.0 is what pandas makes of 7.
        question = record["question_id"]
        whole = isinstance(question, float) and question.is_integer()
        name = json.dumps(int(question) if whole else question)
        if name in seen:
            repeated.append(f"{number}: question_id {name} occurs twice, first in {seen[name]}")
        seen.setdefault(name, number)
    return repeated


def name_problems(path: Path, lines: Sequence[Numbered], results: Sequence[Record]) -> list[str]:
    """Return `file:line: question_id: why` for the samples that earned nothing, a few by name."""
    failed = [
        f"{path}:{number}: question_id {result['question_id']!r}: {result['error']}"
        for (number, _), result in zip(lines, results, strict=True)
        if "error" in result
    ]
    more = len(failed) - MOST_NAMED
    return failed[:MOST_NAMED] + ([f"{path}: ... and {more} more"] if more > 0 else [])


def _asked_for(options: argparse.Namespace) -> Scorer:
    if options.task is not None:
        return find_task(options.task).scorer(options.variant)
    if is_own(options.scorer):
        return own_scorer(options.scorer)
    return find_scorer(options.scorer, options.variant)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after a message if the task or the file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m eval.score", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--task", help=", ".join(TASKS))
    how.add_argument(
        "--scorer",
        metavar="NAME",
        help="a built-in one (--list), or a function of your own: my_scorer.py:score",
    )
    how.add_argument("--list", action="store_true", help="name the built-in scorers")
    parser.add_argument("--variant", default="fixed", choices=["fixed", "released"])
    parser.add_argument(
        "--keep-thoughts", action="store_true", help="judge the whole output, thoughts included"
    )
    parser.add_argument("file", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    if options.list:
        print_lines(described())
        return 0
    if options.file is None:
        parser.error("FILE is missing: JSON Lines of {question_id, gold, prediction}")
    try:
        scorer = _asked_for(options)
        scorer = scorer.with_thoughts() if options.keep_thoughts else scorer
        lines = list(numbered_jsonl(options.file))
        if not lines:
            raise ValueError(f"{options.file}:1: no samples, nothing to score")
    except OSError as error:
        text = f"{options.file}: {error.strerror}; give a JSON Lines file"
        print(f"eval.score: {text}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"eval.score: {error}", file=sys.stderr)
        return 2
    results = score_records([record for _, record in lines], scorer)
    print_lines(map(json.dumps, results))
    for problem in name_problems(options.file, lines, results):
        print(f"eval.score: {problem}", file=sys.stderr)
    twice = duplicates(lines)
    for problem in twice[:MOST_NAMED]:
        print(f"eval.score: {options.file}:{problem}", file=sys.stderr)
    if twice:
        text = f"{len(twice)} lines repeat a question: no summary; leave one line a question"
        print(f"eval.score: {options.file}: {text}", file=sys.stderr)
        return 2
    name = options.task or options.scorer
    print(summarise(name, options.variant, results, scorer), file=sys.stderr)
    if options.scorer and is_own(options.scorer):
        own = Path(options.scorer.rpartition(":")[0])
        print(f"eval.score: {own}: sha256 {sha256_file(own)}", file=sys.stderr)
    if note := caption_note(results):
        print(f"eval.score: {options.file}: {note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
