"""A signal stops a command wherever it comes."""

from __future__ import annotations

import subprocess
import sys

from recipes import REPO


def test_a_signal_inside_a_finaliser_is_not_lost() -> None:
    code = """
import os, signal, time
from recipes.processes.stopping import Stopped, stop_on_signals

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

stop_on_signals()
try:
    late = Late()
    del late
    time.sleep(10)
except Stopped as stopped:
    raise SystemExit(128 + stopped.number)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
