"""Watching a host process: its exit code and the memory of its whole family."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from recipes.commands import Command
from recipes.process import HostProcess, last_error, peak_memory

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


def test_a_rank_that_was_killed_is_the_cause_and_not_what_others_say_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "\n$ swift sft --first\nValueError: an older start\n"
        "\n$ swift sft --second\n"
        "E1122 api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 77) of binary: python\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "[rank0]: RuntimeError: Read error: Connection reset by peer\n"
        "torch.distributed.elastic.multiprocessing.api.SignalException: got signal: 15\n",
        encoding="utf-8",
    )
    words = "local rank 1 (process 77) was ended by SIGKILL (out of memory? see dmesg)"
    assert last_error(log) == [words]
    log.write_text("\n$ swift sft\nTrain:  38%|███▊ | 3/8\nlast words\n{'loss': '5'}\n")
    assert last_error(log) == ["last words"]
