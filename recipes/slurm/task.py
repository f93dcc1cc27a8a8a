"""`srun python -m recipes.slurm.task COMMAND...`: one machine's part of a training on several.

Tells ms-swift, by its own environment variables, which of the machines this is and where the first
one waits; passes a request to save on to the trainers, which srun cannot reach by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from types import FrameType

from recipes.processes.process_tree import ask_to_save, kill_group

FIRST_PORT, PORTS = 20000, 20000


def node_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What SLURM knows about this task, in the host's variables: rank, first machine and port.

    The port follows from job and step, so that two jobs on a machine do not meet; MASTER_ADDR and
    MASTER_PORT that are already set win.
    """
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    node = {"NODE_RANK": environment["SLURM_NODEID"]}
    if "MASTER_ADDR" not in environment:
        node["MASTER_ADDR"] = first_node(environment["SLURM_JOB_NODELIST"])
    if "MASTER_PORT" not in environment:
        node["MASTER_PORT"] = str(FIRST_PORT + (job * 100 + step) % PORTS)
    return node


def first_node(nodes: str) -> str:
    """The first name of SLURM's node list such as gpu[01-04], by scontrol."""
    done = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]


def main(command: list[str]) -> int:
    """Runs the command to its end and returns its exit code."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **node_environment(os.environ)},
        start_new_session=True,
        # SLURM gives a step's signal to all its processes: torchrun must not die of a request to
        # save. What is ignored stays so in children; a trainer sets its own handler.
        preexec_fn=partial(signal.signal, signal.SIGUSR1, signal.SIG_IGN),
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        # Where no trainer runs yet, nothing can be saved: the task ends.
        if number != signal.SIGUSR1 or not ask_to_save(process.pid):
            kill_group(process.pid, signal.SIGTERM)

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
