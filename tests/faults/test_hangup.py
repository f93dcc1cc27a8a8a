"""A terminal that goes: SIGHUP saves like SIGTERM, nohup keeps a run, and nobody need read it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import REPO
from recipes.run_folder.checkpoints import newest_checkpoint
from recipes.run_folder.layout import RunLayout
from tests.recipes.conftest import model, stream, toy_yaml
from tests.recipes.run.test_runner import wait_for

pytestmark = pytest.mark.slow
__all__ = ["model", "stream", "toy_yaml"]  # fixtures


def in_a_terminal(path: Path, seconds: str, *before: str) -> tuple[subprocess.Popen[bytes], int]:
    """A run on the stand-in host as the foreground of a terminal of its own, and our end of it."""
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup around pytest would be inherited
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    run = [sys.executable, "-m", "tests.recipes.fake_run", str(path), "schedule.save_steps=1000"]
    process = subprocess.Popen(
        [*before, *run],
        cwd=REPO,
        env={**os.environ, "FAKE_STEP_SECONDS": seconds, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    return process, ours


def test_a_run_whose_terminal_is_closed_saves(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    """The kernel sends SIGHUP, a shell once more: the second is no wish to stop at once."""
    process, terminal = in_a_terminal(toy_yaml(), "1")
    layout = RunLayout(tmp_path / "run")
    wait_for(layout.host(1) / "logging.jsonl")
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 128 + signal.SIGHUP
    saved = newest_checkpoint(layout.host(1))
    assert saved is not None
    assert saved.step in (1, 2, 3)


def test_what_is_ignored_at_the_start_stays_ignored(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    """As nohup does it, which would write a file where the tests run."""
    process, terminal = in_a_terminal(
        toy_yaml(), "0.2", "bash", "-c", "trap '' HUP; exec \"$@\"", "_"
    )
    wait_for(tmp_path / "run/chunks/001/host/logging.jsonl")
    process.send_signal(signal.SIGHUP)
    os.close(terminal)  # from now on every line that is printed fails
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_reader_that_goes_away_ends_no_run(toy_yaml: Callable[..., Path], tmp_path: Path) -> None:
    recipe = toy_yaml(method="strlora")  # nothing in it that the run would remark upon
    run = [sys.executable, "-m", "tests.recipes.fake_run", str(recipe)]
    process = subprocess.Popen(run, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read().decode()
    assert (process.wait(), told) == (0, "")
    assert (tmp_path / "run" / "report.html").is_file()
