"""What people reported of runs, replayed through the door; tests/fixtures/cases/train-NN.sh."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import REPO
from tests.recipes.real_host import needs_host

full = pytest.mark.skipif(
    os.environ.get("FULL_FAULTS") != "1",
    reason="the loader's tests have the rule; FULL_FAULTS=1 runs it in the host",
)


def replay(number: str, tmp_path: Path, **variables: str) -> str:
    """Runs a case's script; returns what it printed."""
    script = REPO / "tests" / "fixtures" / "cases" / f"train-{number}.sh"
    environment = {**os.environ, "REPO": str(REPO), "PYTHON": sys.executable, **variables}
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def test_05_an_option_called_off(tmp_path: Path) -> None:
    assert replay("05", tmp_path).count(": valid (strlora (paper") == 2


@pytest.mark.slow
def test_01_decoding_on_a_cache(tmp_path: Path) -> None:
    found = replay("01", tmp_path)
    assert found.count(": same tokens") == 7, found
    assert "OTHER TOKENS" not in found


@pytest.mark.slow
def test_08_all_linear_on_a_vision_language_model(tmp_path: Path) -> None:
    found = replay("08", tmp_path)
    assert "wrapped in the vision tower: 0 layers" in found
    assert found.count("runs without a word") == 2, found


def test_09_an_emptied_block(tmp_path: Path) -> None:
    found = replay("09", tmp_path)
    assert "my.yaml:3: schedule: is empty -- remove the line or give it keys" in found
    assert "1 problem in the recipe" in found


@pytest.mark.slow
@needs_host
def test_02_eval_py_in_the_working_directory(tmp_path: Path) -> None:
    found = replay("02", tmp_path)
    assert "MY OWN" not in found
    assert "exit code 0" in found


@full
@pytest.mark.slow
@needs_host
def test_03_a_date_as_seed(tmp_path: Path) -> None:
    assert "exit code 0" in replay("03", tmp_path)


@full
@pytest.mark.slow
@needs_host
def test_04_tilde_in_run_dir(tmp_path: Path) -> None:
    found = replay("04", tmp_path)
    assert not (REPO / "~").exists()
    assert "home/runs/tilde/report.html" in found


@pytest.mark.slow
@needs_host
def test_06_a_checkpoint_without_its_optimizer(tmp_path: Path) -> None:
    found = replay("06", tmp_path)
    told = (
        r"checkpoint-\d+ is not complete \(optimizer.pt missing\): going on from the chunk's start"
    )
    assert re.search(told, found), found
    assert found.rstrip().endswith("same weights")


@pytest.mark.slow
@needs_host
def test_07_the_cause_behind_a_general_exception(tmp_path: Path) -> None:
    found = replay("07", tmp_path)
    # What the reader of the JSON said, before what `datasets` makes of it.
    assert re.search(r"ValueError: (Trailing data|.*surrogate pair)", found), found
