"""One host process: what is executed, and in what environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
from dataclasses import dataclass
from typing import TypeAlias

from recipes.processes.machine import gpu_count

# What an argument of the host holds: a list is several words, a dictionary JSON, None left out.
Value: TypeAlias = "str | int | float | bool | list[str] | dict[str, Value] | None"
Arguments: TypeAlias = dict[str, Value]


@dataclass(frozen=True)
class Command:
    """One host process: `kind` (sft | infer), its arguments, and what its environment adds."""

    kind: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    processes: int = 1
    prefix: tuple[str, ...] = ()  # srun and what it needs
    inside: tuple[str, ...] = ()  # the container that the host runs in

    @property
    def remote(self) -> bool:
        """Whether srun starts it, on other machines perhaps."""
        return bool(self.prefix)

    def argv(self) -> list[str]:
        """What is executed.

        One process runs the module behind `swift KIND` itself: the launcher in between would cost
        two seconds a start and stand between our signals and the trainer. Several processes go
        through ms-swift's own launcher, which calls torchrun.
        """
        # The image has an interpreter of its own; ours is not in it.
        python = "python3" if self.inside else sys.executable
        if self.remote:
            node = [*self.prefix, sys.executable, "-m", "recipes.slurm.task"]
            host = [*self.inside, python, "-m", "swift.cli.main", self.kind]
            return [*node, *host, *self.arguments]
        if "NPROC_PER_NODE" not in self.environment:
            return [*self.inside, python, "-m", f"swift.cli.{self.kind}", *self.arguments]
        return [*self.inside, python, "-m", "swift.cli.main", self.kind, *self.arguments]

    def as_shell(self) -> str:
        """The same as one shell command, for people to read and copy.

        A host that this machine starts by itself is written as `swift KIND`, which does the same.
        """
        names = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        words = self.argv()[: -len(self.arguments)] if self.prefix or self.inside else []
        lines = [" ".join([*names, shlex.join(words or ["swift", self.kind])])]
        pair: list[str] = []
        for argument in self.arguments:
            if argument.startswith("--") and pair:
                lines.append(" ".join(pair))
                pair = []
            pair.append(shlex.quote(argument))
        lines.append(" ".join(pair))
        return " \\\n    ".join(lines)


# Which of several processes this one is: set for it by a pod, mpirun or an outer SLURM step, and
# wrong for the host processes that it starts.
_RANKS = re.compile(
    r"(GROUP_|ROLE_|LOCAL_|NODE_)?RANK|(GROUP_|ROLE_|LOCAL_)?WORLD_SIZE|NNODES|NPROC_PER_NODE|"
    r"SLURM_(PROCID|LOCALID|NTASKS|NPROCS)|(TORCHELASTIC|OMPI|PMI|PMIX|PMI2|MV2_COMM_WORLD)_.*"
)
_MEETING = re.compile("MASTER_(ADDR|PORT)")  # srun's processes may have been given it


def child_environment(command: Command) -> dict[str, str]:
    """The inherited environment plus the command's; PYTHONPATH is extended, not replaced.

    What says which of several processes this one is stays behind; a log is always UTF-8.
    """
    inherited_all = {
        name: value
        for name, value in os.environ.items()
        if not _RANKS.fullmatch(name) and (command.remote or not _MEETING.fullmatch(name))
    }
    utf8 = {"PYTHONIOENCODING": "utf-8:replace"}
    environment = {**inherited_all, **utf8, **command.environment}
    inherited = os.environ.get("PYTHONPATH")
    if inherited and "PYTHONPATH" in command.environment:
        ours = command.environment["PYTHONPATH"]
        environment["PYTHONPATH"] = os.pathsep.join([ours, inherited])
    if "CUDA_VISIBLE_DEVICES" not in environment and gpu_count() > command.processes:
        # Seeing more GPUs than it has processes, the host would split the model over them.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(command.processes)))
    if "NPROC_PER_NODE" in command.environment and not command.remote:
        environment.setdefault("MASTER_PORT", str(free_port()))
    return environment


def free_port() -> int:
    """A port that is free now: two runs on a machine must not meet at torchrun's default."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def flags(arguments: Arguments) -> tuple[str, ...]:
    """The arguments as words of a command line."""
    words: list[str] = []
    for key, value in arguments.items():
        if value is None:
            continue
        words.append(f"--{key}")
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [_text(item) for item in values]
    return tuple(words)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
