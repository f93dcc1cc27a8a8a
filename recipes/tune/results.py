"""Results of trials: their scores, the choice among them, and tables of both."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from eval.matrix import load_matrix
from eval.metrics import average, last
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from recipes.tune.grid import FIRST, LATER, Setting, Trial

SAME = 1e-9  # scores closer than this are a tie
DONE, DIVERGED, FAILED, OPEN = "done", "diverged", "failed", "not run"


Row: TypeAlias = "dict[str, Setting]"  # of the table of trials


@dataclass(frozen=True)
class Result:
    """A trial's result; scores are between 0 and 1, NaN unless `state` is done.

    `state`: done; diverged (NaN or infinite weights or loss: the trial is lost); failed (something
    else went wrong: it can be run again); not run. `why` explains the middle two.
    """

    trial: Trial
    run: str
    state: str
    last: float = math.nan
    average: float = math.nan
    seconds: float = math.nan
    why: str = ""

    def rank(self) -> tuple[float, ...]:
        """For sorting, best first: Last, then Avg, then the smaller rates (the safer choice)."""
        rates = cast("dict[str, float]", dict(self.trial.settings))
        return (
            -round(self.last / SAME) * SAME,
            -round(self.average / SAME) * SAME,
            rates.get(FIRST, 0.0),
            rates.get(LATER, 0.0),
        )


def read_result(trial: Trial, run: Path, failure: str = "") -> Result:
    """Reads what a trial left in its run folder; `failure` is what its process said, if it failed.

    Raises:
        StateError, ValueError: the folder's files are damaged.
    """
    layout = RunLayout(run)
    state = load_state(layout.state)
    losses = [record.loss for record in state.chunks if record.loss is not None]
    lost = [loss for loss in losses if not math.isfinite(loss)]
    if lost or "the training diverged" in failure:
        why = failure or f"a chunk ended with the loss {lost[0]}"
        return Result(trial, str(run), DIVERGED, why=why)
    if not state.finished:
        return Result(trial, str(run), FAILED if failure else OPEN, why=failure)
    values = load_matrix(layout.matrix).values
    seconds = sum(record.train_seconds + record.eval_seconds for record in state.chunks)
    return Result(trial, str(run), DONE, float(last(values)), float(average(values)), seconds)


def choose(results: Sequence[Result]) -> Result | None:
    """The best finished trial; None when there is none.

    The highest Last counts; between equals the highest Avg, then the smaller learning rates.
    """
    return min((r for r in results if r.state == DONE), key=Result.rank, default=None)


def rows(results: Sequence[Result], chosen: Sequence[Result]) -> list[Row]:
    """The results as plain values, one dictionary a trial, all with the same keys."""
    keys = _keys(results)
    table = []
    for result in results:
        settings = dict(result.trial.settings)
        row: Row = {"method": result.trial.method}
        row |= {key: settings.get(key) for key in keys}
        row |= {"last": _known(result.last), "average": _known(result.average)}
        row |= {"seconds": _known(result.seconds), "state": result.state}
        row |= {"chosen": result in chosen, "why": result.why, "run": result.run}
        table.append(row)
    return table


def _known(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def as_csv(table: Sequence[Row]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(results: Sequence[Result], chosen: Sequence[Result]) -> str:
    """The results as a Markdown table: scores in percent, the chosen trials bold."""
    keys = _keys(results)
    heads = ["method", *(_short(key) for key in keys), "Last", "Avg", "seconds", ""]
    lines = [_line(heads), "|" + " --- |" * len(heads)]
    for result in results:
        settings = dict(result.trial.settings)
        values = ["-" if settings.get(key) is None else f"{settings[key]}" for key in keys]
        cells = [result.trial.method, *values]
        cells += [_number(100 * result.last, 1), _number(100 * result.average, 1)]
        cells.append(_number(result.seconds, 0))
        note = "" if result.state == DONE else result.state
        if result in chosen:
            cells, note = [f"**{cell}**" for cell in cells], "chosen"
        lines.append(_line([*cells, note]))
    return "\n".join(lines) + "\n"


def _keys(results: Sequence[Result]) -> list[str]:
    """The keys that any of the trials sets, in the order of the grid."""
    return list(dict.fromkeys(key for r in results for key, _ in r.trial.settings))


def _short(key: str) -> str:
    names = {FIRST: "rate, first chunk", LATER: "rate, later chunks"}
    return names.get(key, key.split(".")[-1].replace("_", " "))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
