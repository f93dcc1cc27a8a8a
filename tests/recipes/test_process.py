"""Watching a host process: its exit code and the memory of its whole family."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from recipes.commands import Command
from recipes.process import HostProcess, peak_memory

ALLOCATE = "import time; block = bytearray(200 * 2**20); time.sleep(1.5)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{ALLOCATE}'])"


class Python(Command):
    """A command that runs its arguments with this interpreter."""

    def argv(self) -> list[str]:
        return [sys.executable, *self.arguments]


def test_memory_of_a_grandchild_counts(tmp_path: Path) -> None:
    process = HostProcess(Python("sft", ("-c", PARENT), {}), tmp_path / "log")
    assert process.wait(lambda: None) == 0
    assert 200 / 1024 < process.peak_gib < 1


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert peak_memory(os.getpid()) > 0
    assert peak_memory(2**22 + 1) == 0.0
