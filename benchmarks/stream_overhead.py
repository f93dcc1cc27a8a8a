"""Seconds of a chunk that are not training: separate processes (cold) against the resident worker.

    python benchmarks/stream_overhead.py                              # recipe tiny, three chunks
    python benchmarks/stream_overhead.py my.yaml --chunks 5 --json overhead.json

Runs the same stream twice, cold first, both through the orchestrator, into a temporary folder, and
checks that both leave the same adapters bit for bit. Training is what the host itself counts as
training (train_runtime: its loop over the steps, with saving); everything else a chunk takes counts
as overhead, evaluation too, which by default is one question a task, so that it is all start-up.
The first chunk is left out of the means: it starts the worker.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_RUNTIME = re.compile(r"'train_runtime': '?([0-9.]+)")


def run(words: list[str], folder: Path, resident: bool) -> dict[str, Any]:
    """Runs the stream; seconds of wall clock and of processors, and the chunks one by one."""
    options = [f"run_dir={folder}", f"launcher.resident={str(resident).lower()}"]
    command = [sys.executable, "-m", "recipes.cli", "run", *words, *options]
    before, started = os.times(), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    used = after.children_user + after.children_system
    return {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used - before.children_user - before.children_system, 1),
        "chunks": chunks(folder),
    }


def chunks(folder: Path) -> list[dict[str, float]]:
    """Of every trained chunk: seconds of training, of all else, and the share of training."""
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
