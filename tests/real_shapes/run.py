"""Shipped recipes on models and data of real shape: `python -m tests.real_shapes.run [RECIPE ...]`.

Each trains and evaluates two chunks through ZeRO-2 in bfloat16 with two processes on the CPU, is
killed inside the first and goes on. Only what names the machine and the data is overridden. Prints
one row a recipe; exit status 1 when something did not work.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.real_shapes import streams
from tests.real_shapes.families import RECIPES, Family
from tests.real_shapes.folders import build

ROOT = streams.ROOT
SMALLEST = "internvl3.5-8b"
PATIENCE = 3600  # seconds for one start of a recipe
MACHINE = ("launcher.cpu=true", "launcher.nproc=2", "launcher.deepspeed=zero2",
           "launcher.omp_threads=1")  # fmt: skip
ANSWERS = ("eval.limit=1", "eval.batch_size=4", "eval.max_new_tokens=4")
SAVING = "schedule.save_steps=1"  # so that there is something to go on from inside a chunk
COLUMNS = ("recipe", "starts", "trains", "evaluates", "resumes", "seconds", "peak GiB")


@dataclass
class Row:
    """What one recipe did: None is what was not tried."""

    recipe: str
    starts: bool = False
    trains: bool = False
    evaluates: bool = False
    resumes: bool | None = None
    seconds: float = 0.0
    peak_gib: float = 0.0
    output: str = ""

    @property
    def works(self) -> bool:
        """Whether all that was tried worked."""
        return self.starts and self.trains and self.evaluates and self.resumes is not False

    def cells(self) -> list[str]:
        """The row's text, one cell a column."""
        words = {True: "yes", False: "NO", None: "-"}
        done = [words[value] for value in (self.starts, self.trains, self.evaluates, self.resumes)]
        return [self.recipe, *done, f"{self.seconds:.0f}", f"{self.peak_gib:.1f}"]


class Memory(threading.Thread):
    """The largest sum of what a process and all its children hold, in GiB (shared pages shared)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        """Looks once a second, until told to end."""
        while not self.ended.wait(1.0):
            held = 0
            with suppress(psutil.Error):
                tree = [self.process, *self.process.children(recursive=True)]
                held = sum(_held(each) for each in tree)
            self.peak = max(self.peak, held / 2**30)


def _held(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def run_recipe(
    family: Family, work: Path, kill: bool = True, full_width: bool = False, every: int = 1
) -> Row:
    """Runs a recipe's two chunks in the folder `work`; returns what worked.

    Args:
        family: whose recipe and model folder.
        work: where models, data and the run folder go.
        kill: end it by SIGKILL inside chunk 1 and give the same command again.
        full_width: the model as wide as published, with two layers.
        every: evaluate after every n-th chunk.
    """
    assert family.recipe is not None
    row = Row(family.recipe)
    model = build(family, work / ("models-wide" if full_width else "models"), full_width=full_width)
    stream = streams.strcvit(work / "data")
    run_dir = work / "runs" / family.recipe
    command = ["bash", "recipes/run_stream.sh", family.recipe, "--no-setup", f"run_dir={run_dir}"]
    command += [f"model.path={model}", f"data.stream={stream}", "data.chunks=2", *MACHINE, *ANSWERS]
    command += [SAVING, f"eval.every={every}"]
    started = time.monotonic()
    checkpoint = run_dir / "chunks" / "001" / "host" / "checkpoint-1" / "trainer_state.json"
    if kill:
        _start(command, row, until=checkpoint)
    before = row.output
    if not kill or checkpoint.exists():
        _start(command, row)
    row.seconds = time.monotonic() - started
    evaluated = _evaluated(run_dir / "matrix.csv")
    row.starts = "0" in evaluated
    row.trains = all(_learned(run_dir, chunk) for chunk in (1, 2))
    row.evaluates = evaluated >= {str(n) for n in range(0, 3, every)}
    row.resumes = "resuming at step 1" in row.output[len(before) :] if kill else None
    return row


def _start(command: list[str], row: Row, until: Path | None = None) -> None:
    """Starts the command and waits for its end, or kills it once the file `until` is there."""
    environment = {**os.environ, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        memory = Memory(process.pid)
        memory.start()
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            if until is not None and until.exists():
                break
            time.sleep(0.05)
        if process.poll() is None:
            _kill_tree(process)
        memory.ended.set()
        memory.join()
        log.seek(0)
        row.output += log.read()
    row.peak_gib = max(row.peak_gib, memory.peak)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started at once, as a machine does that goes down."""
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in tree:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=60)


def _evaluated(matrix: Path) -> set[str]:
    if not matrix.is_file():
        return set()
    with matrix.open(encoding="utf-8") as file:
        return {line["chunk"] for line in csv.DictReader(file)}


def _learned(run_dir: Path, chunk: int) -> bool:
    """Whether the chunk left an adapter and finite losses."""
    folder = run_dir / "chunks" / f"{chunk:03d}"
    metrics = folder / "train_metrics.jsonl"
    if not metrics.is_file() or not list(folder.glob("adapter/adapter_model*")):
        return False
    losses = [json.loads(line).get("loss") for line in metrics.read_text("utf-8").splitlines()]
    found = [float(loss) for loss in losses if loss is not None]
    return bool(found) and all(map(math.isfinite, found))


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the recipes named on the command line, or all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.real_shapes.run", description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--work", type=Path, help="folder to work in, kept; default: a temporary")
    parser.add_argument("--no-kill", action="store_true", help="do not try to go on after a kill")
    parser.add_argument(
        "--full-width", action="store_true", help="models as wide as published, with two layers"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.recipes if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        rows = []
        for name in options.recipes or RECIPES:
            row = run_recipe(RECIPES[name], work, not options.no_kill, options.full_width)
            rows.append(row)
            if not row.works:
                print(row.output[-6000:], file=sys.stderr)
            print(table([row]), flush=True)
    print(table(rows))
    return 0 if all(row.works for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
