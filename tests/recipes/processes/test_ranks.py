"""Forked ranks: told who they are as by torchrun, ended together; the first that fails is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes import REPO
from recipes.processes.log_errors import last_error
from recipes.processes.process_tree import start_time
from recipes.processes.resident.ranks import rank_environment

# Each rank writes its process id; then it runs the last argument.
LEADER = """
import os, sys, time
from pathlib import Path
from recipes.processes.resident.ranks import run_ranks

def run(rank):
    Path(sys.argv[1], f"{rank}.new").write_text(str(os.getpid()))
    os.rename(Path(sys.argv[1], f"{rank}.new"), Path(sys.argv[1], str(rank)))
    exec(sys.argv[2])
    os._exit(0)

os._exit(run_ranks(2, run))
"""


def start(folder: Path, what: str) -> subprocess.Popen[bytes]:
    """A leader whose ranks run the statement `what`; it writes into the file `log`."""
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-c", LEADER, str(folder), what]
        return subprocess.Popen(command, cwd=REPO, stdout=log, stderr=log, start_new_session=True)


def pids(folder: Path, process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of both ranks, once they have started."""
    while not all((folder / name).exists() for name in "01"):
        assert process.poll() is None
        time.sleep(0.01)
    return [int((folder / name).read_text()) for name in "01"]


def test_all_end_well(tmp_path: Path) -> None:
    process = start(
        tmp_path, "os.write(1, f'rank {rank} {os.getpgid(0) == os.getppid()}\\n'.encode())"
    )
    assert process.wait(timeout=300) == 0
    lines = (tmp_path / "log").read_text().split("\n")
    assert sorted(lines) == ["", "rank 0 True", "rank 1 True"]


def test_the_first_that_fails_ends_the_others(tmp_path: Path) -> None:
    # The second rank may not fail before the first has told its process id.
    waits = "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.01)"
    process = start(tmp_path, f"{waits}\ntime.sleep(300 * (1 - rank)); os._exit(3)")
    first, second = pids(tmp_path, process)
    (tmp_path / "go").touch()
    assert process.wait(timeout=250) == 1
    assert start_time(first) is None
    words = f"failed (exitcode: 3) local_rank: 1 (pid: {second})"
    assert words in (tmp_path / "log").read_text()


def test_a_killed_rank_is_the_cause(tmp_path: Path) -> None:
    process = start(tmp_path, "time.sleep(300)")
    first, second = pids(tmp_path, process)
    os.kill(second, signal.SIGKILL)
    assert process.wait(timeout=250) == 1
    assert start_time(first) is None
    words = f"local rank 1 (process {second}) was ended by SIGKILL (out of memory? see dmesg)"
    assert last_error(tmp_path / "log") == [words]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_leader_ends_the_ranks(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "time.sleep(300)")
    ranks = pids(tmp_path, process)
    process.send_signal(number)
    process.wait(timeout=250)
    deadline = time.monotonic() + 100  # far less than they would sleep
    while any(start_time(rank) is not None for rank in ranks):  # the kernel's part is not at once
        assert time.monotonic() < deadline, f"{number.name} to the leader left a rank alive"
        time.sleep(0.01)


@pytest.mark.slow
def test_ranks_are_told_what_torchrun_tells(tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text("import json, os\nprint(json.dumps([dict(os.environ)]), flush=True)\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1"]
    torchrun += ["--master_port", "0", str(script)]
    done = subprocess.run(torchrun, capture_output=True, text=True, check=True, env=_plain())
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[{")))[0]
    ours = rank_environment(0, 1)
    own = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT"}
    own |= {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_SIGNALS_TO_HANDLE", "OMP_NUM_THREADS"}
    new = {name: value for name, value in told.items() if name not in _plain().keys() | own}
    assert new == {name: value for name, value in ours.items() if name not in own}


def _plain() -> dict[str, str]:
    """The environment without what a launcher around the tests may have set."""
    names = rank_environment(0, 1).keys() | {"MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in names}
