"""What the tests of faults need of the real host: a small stream, its processes, its results."""

from __future__ import annotations

import csv
import hashlib
import json
from contextlib import suppress
from pathlib import Path

from safetensors.numpy import load_file

from recipes.run_folder.layout import RunLayout
from strlora_tuner.saved import WEIGHTS
from tests.recipes.real_host import BASE as BASE
from tests.recipes.real_host import needs_host as needs_host


def rows_of(layout: RunLayout) -> list[tuple[str, str, str]]:
    """(chunk, task, n) of every row of matrix.csv."""
    with layout.matrix.open(encoding="utf-8") as file:
        return [(row["chunk"], row["task"], row["n"]) for row in csv.DictReader(file)]


def parameters_of(layout: RunLayout, chunk: int) -> str:
    """sha256 of all tensors of a chunk's adapter, bit for bit."""
    weights = load_file(layout.adapter(chunk) / WEIGHTS)
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def training_processes(run: Path) -> dict[int, str]:
    """Process id -> rank (0 without torchrun) of the trainers that write into a run folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_text(errors="replace").split("\0")
            if not any(word.startswith(f"{run}/") for word in words):
                continue
            variables = (path / "environ").read_text(errors="replace").split("\0")
            ranks = [v.removeprefix("RANK=") for v in variables if v.startswith("RANK=")]
            if ranks or "swift.cli.sft" in words:
                found[int(path.name)] = ranks[0] if ranks else "0"
    return found


def result_of(layout: RunLayout) -> dict[str, str]:
    """Steps, and sha256 of all that must not depend on where a run was killed."""
    names, metrics = ["matrix.csv"], {}
    for chunk in sorted((layout.root / "chunks").iterdir()):
        inner = ["scores.json"]
        inner += [f"predictions/{path.name}" for path in (chunk / "predictions").glob("*")]
        names += [f"chunks/{chunk.name}/{name}" for name in inner if (chunk / name).is_file()]
        if (chunk / "adapter").is_dir():
            metrics[f"adapter {chunk.name}"] = parameters_of(layout, int(chunk.name))
            metrics[f"steps {chunk.name}"] = steps_of(chunk / "train_metrics.jsonl")
    return {**metrics, **{name: sha256(layout.root / name) for name in names}}


def steps_of(metrics: Path) -> str:
    """Step, loss and norm of the gradient of every row: all but the times."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return str([(r["global_step/max_steps"], r["loss"], r["grad_norm"]) for r in rows])
