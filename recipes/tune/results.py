"""What the trials gave: their scores, the choice among them, and the table of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.matrix import load_matrix
from eval.metrics import average, last
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from recipes.tune.grid import FIRST, LATER, Trial

SAME = 1e-9  # scores closer than this are a tie
DONE, DIVERGED, FAILED, OPEN = "done", "diverged", "failed", "not run"


@dataclass(frozen=True)
class Result:
    """A trial and what came of it; scores are parts of 1, NaN unless `state` is done.

    `state`: done; diverged (NaN or infinite weights or loss: the trial is lost); failed (something
    else went wrong: it can be run again); not run. `why` says more about the middle two.
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
        rates = dict(self.trial.settings)
        return (
            -round(self.last / SAME) * SAME,
            -round(self.average / SAME) * SAME,
            float(rates.get(FIRST, 0.0)),
            float(rates.get(LATER, 0.0)),
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


def rows(results: Sequence[Result], chosen: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as plain values, one dictionary a trial, all with the same keys."""
    keys = list(dict.fromkeys(key for r in results for key, _ in r.trial.settings))
    table = []
    for result in results:
        settings = dict(result.trial.settings)
        row: dict[str, Any] = {"method": result.trial.method}
        row |= {key: settings.get(key) for key in keys}
        row |= {"last": _known(result.last), "average": _known(result.average)}
        row |= {"seconds": _known(result.seconds), "state": result.state}
        row |= {"chosen": result in chosen, "why": result.why, "run": result.run}
        table.append(row)
    return table


def _known(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table: scores in percent, the chosen trials bold."""
    settings = [key for key in table[0] if "." in key]
    heads = ["method", *(_short(key) for key in settings), "Last", "Avg", "seconds", ""]
    lines = [_line(heads), "|" + " --- |" * len(heads)]
    for row in table:
        cells = [row["method"], *("-" if row[k] is None else f"{row[k]}" for k in settings)]
        cells += [_percent(row["last"]), _percent(row["average"])]
        cells.append("-" if row["seconds"] is None else f"{row['seconds']:.0f}")
        if row["chosen"]:
            cells = [f"**{cell}**" for cell in cells]
        note = "chosen" if row["chosen"] else "" if row["state"] == DONE else row["state"]
        lines.append(_line([*cells, note]))
    return "\n".join(lines) + "\n"


def _short(key: str) -> str:
    names = {FIRST: "rate, first chunk", LATER: "rate, later chunks"}
    return names.get(key, key.split(".")[-1].replace("_", " "))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
