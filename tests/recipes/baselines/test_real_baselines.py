"""Replay and EWC through the real host: killed inside a chunk, it ends bit for bit the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import REPO
from recipes.baselines.replay import write_replay_file
from recipes.config.loading import load_recipe
from recipes.config.method import method_names
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import train_command
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from recipes.tools.status import verify
from strlora_tuner.methods.ewc.state_file import FILE
from tests.recipes.real_host import (
    BASE,
    full_methods,
    gone_on,
    host_worker,
    killed_inside,
    needs_host,
    sha256,
    undisturbed,
)
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]


@full_methods
def test_a_chunk_with_replay_and_ewc_survives_sigkill_bit_for_bit(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=2, samples=18)
    values = recipe_values(stream, tmp_path / "run", BASE, method="er")
    values["replay"] = {"memory": 5, "share": 0.5}
    values["ewc"] = {"weight": 100}
    values["schedule"] |= {"save_steps": 2, "per_device_batch": 2, "epochs": 2}
    values["eval"] |= {"every": 2, "limit": 1, "tasks": ["Fin"]}
    path = write_recipe(tmp_path / "toy.yaml", values)
    layout = RunLayout(tmp_path / "run")

    killed_inside(path, layout.host(2), step=2)
    layout.replay_file(2).unlink()  # it follows from what is recorded, and is written again
    assert "resuming at step" in gone_on(path)

    recipe = load_recipe(str(path))
    other = RunLayout(tmp_path / "other")
    other.chunk(1).mkdir(parents=True)
    for folder in ("adapter", "replay"):
        (other.chunk(1) / folder).symlink_to(layout.chunk(1) / folder)
    stream, seed = open_recipe_stream(recipe), recipe.chunk_seed(2)
    write_replay_file(recipe, other, stream, load_state(layout.state), 2, seed)
    own = stream.chunk_file(2)
    command = train_command(recipe, other, other.replay_file(2), 2, own=own)
    reference = undisturbed(command, other.host(2), tmp_path / "reference.log", host_worker())
    # 18 samples twice, two beside two replayed ones in a batch of 4.
    assert reference.step == reference.max_steps == 18
    name = "adapter_model.safetensors"
    assert sha256(layout.adapter(2) / name) == sha256(reference.path / name)
    assert sha256(layout.adapter(2) / FILE) == sha256(reference.path / FILE)
    assert sha256(layout.adapter(2) / name) != sha256(layout.adapter(1) / name)
    assert [record.steps for record in load_state(layout.state).chunks] == [0, 10, 18]


@full_methods
@pytest.mark.parametrize("method", method_names())
def test_a_method_runs_the_smoke_stream(tmp_path: Path, method: str) -> None:
    run = tmp_path / method
    overrides = [f"method={method}", f"run_dir={run}", "launcher.resident=true"]
    overrides += ["eval.limit=1", "eval.every=3"]
    command = [sys.executable, "-m", "recipes.cli", "smoke", *overrides]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((run / "state.json").read_text(encoding="utf-8"))["finished"] is True
    assert (run / "report.html").is_file()
    assert list(verify(load_recipe("smoke", overrides))) == []
