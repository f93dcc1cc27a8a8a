"""Watching a host process: its exit code and the memory of its whole family."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from recipes.processes.command import Command, child_environment
from recipes.processes.host_process import HostProcess
from recipes.processes.log_errors import last_error
from recipes.processes.process_tree import kill_group, peak_memory, process_tree, start_time
from recipes.processes.run_lock import RunLock

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


def test_ranks_of_a_pod_or_an_outer_job_do_not_reach_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "NNODES", "NODE_RANK", "NPROC_PER_NODE"]
    ranks += ["TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"]
    for name in [*ranks, "MASTER_ADDR", "MASTER_PORT"]:
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_JOB_ID", "12")  # which srun needs
    alone = child_environment(Python("sft", (), {}))
    assert not [name for name in [*ranks, "MASTER_ADDR", "MASTER_PORT"] if name in alone]
    several = child_environment(Python("sft", (), {"NPROC_PER_NODE": "2"}, 2))
    assert several["NPROC_PER_NODE"] == "2"
    assert "NNODES" not in several
    assert several["MASTER_PORT"] != "7"
    nodes = Python("sft", (), {"NNODES": "2", "NPROC_PER_NODE": "1"}, 2, prefix=("srun",))
    found = child_environment(nodes)
    assert (found["MASTER_ADDR"], found["NNODES"], found["SLURM_JOB_ID"]) == ("7", "2", "12")


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert peak_memory(os.getpid()) > 0
    assert peak_memory(2**22 + 1) == 0.0


# As torchrun starts its workers: in a session of their own, which no signal to the group reaches.
WORKER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"],
                         start_new_session=True)
open(sys.argv[1], "w").write(f"{child.pid}\\n")
time.sleep(300)
"""


@pytest.mark.parametrize("ended_by", ["stop", "the next start"])
def test_a_worker_in_a_session_of_its_own_never_outlives_its_run(
    tmp_path: Path, ended_by: str
) -> None:
    number = tmp_path / "pid"
    process = HostProcess(Python("infer", ("-c", WORKER, str(number)), {}), tmp_path / "1/log")
    while not (number.exists() and number.read_text().endswith("\n")):
        time.sleep(0.01)
    worker = int(number.read_text())
    assert start_time(worker) is not None
    if ended_by == "stop":
        process.stop()
    else:  # the orchestrator died, and with it the group, but not the worker
        kill_group(process.pid, signal.SIGKILL)
        assert start_time(worker) is not None
        with RunLock(tmp_path / "run.lock"):
            pass
    assert start_time(worker) is None


# Two trainers as torchrun starts them; each writes its number when it can save, then that it has.
TRAINERS = """
import pathlib, os, signal, subprocess, sys, time
child = '''import os, pathlib, signal, sys, time
answer = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: (answer.write_text("saved"), os._exit(0)))
answer.write_text(f"{os.getpid()};")
while True:
    time.sleep(0.02)
'''
children = [subprocess.Popen([sys.executable, "-c", child, path], start_new_session=True)
            for path in sys.argv[1:]]
sys.exit(sum(child.wait() for child in children))
"""


@pytest.mark.parametrize("through", ["the orchestrator", "a node of SLURM"])
def test_all_workers_of_torchrun_are_asked_to_save(tmp_path: Path, through: str) -> None:
    answers = [tmp_path / "rank-0", tmp_path / "rank-1"]
    arguments = ("-c", TRAINERS, *map(str, answers))
    if through == "the orchestrator":
        process = HostProcess(Python("sft", arguments, {}), tmp_path / "log")
    else:
        slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}
        node = Python("sft", ("-m", "recipes.slurm.task", sys.executable, *arguments), slurm)
        node.environment["MASTER_ADDR"] = "localhost"
        process = HostProcess(node, tmp_path / "log")
    while not all(answer.exists() and answer.read_text().endswith(";") for answer in answers):
        time.sleep(0.01)
    if through == "the orchestrator":
        process.save_and_stop()
    else:  # SLURM signals every process of a step, torchrun among them
        workers = {int(answer.read_text().rstrip(";")) for answer in answers}
        for pid in [*(process_tree(process.pid) - workers - {process.pid}), process.pid]:
            os.kill(pid, signal.SIGUSR1)
        assert process.wait(lambda: None) == 0
    assert [answer.read_text() for answer in answers] == ["saved", "saved"]


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
