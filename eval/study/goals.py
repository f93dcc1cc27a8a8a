"""The goals that were set for `strlora_signed` before the study ran, against what was measured."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.charts.figure import counted, ratio
from eval.compare.names import BLOCKS, printed
from eval.metrics import SCORE
from eval.significance import Interval, t_interval
from eval.study.groups import Group, Study, leads, read_study
from eval.study.tables import UNKNOWN, ends, markdown, signed

PRESET = printed("strlora_signed")
SLOW_LORA = f"{printed('lora')} + {BLOCKS['slow_weights'][0]}"
REPLAY = printed("er")
NO_DATA = "every method that keeps no data"
MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"


class Goal(NamedTuple):
    """A difference that the preset is to reach: of which score, over whom, where."""

    study: str
    against: str
    key: str
    least: float


GOALS = [
    *(
        Goal(study, against, key, least)
        for study in ("tiny-study", "mini-study")
        for against in (NO_DATA, SLOW_LORA)
        for key, least in (("average", 0.05), ("last", 0.03))
    ),
    *(Goal("mini-study", REPLAY, key, 0.0) for key in ("average", "last")),
    *(Goal("ambiguous", SLOW_LORA, key, 0.0) for key in ("average", "last")),
]
STREAMS_WANTED = 5
# Seconds as `benchmarks/tuner_speed.py --json` writes them, method by method in turn.
TIMES = "step_time.json"
HIDDEN = 2048
MOST = {"step": 1.02, "decode": 1.0}
TIMED = {
    key: f"{what}, hidden {HIDDEN:,}: at most {MOST[key]:.2f} x"
    for key, what in (("step", "step of training"), ("decode", "token in decoding"))
}


class Row(NamedTuple):
    """A goal in words, what was found, and whether that is the goal."""

    goal: str
    where: str
    against: str
    pairs: int
    found: str
    interval: str
    verdict: str


def rows(results: Path) -> list[Row]:
    """Return every goal beside what the CSVs in `results` say of it.

    Raises:
        ValueError: a file is damaged.
    """
    scored = (_score(read_study(results / goal.study), goal) for goal in GOALS)
    return [*scored, *(_time(results, key) for key in TIMED)]


def table(results: Path) -> str:
    """Return the goals as a table, with what the verdicts mean."""
    head = ["goal", "stream", "against", "n", "measured", "95 % interval", "verdict"]
    found = rows(results)
    text = markdown(head, [[str(cell) for cell in row] for row in found], words=3)
    return (
        f"{text}\n\n{PRESET} minus the other, in points, over the n streams that both ran on; each "
        f"goal wants {STREAMS_WANTED} or more. Every method that keeps no data: of those that ran "
        "on more than half of the streams the nearest is named. Met: the mean reaches the goal; "
        "not sure: the interval has values on both sides of it; not measured: fewer than two "
        "streams; 0.0 may be rounded from just below 0. Step, token: "
        f"{PRESET}'s seconds over LoRA's, n repeats of one run (`benchmarks/tuner_speed.py`)."
    )


def summary(results: Path) -> str:
    """Return how many goals are met, missed and not measured, as a sentence."""
    found = Counter(row.verdict for row in rows(results))
    parts = [f"{found[word]} {word}" for word in dict.fromkeys([MET, MISSED, *sorted(found)])]
    return f"of {counted(found.total(), 'goal')} that were set before: {', '.join(parts)}"


def verdict(reached: float, least: float, interval: Interval) -> str:
    """Return whether a mean reaches at least `least`, and whether its interval leaves a doubt."""
    # One run is no result: without an interval nothing tells how far chance goes.
    if math.isnan(reached) or math.isnan(interval.low):
        return NOT_MEASURED
    # Differences of scores that are printed alike may differ in their last bits.
    met = reached >= least - 1e-9
    sure = interval.low >= least - 1e-9 if met else interval.high < least
    return f"{MET if met else MISSED}{'' if sure else ' (not sure)'}"


def _score(study: Study, goal: Goal) -> Row:
    named = {group.name: group for group in study.groups}
    preset, against = named.get(PRESET), goal.against
    others = [named[against]] if against in named else []
    if against == NO_DATA:
        others = [group for group in study.ranked() if not _is_preset(group)]
    found = leads(preset, others, goal.key) if preset else []
    found = [lead for lead in found if lead.pairs]
    title = f"{SCORE[goal.key].title}: at least {signed(goal.least)}"
    where = f"`{goal.study}`"
    if not found:
        return Row(title, where, against, 0, UNKNOWN, UNKNOWN, NOT_MEASURED)
    least = min(found, key=lambda lead: lead.difference)
    if against == NO_DATA:
        against += f" ({len(found)} ran); nearest: {least.other.name}"
    interval = ends(least.interval) if least.pairs > 1 else UNKNOWN
    said = verdict(least.difference, goal.least, least.interval)
    if said != NOT_MEASURED and least.pairs < STREAMS_WANTED:
        said += f", fewer than {STREAMS_WANTED} streams"
    return Row(title, where, against, least.pairs, signed(least.difference), interval, said)


def _is_preset(group: Group) -> bool:
    return group.runs[0].method == "strlora_signed"


def _time(results: Path, key: str) -> Row:
    path = results / TIMES
    lora = printed("lora")
    unknown = Row(TIMED[key], UNKNOWN, lora, 0, UNKNOWN, UNKNOWN, NOT_MEASURED)
    if not path.is_file():
        return unknown
    report = json.loads(path.read_text(encoding="utf-8"))
    try:
        ours, theirs = (
            report["rounds"][method].get(key) for method in ("strlora_signed", "peft_lora")
        )
        hidden = report["settings"]["hidden"]
        times = None if ours is None or theirs is None else np.divide(ours, theirs).tolist()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected what `benchmarks/tuner_speed.py --json` writes ({error!r})"
        ) from error
    if hidden != HIDDEN:
        raise ValueError(f"{path}: found a hidden size of {hidden}, expected {HIDDEN}")
    if times is None:  # --new-tokens 0
        return unknown
    mean = float(np.mean(times))
    # At most so many times LoRA's is at least its negative.
    low, high = t_interval(times)
    said = verdict(-mean, -MOST[key], Interval(-high, -low))
    interval = UNKNOWN if math.isnan(low) else f"{low:.3f} to {high:.3f}"
    return Row(TIMED[key], UNKNOWN, lora, len(times), f"{ratio(mean)} x", interval, said)
