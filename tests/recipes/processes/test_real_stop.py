"""A signal at the real `swift sft`: it saves where it is, and the run goes on from there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import train_command
from recipes.run_folder.checkpoints import newest_checkpoint
from recipes.run_folder.layout import RunLayout
from tests.recipes.real_host import (
    BASE,
    gone_on,
    host_worker,
    needs_host,
    orchestrator,
    sha256,
    undisturbed,
    wait_while,
)
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]


STEPS = 60


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGUSR1), (2, signal.SIGTERM)])
def test_a_signal_saves_the_current_step_and_the_run_goes_on_from_it(
    tmp_path: Path, processes: int, number: signal.Signals
) -> None:
    stream = write_stream(tmp_path / "stream", chunks=1, samples=4 * STEPS)
    values = recipe_values(stream, tmp_path / "run", BASE, method="strlora")
    values["data"]["chunks"] = 1
    values["tuner"] |= {"dropout": 0.05}  # so that a lost random state is seen
    # Only the signal can have saved.
    values["schedule"] |= {"save_steps": 1000, "per_device_batch": 4 // processes}
    values["launcher"] |= {"nproc": processes}
    path = write_recipe(tmp_path / "toy.yaml", values)
    layout = RunLayout(tmp_path / "run")

    process = orchestrator(path, "--train-only")
    wait_while(process, layout.host(1) / "logging.jsonl")
    process.send_signal(number)
    assert process.wait(900) == 128 + number, process.text()
    assert f"stopped by {number.name}: finished work is saved" in process.text()
    saved = newest_checkpoint(layout.host(1))
    log = layout.train_log(1).read_text(encoding="utf-8")
    assert saved is not None, log
    assert 0 < saved.step < saved.max_steps == STEPS
    assert "death signal" not in log  # torchrun's word when it ends its workers: they were asked

    assert f"resuming at step {saved.step} of {STEPS}" in gone_on(path, "--train-only")
    recipe, other = load_recipe(str(path)), RunLayout(tmp_path / "other")
    command = train_command(recipe, other, open_recipe_stream(recipe).chunk_file(1), 1)
    reference = undisturbed(command, other.host(1), tmp_path / "reference.log", host_worker())
    assert reference.step == STEPS
    name = "adapter_model.safetensors"
    assert sha256(layout.adapter(1) / name) == sha256(reference.path / name)
    rows = layout.train_metrics(1).read_text(encoding="utf-8").splitlines()
    steps = [json.loads(row)["global_step/max_steps"] for row in rows]
    assert steps == [f"{step}/{STEPS}" for step in range(1, STEPS + 1)]


GUARD = """
import os, sys
import recipes.swift_plugins.training as plugin
from transformers.dynamic_module_utils import get_class_from_dynamic_module
manager = plugin.SaveAndStop().shutdown_manager
foreign = "/tmp/stop"
exists = os.path.exists
os.path.exists = lambda path: path == foreign or exists(path)  # left by somebody else
assert not manager.should_shutdown()
try:
    get_class_from_dynamic_module("modeling_x.X", sys.argv[1])
except ValueError as error:
    assert "set model.remote_code: true" in str(error), error
else:
    raise SystemExit("the model's own code was loaded")
"""


def test_a_foreign_stop_file_and_a_models_own_code_do_nothing(tmp_path: Path) -> None:
    (tmp_path / "modeling_x.py").write_text("class X: pass\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", GUARD, str(tmp_path)], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
