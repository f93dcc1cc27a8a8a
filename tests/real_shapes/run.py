"""Shipped recipes on models and data of real shape: `python -m tests.real_shapes.run [RECIPE ...]`.

Each trains and evaluates two chunks through ZeRO-2 in bfloat16 with two processes on the CPU (those
of the embedded model as they are), is killed inside the first and goes on. Only what names the
machine and the data is overridden. Prints one row a recipe, and writes them into docs with
`--write`; exit status 1 when something did not work.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, TypedDict

import psutil

from data_prep.files import read_json, write_json, write_text
from recipes.config.loading import load_recipe
from recipes.processes.machine import git, hardware
from tests.real_shapes import streams
from tests.real_shapes.families import OTHER_WEIGHTS, RECIPES
from tests.real_shapes.folders import build, publish

ROOT = streams.ROOT
EMBEDDED = ("tiny", "smoke", "mini")  # recipes with a model and data of their own
ALL = (*RECIPES, *OTHER_WEIGHTS, *EMBEDDED)
PATIENCE = 3600  # seconds for one start of a recipe
MACHINE = ("launcher.cpu=true", "launcher.nproc=2", "launcher.deepspeed=zero2",
           "launcher.omp_threads=1")  # fmt: skip
ANSWERS = ("eval.batch_size=4", "eval.max_new_tokens=4")
COLUMNS = ("recipe", "starts", "trains", "evaluates", "resumes", "seconds", "peak GiB")
STORED, PAGE = ROOT / "docs" / "real_shapes.json", ROOT / "docs" / "real_shapes.md"
BEGIN, END = "<!-- rows: begin -->\n", "<!-- rows: end -->\n"


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


class Stored(TypedDict):
    """A row of docs/real_shapes.json, with where it was measured."""

    row: dict[str, Any]
    commit: str
    machine: str
    date: str


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
    recipe: str, work: Path, kill: bool = True, full_width: bool = False, every: int = 1
) -> Row:
    """Runs a recipe's two chunks in the folder `work`; returns what worked.

    Args:
        recipe: the name of a shipped one.
        work: where models, data and the run folder go.
        kill: end it by SIGKILL inside chunk 1 and give the same command again.
        full_width: the model as wide as published, with two layers.
        every: evaluate after every n-th chunk.
    """
    row = Row(recipe)
    run_dir = work / "runs" / recipe
    command = ["bash", "recipes/run_stream.sh", recipe, "--no-setup", f"run_dir={run_dir}"]
    command += ["data.chunks=2", "eval.limit=1", "schedule.save_steps=1", f"eval.every={every}"]
    if recipe in EMBEDDED:
        command.append(f"data.stream={work / 'data' / recipe}")
    else:
        model = _model(recipe, work / ("models-wide" if full_width else "models"), full_width)
        command += [f"model.path={model}", f"data.stream={streams.strcvit(work / 'data')}"]
        command += [*MACHINE, *ANSWERS]
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
    row.resumes = "resuming at step" in row.output[len(before) :] if kill else None
    return row


def _model(recipe: str, folder: Path, full_width: bool) -> Path:
    """The recipe's model folder, got as the recipe says: under its name, converted if need be."""
    family = RECIPES[OTHER_WEIGHTS.get(recipe, recipe)]
    name = Path(load_recipe(recipe).model.path).name
    if not name.endswith("-Pretrained-HF"):
        return build(replace(family, name=name), folder, full_width=full_width)
    converted, published = folder / name, folder / name.removesuffix("-HF")
    if not converted.is_dir():
        publish(build(family, folder, full_width=full_width), published)
        words = [sys.executable, "-m", "recipes.convert_internvl", published, "--to", converted]
        subprocess.run(words, cwd=ROOT, check=True)
    return converted


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


def commit() -> str:
    """The commit that is run, for the page; said where files differ from it."""
    state = git(ROOT)
    return str(state["sha"])[:7] + (" and changes" if state["dirty"] else "")


def store(row: Row, at: str) -> None:
    """Puts a row into docs/real_shapes.json, in place of the recipe's older one, and the page."""
    stored: dict[str, Stored] = read_json(STORED) if STORED.is_file() else {}
    here = hardware()
    values = asdict(row)
    del values["output"]
    stored[row.recipe] = {
        "row": values | {"seconds": round(row.seconds), "peak_gib": round(row.peak_gib, 1)},
        "commit": at,
        "machine": f"{here['cores']} cores, {here['memory_gib']:.0f} GiB, {here['machine']}",
        "date": date.today().isoformat(),
    }
    ordered = {name: stored[name] for name in ALL if name in stored}
    write_json(STORED, ordered)
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), ordered))


def page(text: str, stored: Mapping[str, Stored]) -> str:
    """The text of docs/real_shapes.md with these rows in it, and where they were measured."""
    each = stored.values()
    rows = table([Row(**one["row"]) for one in each])
    where = sorted({f"{e['date']}, {e['machine']}, commit {e['commit']}" for e in each})
    told = f"Measured: {'; '.join(where)}."
    if left := [name for name in ALL if name not in stored]:
        told += f" Not measured yet: {', '.join(left)}."
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:start]}{rows}\n\n{told}\n{text[end:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the recipes named on the command line, or all; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.real_shapes.run", description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(ALL)}")
    parser.add_argument("--work", type=Path, help="folder to work in, kept; default: a temporary")
    parser.add_argument("--no-kill", action="store_true", help="do not try to go on after a kill")
    parser.add_argument(
        "--full-width", action="store_true", help="models as wide as published, with two layers"
    )
    parser.add_argument("--write", action="store_true", help=f"keep the rows in {PAGE.name}")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.recipes if name not in ALL]
    if unknown:
        parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(ALL)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        rows, at = [], commit()  # before the page is written
        for name in options.recipes or ALL:
            row = run_recipe(name, work, not options.no_kill, options.full_width)
            rows.append(row)
            if not row.works:
                print(row.output[-6000:], file=sys.stderr)
            if options.write:
                store(row, at)
            print(table([row]), flush=True)
    print(table(rows))
    return 0 if all(row.works for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
