"""What a run came to, in a few sentences: learned, lost, useful or not, and what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from data_prep.files import a_few
from eval.charts.figure import percent

MOST_NAMED = 4
BASE, CONSTANT = attrgetter("base"), attrgetter("constant")
MUCH = 0.1  # lost since best: so much is worth a word
FALLEN = 0.98  # a loss above this part of what it was at first has not fallen


@dataclass(frozen=True)
class TaskOutcome:
    """One task after the last evaluated chunk; scores in 0..1, NaN = not known.

    Attributes:
        base, constant: of the base model, and of the best constant answer.
        best, best_chunk: the best score after any chunk, and after which.
        last: after the last evaluated chunk.
        answers: the texts of the last evaluation; None: a question without an answer.
        cut: how many of them reached the longest length allowed.
        one_gold: whether all right answers are the same one.
    """

    task: str
    base: float
    constant: float
    best: float
    best_chunk: int
    last: float
    answers: Sequence[str | None] = ()
    cut: int = 0
    one_gold: bool = False

    @property
    def lost(self) -> float:
        """Points lost since the best chunk: never below 0, so that no gain cancels a loss."""
        return max(0.0, self.best - self.last)


@dataclass(frozen=True)
class Settings:
    """What a user may change, as the run had it; None: not known."""

    epochs: float | None = None
    rate: float | None = None
    tokens: float | None = None


def lost_since_best(tasks: Sequence[TaskOutcome]) -> float:
    """Return the mean over tasks of max(0, best - last), in 0..1; NaN where none has both."""
    return _mean([t.lost for t in tasks if math.isfinite(t.best - t.last)])


def sentences(
    chunk: int,
    planned: int,
    tasks: Sequence[TaskOutcome],
    losses: Sequence[Sequence[float]],
    settings: Settings,
    in_stream: bool = True,
) -> list[str]:
    """Return the sentences of the paragraph; empty before the first evaluation after training.

    Args:
        chunk: the last evaluated one.
        planned: chunks of the run; 0: not known.
        tasks: the evaluated ones.
        losses: what the host logged, chunk by chunk.
        settings: for what to try.
        in_stream: False of joint training, which has nothing to lose on the way.
    """
    known = [task for task in tasks if math.isfinite(task.last)]
    if chunk == 0 or not known:
        return []
    problems, advice = _problems(known, losses, settings)
    lost = [_lost(chunk, known)] if in_stream else []
    said = [_learned(chunk, planned, known), *lost, *_below_base(known), _useful(known), *problems]
    if advice:
        said.append(f"What to try: {'; '.join(advice)}.")
    return said


def _learned(chunk: int, planned: int, tasks: Sequence[TaskOutcome]) -> str:
    of = f" of {planned}" if planned else ""
    who = f"{tasks[0].task} has" if len(tasks) == 1 else f"the mean over {len(tasks)} tasks is"
    text = f"After chunk {chunk}{of} {who} {percent(_mean([t.last for t in tasks]))} percent"
    answers = "answer" if len(tasks) == 1 else "answers"
    for score, who in (
        (BASE, "; the base model had"),
        (CONSTANT, f", the best constant {answers} would have"),
    ):
        both = [t for t in tasks if math.isfinite(score(t))]
        if both:
            text += f"{who} {percent(_mean([score(t) for t in both]))}"
        if both and len(both) < len(tasks):
            here = percent(_mean([t.last for t in both]))
            text += f" on {len(both)} of them, where this model has {here}"
    return f"{text}."


def _lost(chunk: int, tasks: Sequence[TaskOutcome]) -> str:
    if chunk == 1:
        return "One chunk is evaluated: nothing can be forgotten yet."
    lost = sorted((t for t in tasks if round(t.lost, 4) > 0), key=lambda t: -t.lost)
    if not lost:
        who = "every task" if len(tasks) > 1 else "it"
        if _below_base(tasks):
            return "Nothing is lost since chunk 1."
        return f"Nothing is lost: {who} is at its best now."
    if len(tasks) == 1:
        best = lost[0].best_chunk
        return f"Lost since its best, after chunk {best}: {percent(lost[0].lost)} points."
    named = _listed(lost, lambda t: f"{percent(t.lost)} (since chunk {t.best_chunk})")
    return f"Lost since best: {percent(lost_since_best(tasks))} points a task, by {named}."


def _below_base(tasks: Sequence[TaskOutcome]) -> list[str]:
    """Return the sentence on the tasks that the base model did better, if there are any."""
    worse = sorted(
        (t for t in tasks if round(t.base - t.last, 4) > 0), key=lambda t: t.last - t.base
    )
    against = _listed(worse, lambda t: f"{percent(t.last)} against {percent(t.base)}")
    return [f"Worse than the base model: {against}."] if worse else []


def _useful(tasks: Sequence[TaskOutcome]) -> str:
    """Return on how many tasks the model is better than what needs no training."""
    constant = [t.last > t.constant for t in tasks if math.isfinite(t.constant)]
    # Captions have no constant answer.
    base = [t.last > t.base for t in tasks if math.isnan(t.constant) and math.isfinite(t.base)]
    if not constant and not base:
        return "There is nothing to compare with: neither base model nor constant answers."
    name = "the best constant answer" if constant else "the base model"
    if constant and base:
        name += " (where there is none, than the base model)"
    better, count = sum(constant + base), len(tasks)
    if unknown := count - len(constant + base):
        return f"It is better than {name} on {better} of {count} tasks; {unknown} cannot be judged."
    if better == 0:
        return f"This model is of no use as it is: it is nowhere better than {name}."
    if better == count:
        return f"It is better than {name}{' on every task' if better > 1 else ''}."
    return f"It is better than {name} on {better} of {count} tasks."


def _problems(
    tasks: Sequence[TaskOutcome], losses: Sequence[Sequence[float]], settings: Settings
) -> tuple[list[str], list[str]]:
    """Return what is wrong, in sentences, and what to try, in that order."""
    found: list[str] = []
    below = [t for t in tasks if t.last <= t.constant]
    empty = [t for t in tasks if t.answers and 2 * _empty(t) >= len(t.answers)]
    same = [t for t in tasks if t not in empty and _all_the_same(t)]
    cut = [t for t in tasks if t.answers and 2 * t.cut >= len(t.answers)]
    wrong: list[tuple[str, list[TaskOutcome], Callable[[TaskOutcome], str]]] = [
        (
            "Not above the constant answer",
            below,
            lambda t: f"{percent(t.last)} against {percent(t.constant)}",
        ),
        ("Empty answers", empty, lambda t: f"{_empty(t)} of {len(t.answers)}"),
        ("The same answer to every question", same, lambda t: _shown(t.answers[0])),
        ("Answers cut at the longest length", cut, lambda t: f"{t.cut} of {len(t.answers)}"),
    ]
    found += [f"{what}: {_listed(group, text)}." for what, group, text in wrong if group]
    values = [value for chunk in losses for value in chunk]
    broken = any(not math.isfinite(value) for value in values)
    flat = not broken and not _fell(losses)
    if broken:
        found.append("The loss was not a finite number at times.")
    elif flat:
        first, last = _ends(max(losses, key=len))
        found.append(
            f"The loss did not fall in any chunk ({first:.3g} at first, {last:.3g} later)."
        )
    forgot = lost_since_best(tasks) >= MUCH
    form = bool(empty or same)
    return found, _advice(bool(below), form, bool(cut), broken, flat, forgot, settings)


def _advice(
    below: bool, form: bool, cut: bool, broken: bool, flat: bool, forgot: bool, settings: Settings
) -> list[str]:
    rate = _now(settings.rate)
    advice = []
    if broken:
        advice.append(f"a lower rate (schedule.first.learning_rate{rate})")
    elif below or form or flat:
        advice.append(f"more passes (schedule.epochs{_now(settings.epochs)})")
        if not forgot:
            advice.append(f"a higher rate (schedule.first.learning_rate{rate})")
    if below or form:
        advice.append('say in the question what an answer looks like ("Answer with one word.")')
    if forgot:
        advice.append(
            "against the loss a lower schedule.later.learning_rate, or past samples in every batch "
            "(replay={memory: 500, share: 0.5})"
        )
    if cut:
        advice.append(f"a larger eval.max_new_tokens{_now(settings.tokens)}")
    return advice


def _now(value: float | None) -> str:
    return "" if value is None else f", now {value:g}"


def _listed(tasks: Sequence[TaskOutcome], text: Callable[[TaskOutcome], str]) -> str:
    return a_few([f"{t.task} {text(t)}" for t in tasks], MOST_NAMED)


def _empty(task: TaskOutcome) -> int:
    return sum(not _text(answer) for answer in task.answers)


def _text(answer: str | None) -> str:
    return (answer or "").strip()


def _shown(answer: str | None) -> str:
    text = _text(answer)
    return f'"{text[:40]}…"' if len(text) > 40 else f'"{text}"'


def _all_the_same(task: TaskOutcome) -> bool:
    said = {_text(answer) for answer in task.answers}
    return len(task.answers) > 1 and len(said) == 1 and not task.one_gold


def _fell(losses: Sequence[Sequence[float]]) -> bool:
    """Return whether the loss fell in some chunk, or no chunk has enough of it to tell."""
    long = [chunk for chunk in losses if len(chunk) >= 4]
    return not long or any(last < FALLEN * first for first, last in map(_ends, long))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and of the last quarter."""
    size = max(1, len(values) // 4)
    return _mean(values[:size]), _mean(values[-size:])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
