"""SIGUSR1 at the real `swift sft`: it saves where it is, and the run goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.checkpoints import newest_checkpoint
from recipes.commands import REPO
from recipes.host_arguments import installed_version
from recipes.layout import RunLayout
from tests.recipes.test_runner import wait_for
from tests.recipes.toy import recipe_values, write_recipe, write_stream

BASE = Path(os.environ.get("TEST_BASE_MODEL", REPO / "assets" / "tiny_base"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        installed_version() is None or not BASE.is_dir(),
        reason="needs ms-swift and assets/tiny_base",
    ),
]


def test_a_signal_saves_between_two_checkpoints_and_the_run_goes_on(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=1, samples=4 * 150)
    values = recipe_values(stream, tmp_path / "run", BASE, method="strlora")
    values["data"]["chunks"] = 1
    values["schedule"] |= {"save_steps": 1000}  # so that only the signal can have saved
    values["eval"] |= {"limit": 1}
    path = write_recipe(tmp_path / "toy.yaml", values)
    layout = RunLayout(tmp_path / "run")
    command = [sys.executable, "-m", "recipes.cli", str(path)]

    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True)
    wait_for(layout.host(1) / "logging.jsonl", seconds=1800)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 128 + signal.SIGUSR1, err
    assert "the same command goes on" in err
    saved = newest_checkpoint(layout.host(1))
    assert saved is not None
    assert 0 < saved.step < saved.max_steps == 150

    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {saved.step} of 150" in done.stdout
    state = json.loads(layout.state.read_text(encoding="utf-8"))
    assert (state["finished"], state["chunks"][1]["steps"]) == (True, 150)


GUARD = """
import os, sys
import recipes.strlora_host_plugin as plugin
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
