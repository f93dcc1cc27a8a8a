"""Where the runs of a sweep stand: one table, read from their files alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eval.charts.figure import duration
from recipes import REPO
from recipes.run_folder.layout import RunLayout
from recipes.sweep.cells import CellEntry, read_cells
from recipes.tools.status import read_folder

FOLLOW_SECONDS = 2.0
OVER = ("finished", "kept", "failed")


@dataclass(frozen=True)
class Row:
    """A run of a sweep.

    `life` is as :class:`Status` has it, or failed, or kept (its CSV is here, its folder is not);
    `score` is the mean over tasks (0 to 100) of the newest evaluation; `seconds_left` follows from
    the chunks that are done; `why`: it failed.
    """

    name: str
    method: str
    seed: int
    stream_seed: int
    settings: dict[str, str]
    life: str
    done: int
    chunks: int
    score: float | None
    seconds: float | None
    seconds_left: float | None
    why: str


def read_rows(folder: Path) -> list[Row]:
    """The runs that sweep.json lists.

    Raises:
        ValueError, StateError: sweep.json, or the state of a run, is damaged.
    """
    rows = [_row(folder, entry) for entry in read_cells(folder)]
    whole = [row.seconds for row in rows if row.life == "finished" and row.seconds]
    usual = fmean(whole) if whole else None  # so long will take one that has no chunk yet
    return [replace(r, seconds_left=usual) if r.seconds_left is None else r for r in rows]


def _row(folder: Path, entry: CellEntry) -> Row:
    layout, chunks = RunLayout(folder / entry["name"]), entry["chunks"]
    status = read_folder(layout, chunks)
    kept = entry.get("kept")
    if status.life == "not started" and kept and (REPO / kept).is_file():
        status.life, status.done = "kept", chunks
    failed = layout.failure.is_file() and status.life not in ("running", "finished", "kept")
    why = layout.failure.read_text(encoding="utf-8") if failed else ""
    scores = [chunk.scores for chunk in status.chunks if chunk.scores]
    left = None
    if status.life in ("finished", "kept"):
        left = 0.0
    elif status.done and status.seconds:
        left = status.seconds / status.done * (chunks - status.done)
    return Row(
        entry["name"],
        entry["method"],
        entry["seed"],
        entry["stream_seed"],
        entry["settings"],
        "failed" if failed else status.life,
        status.done,
        chunks,
        100 * fmean(scores[-1].values()) if scores else None,
        status.seconds,
        left,
        # In one line, without the advice to give the command again.
        " ".join(why.split()).partition(" Fix the cause and give")[0],
    )


def as_json(rows: list[Row]) -> str:
    """The rows as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=2)


def as_table(rows: list[Row]) -> Group:
    """The rows as a table, and behind it what failed and why."""
    table = Table(box=None, pad_edge=False)
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    for name in ("method", "seed", "stream seed", *keys, "", "chunk", "score", "left"):
        table.add_column(name, justify="left" if name in ("method", "") else "right")
    for row in rows:
        score = "-" if row.score is None else f"{row.score:.1f}"
        left = "-" if row.seconds_left is None else duration(row.seconds_left)
        settings = (row.settings.get(key, "-") for key in keys)
        words = (row.method, str(row.seed), str(row.stream_seed), *settings)
        table.add_row(*map(Text, words), row.life, f"{row.done}/{row.chunks}", score, left)
    return Group(table, *summary(rows))


def summary(rows: list[Row]) -> list[Text]:
    """How many runs stand where, the time that is left, and why some failed."""
    counts = ", ".join(f"{number} {life}" for life, number in Counter(r.life for r in rows).items())
    left = [row.seconds_left for row in rows if row.life not in OVER]
    lines = [f"{len(rows)} runs: {counts}"]
    known = [seconds for seconds in left if seconds is not None]
    if left and len(known) == len(left):
        running = max(1, sum(row.life == "running" for row in rows))
        lines[0] += f"; about {duration(sum(known) / running)} left, {running} at a time"
    lines += [f"FAILED {row.name}: {row.why}" for row in rows if row.why]
    return [Text(line) for line in lines]


def show(folder: Path, console: Console | None = None) -> None:
    """Prints the table once."""
    console = console or Console(highlight=False)
    console.print(as_table(read_rows(folder)))


def follow(folder: Path, console: Console | None = None) -> None:
    """Shows the table until every run has ended, anew when it changes."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        for rows in _changes(folder):
            console.print(as_table(rows))
        return
    with Live(as_table(read_rows(folder)), console=console, auto_refresh=False) as live:
        for rows in _changes(folder):
            live.update(as_table(rows), refresh=True)


def _changes(folder: Path) -> Iterator[list[Row]]:
    before: list[Row] | None = None
    while True:
        rows = read_rows(folder)
        if rows != before:
            yield rows
        if all(row.life in OVER for row in rows):
            return
        before = rows
        time.sleep(FOLLOW_SECONDS)
