"""A real stream of two chunks through ms-swift: killed in chunk 2, it ends bit for bit the same."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.checkpoints import newest_checkpoint
from recipes.commands import REPO, train_command
from recipes.host_arguments import installed_version
from recipes.layout import RunLayout
from recipes.loading import load_recipe
from recipes.process import HostProcess
from recipes.stream import open_stream
from tests.recipes.test_runner import wait_for
from tests.recipes.toy import recipe_values, write_recipe, write_stream

BASE = REPO / "assets" / "tiny_base"

pytestmark = pytest.mark.skipif(
    installed_version() is None or not BASE.is_dir(), reason="needs ms-swift and assets/tiny_base"
)


def orchestrator(recipe: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.cli", str(recipe)],
        cwd=REPO,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_real_stream_survives_sigkill_bit_for_bit(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=2, samples=48)
    values = recipe_values(stream, tmp_path / "run", BASE, method="strlora")
    values["tuner"] |= {"dropout": 0.05}
    values["model"] |= {"aligner": "multi_modal_projector"}
    values["schedule"] |= {"save_steps": 2}
    values["eval"] |= {"every": 2}
    path = write_recipe(tmp_path / "toy.yaml", values)
    layout = RunLayout(tmp_path / "run")

    process = orchestrator(path)
    wait_for(layout.host(2) / "checkpoint-2" / "trainer_state.json", seconds=1800)
    process.kill()
    process.communicate()
    interrupted = newest_checkpoint(layout.host(2))
    assert interrupted is not None
    assert not interrupted.finished

    process = orchestrator(path)
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    assert "resuming at step" in out

    # The same chunk, undisturbed, from the same adapter of chunk 1.
    recipe = load_recipe(str(path))
    other = RunLayout(tmp_path / "other")
    other.chunk(1).mkdir(parents=True)
    other.adapter(1).symlink_to(layout.adapter(1))
    command = train_command(recipe, other, open_stream(recipe).chunk_file(2), 2)
    assert HostProcess(command, tmp_path / "reference.log").wait(lambda: None) == 0
    reference = newest_checkpoint(other.host(2))
    assert reference is not None
    assert reference.step == reference.max_steps == 12
    name = "adapter_model.safetensors"
    assert sha256(layout.adapter(2) / name) == sha256(reference.path / name)
    assert sha256(layout.adapter(2) / name) != sha256(layout.adapter(1) / name)

    with layout.matrix.open(encoding="utf-8") as file:
        rows = [(row["chunk"], row["task"], row["n"]) for row in csv.DictReader(file)]
    assert rows == [(chunk, task, "4") for chunk in ("0", "2") for task in ("VQAv2", "Fin")]
    metrics = layout.train_metrics(2).read_text(encoding="utf-8").splitlines()
    steps = [json.loads(row)["global_step/max_steps"] for row in metrics]
    assert steps == [f"{step}/12" for step in range(1, 13)]
    assert "stability_loss" in json.loads(metrics[-1])
    routing = json.loads(layout.routing(2).read_text(encoding="utf-8"))
    assert routing["num_experts"] == 4
    assert [(group["name"], group["rows"]) for group in routing["groups"]] == [
        ("VQAv2", 4),
        ("Fin", 4),
    ]
    assert layout.report.is_file()
