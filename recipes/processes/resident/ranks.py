"""What torchrun does for the processes of one machine, by forking: the resident worker's way.

Each rank learns who it is from torchrun's own variables. All of them stay in the leader's process
group, so that a signal to the group, a kill of the leader and its memory mean all of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from recipes.processes.process_tree import die_with


def rank_environment(rank: int, count: int) -> dict[str, str]:
    """The variables that torchrun sets for rank `rank` of `count` on a single machine.

    Rank 0 itself keeps the store at MASTER_PORT where the ranks meet; torchrun's agent would.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "ROLE_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "ROLE_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }


def run_ranks(count: int, run: Callable[[int], NoReturn]) -> int:
    """Forks `count` processes, which call `run` with their rank, and waits for them.

    Returns 0 when all have ended well, else 1, as torchrun does: the first that fails ends the
    others at once and is reported on standard error in torchrun's words. SIGTERM is passed on.
    """
    leader = os.getpid()
    ranks: dict[int, int] = {}
    for rank in range(count):
        if (pid := os.fork()) == 0:
            die_with(leader)
            run(rank)
        ranks[pid] = rank

    def pass_on(number: int, frame: FrameType | None) -> None:
        _send(ranks, number)

    signal.signal(signal.SIGTERM, pass_on)
    while ranks:
        ended = _ended()
        failed = sorted((code, ranks[pid], pid) for pid, code in ended.items() if code)
        for pid in ended:
            del ranks[pid]
        if failed:  # the killed one first: an error of another is most often what followed
            code, rank, pid = failed[0]
            _send(ranks, signal.SIGKILL)
            while ranks:
                ranks.pop(os.wait()[0])
            words = f"failed (exitcode: {code}) local_rank: {rank} (pid: {pid}) of the resident job"
            os.write(2, f"\n{words}\n".encode())
            return 1
    return 0


def _ended() -> dict[int, int]:
    """Process id -> exit code of all children that have ended; waits for the first."""
    found: dict[int, int] = {}
    pid, status = os.wait()
    while pid:
        found[pid] = os.waitstatus_to_exitcode(status)
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
    return found


def _send(ranks: dict[int, int], number: int) -> None:
    for pid in list(ranks):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
