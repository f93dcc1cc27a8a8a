"""Seconds of a chunk that are not training: separate processes (cold) against the resident worker.

    python benchmarks/stream_overhead.py                              # recipe tiny, three chunks
    python benchmarks/stream_overhead.py my.yaml --chunks 5 --json overhead.json

Runs the same stream twice, cold first, both through the orchestrator, into a temporary folder, and
checks that both leave the same adapters bit for bit. Training is what the host itself counts as
training (train_runtime: its loop over the steps, with saving); everything else a chunk takes counts
as overhead, evaluation too, which by default is one question a task, so that it is all start-up.
The first chunk is left out of the means: it starts the worker. Processor seconds of a chunk are
those of the orchestrator and all that it started, training included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_RUNTIME = re.compile(r"'train_runtime': '?([0-9.]+)")


def run(words: list[str], folder: Path, resident: bool) -> dict[str, Any]:
    """Runs the stream; seconds of wall clock and of processors, and the chunks one by one."""
    options = [f"run_dir={folder}", f"launcher.resident={str(resident).lower()}"]
    command = [sys.executable, "-m", "recipes.cli", "run", *words, *options]
    started = time.monotonic()
    used: dict[int, float] = {}  # chunk -> processor seconds when it was done
    with (folder.parent / f"{folder.name}.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            now = processor_seconds(process.pid)
            used.setdefault(chunks_done(folder), now)
            time.sleep(0.5)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()}")
    return {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(now, 1),
        "load": [round(value, 1) for value in os.getloadavg()],
        "chunks": chunks(folder, used),
    }


def chunks_done(folder: Path) -> int:
    """The chunk that state.json counts as done; 0 before the first."""
    try:
        return int(json.loads((folder / "state.json").read_text(encoding="utf-8"))["done"])
    except FileNotFoundError:
        return 0


def processor_seconds(root: int) -> float:
    """Seconds that a process, its descendants and those of them that ended have computed so far."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # A process may have ended since the folder was listed.
        with suppress(OSError):
            # Behind the last bracket: a command's name may hold blanks and brackets itself.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            pid = int(path.parent.name)
            # User and system time, of the process and of its children that ended.
            parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def chunks(folder: Path, used: dict[int, float]) -> list[dict[str, float]]:
    """Of every trained chunk: seconds of training, of all else, of processors; training's share."""
    rows = []
    for record in json.loads((folder / "state.json").read_text(encoding="utf-8"))["chunks"]:
        if not record["steps"]:
            continue
        log = folder / "chunks" / f"{record['index']:03d}" / "train.log"
        training = float(_RUNTIME.findall(log.read_text(encoding="utf-8", errors="replace"))[-1])
        total = record["train_seconds"] + record["eval_seconds"]
        row = {"chunk": record["index"], "training": training, "other": total - training}
        row |= {"starting_to_train": record["train_seconds"] - training}
        row |= {"evaluating": record["eval_seconds"], "training_share": training / total}
        done = record["index"]
        if done in used and done - 1 in used:
            row["cpu_seconds"] = used[done] - used[done - 1]
        rows.append({key: round(value, 3) for key, value in row.items()})
    return rows


def adapters(folder: Path) -> list[str]:
    """sha256 of every chunk's adapter."""
    files = sorted(folder.glob("chunks/*/adapter/adapter_model.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def mean_of(run: dict[str, Any], key: str) -> float:
    """A column's mean over the chunks after the first."""
    return statistics.mean(row[key] for row in run["chunks"][1:])


def main() -> None:
    """Runs both ways and prints the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", nargs="?", default="tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1, help="test samples a task")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_intermixed_args()
    if options.chunks < 2:
        parser.error("--chunks must be 2 or more: the first starts the worker and is left out")
    words = [options.recipe, f"data.chunks={options.chunks}", f"eval.limit={options.limit}"]
    words += options.overrides
    with tempfile.TemporaryDirectory() as name:
        found = {
            kind: run(words, Path(name) / kind, kind == "resident") for kind in ("cold", "resident")
        }
        same = adapters(Path(name) / "cold") == adapters(Path(name) / "resident")
    other = {kind: mean_of(result, "other") for kind, result in found.items()}
    result: dict[str, Any] = {
        "recipe": words,
        "same_adapters": same,
        "not_training_seconds_a_chunk": {kind: round(value, 2) for kind, value in other.items()},
        "ratio": round(other["cold"] / other["resident"], 2),
        "training_share": {
            kind: round(mean_of(result, "training_share"), 3) for kind, result in found.items()
        },
        "cpu_seconds_a_chunk": {
            kind: round(mean_of(result, "cpu_seconds"), 1) for kind, result in found.items()
        },
        "runs": found,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    if not same:
        raise SystemExit("the adapters differ: the resident worker is not to be used here")


if __name__ == "__main__":
    main()
