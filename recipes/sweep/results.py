"""Results of a sweep's runs: their scores, the choice among settings, and tables of both."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from eval.matrix import load_matrix
from eval.metrics import average, last
from eval.study.run_csv import read_run
from recipes.run_folder.state import load_state
from recipes.sweep.axes import FIRST, LATER, Settings
from recipes.sweep.cells import Cell

SAME = 1e-9  # scores closer than this are a tie
DONE, DIVERGED, FAILED, OPEN = "done", "diverged", "failed", "not run"

Row: TypeAlias = "dict[str, str | int | float | bool | None]"  # of the table of runs


@dataclass(frozen=True)
class Result:
    """A run's result; scores are between 0 and 1, NaN unless `state` is done.

    `state`: done; diverged (NaN or infinite weights or loss: the run is lost); failed (something
    else went wrong: it can be run again); not run. `why` explains the middle two.
    """

    cell: Cell
    state: str
    last: float = math.nan
    average: float = math.nan
    seconds: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class Setting:
    """One method with one combination of values, finished on all its seeds."""

    method: str
    settings: Settings
    results: tuple[Result, ...]

    @property
    def last(self) -> float:
        """Mean of Last over the runs."""
        return fmean(result.last for result in self.results)

    @property
    def average(self) -> float:
        """Mean of Avg over the runs."""
        return fmean(result.average for result in self.results)

    def rank(self) -> tuple[float, ...]:
        """For sorting, best first: Last, then Avg, then the smaller rates (the safer choice)."""
        values = dict(self.settings)
        # Rounded, since sums in another order differ in the last bits and would break ties.
        scores = (-round(score / SAME) * SAME for score in (self.last, self.average))
        return (*scores, *(float(values.get(key, 0)) for key in (FIRST, LATER)))


def read_result(cell: Cell) -> Result:
    """Reads what a run left in its folder.

    Raises:
        StateError, ValueError: the folder's files are damaged.
    """
    if cell.kept is not None and cell.kept.is_file():
        kept = read_run(cell.kept)
        scores = float(last(kept.values)), float(average(kept.values))
        return Result(cell, DONE, *scores, kept.seconds)
    layout = cell.layout
    state = load_state(layout.state)
    failure = layout.failure.read_text(encoding="utf-8") if layout.failure.is_file() else ""
    losses = [record.loss for record in state.chunks if record.loss is not None]
    lost = [loss for loss in losses if not math.isfinite(loss)]
    # The words of strlora_tuner.saved.check_finite: the host filters NaN out of the losses that it
    # logs, so that weights may diverge without one.
    if lost or "the training diverged" in failure:
        return Result(cell, DIVERGED, why=failure or f"a chunk ended with the loss {lost[0]}")
    if not state.finished:
        return Result(cell, FAILED if failure else OPEN, why=failure)
    values = load_matrix(layout.matrix).values
    seconds = sum(record.train_seconds + record.eval_seconds for record in state.chunks)
    return Result(cell, DONE, float(last(values)), float(average(values)), seconds)


def choose(results: Sequence[Result]) -> dict[str, Setting]:
    """The best setting of each method that has one, all of whose runs are finished with a score.

    The highest mean Last counts; between equals the highest Avg, then the smaller learning rates.
    """
    groups: dict[tuple[str, Settings], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.recipe.method, result.cell.settings), []).append(result)
    best: dict[str, Setting] = {}
    for (method, settings), group in groups.items():
        # Without any answer nothing was measured: such a score is NaN, which has no rank.
        if all(result.state == DONE and math.isfinite(result.last) for result in group):
            setting = Setting(method, settings, tuple(group))
            best[method] = min(best.get(method, setting), setting, key=Setting.rank)
    return best


def _is_chosen(result: Result, chosen: dict[str, Setting]) -> bool:
    best = chosen.get(result.cell.recipe.method)
    return best is not None and best.settings == result.cell.settings


def rows(results: Sequence[Result], chosen: dict[str, Setting]) -> list[Row]:
    """The results as plain values, one dictionary a run, all with the same keys."""
    table = []
    for result in results:
        recipe, settings = result.cell.recipe, dict(result.cell.settings)
        row: Row = {"method": recipe.method, "seed": recipe.seed, "stream_seed": recipe.data.seed}
        row |= {key: settings.get(key) for key in _keys(results)}
        row |= {"last": _known(result.last), "average": _known(result.average)}
        row |= {"seconds": _known(result.seconds), "state": result.state}
        row |= {"chosen": _is_chosen(result, chosen), "why": result.why, "run": recipe.folder}
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


def as_markdown(results: Sequence[Result], chosen: dict[str, Setting]) -> str:
    """The results as a Markdown table: scores in percent, the chosen settings bold."""
    keys = _keys(results)
    names = {FIRST: "rate, first chunk", LATER: "rate, later chunks"}
    shorts = (names.get(key, key.split(".")[-1].replace("_", " ")) for key in keys)
    heads = ["method", "seed", "stream seed", *shorts, "Last", "Avg", "seconds", ""]
    lines = [_line(heads), "|" + " --- |" * len(heads)]
    for result in results:
        recipe, settings = result.cell.recipe, dict(result.cell.settings)
        cells = [recipe.method, str(recipe.seed), str(recipe.data.seed)]
        cells += [settings.get(key, "-") for key in keys]
        cells += [_number(100 * result.last, 1), _number(100 * result.average, 1)]
        cells.append(_number(result.seconds, 0))
        note = "" if result.state == DONE else result.state
        if _is_chosen(result, chosen):
            cells, note = [f"**{cell}**" for cell in cells], "chosen"
        lines.append(_line([*cells, note]))
    return "\n".join(lines) + "\n"


def _keys(results: Sequence[Result]) -> list[str]:
    """The keys that any of the runs sets, in the order of the grid."""
    return list(dict.fromkeys(key for r in results for key, _ in r.cell.settings))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
