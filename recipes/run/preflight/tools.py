"""What the host needs beside packages: a C compiler, DeepSpeed's file, caches, the network."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from recipes.config.rules import DEEPSPEED
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import zero_settings
from recipes.run.preflight.finding import Finding

_CACHES = {"HF_HOME": ".cache/huggingface", "MODELSCOPE_CACHE": ".cache/modelscope"}
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def check_deepspeed_file(recipe: Recipe) -> Iterator[Finding]:
    """Whether launcher.deepspeed is a name of the host's, JSON, or a file that holds JSON."""
    name = recipe.launcher.deepspeed
    if name in DEEPSPEED:
        return
    try:
        zero_settings(name)
    except (OSError, ValueError) as error:
        yield Finding(
            "launcher.deepspeed",
            f"{name} cannot be read ({error}). Relative paths start at the repository's root",
        )


def check_container(recipe: Recipe, on_submit_host: bool) -> Iterator[Finding]:
    """Whether apptainer, the image and the folders that it is to see are there."""
    slurm = recipe.launcher.slurm
    if recipe.launcher.kind != "slurm" or slurm.container is None:
        return
    if not on_submit_host and shutil.which("apptainer") is None:
        text = "launcher.slurm.container needs apptainer, which is not on PATH: load its module "
        yield Finding("container", text + "(launcher.slurm.modules), or set container to null")
    if "://" not in slurm.container and not Path(slurm.container).expanduser().exists():
        yield Finding(
            "launcher.slurm.container",
            f"{slurm.container} is not there. Set the path of an image (.sif; docs/containers.md "
            "builds one), or docker://NAME; relative paths start at the repository's root",
        )
    for bind in slurm.binds:
        if not Path(bind.split(":")[0]).exists():
            yield Finding("launcher.slurm.binds", f"{bind.split(':')[0]} is not there: correct it")


def check_caches(recipe: Recipe) -> Iterator[Finding]:
    """Whether the host can write its caches (a read-only HOME), and which variables move them."""
    home = os.environ.get("HOME", "")
    closed = []
    for variable, usual in _CACHES.items():
        folder = Path(os.environ.get(variable) or Path(home) / usual).absolute()
        # os.path.exists, since Path.exists raises where a folder above may not be entered.
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not os.access(there, os.W_OK):
            closed.append(f"{variable} (now {folder})")
    if closed:
        yield Finding(
            "caches",
            f"the host cannot write into {', '.join(closed)}. Set these variables to folders on a "
            "disk that is writable, and with them TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR",
        )


def check_compiler(recipe: Recipe) -> Iterator[Finding]:
    """Whether there is a C compiler where something is compiled while the run goes on."""
    reasons = [
        f"swift.{key}" for key in ("torch_compile", "use_liger_kernel") if recipe.swift.get(key)
    ]
    if recipe.launcher.cpu and recipe.launcher.deepspeed:
        reasons.append("DeepSpeed's helper for processes on a CPU (launcher.deepspeed)")
    if not reasons or recipe.launcher.slurm.container:
        return
    wanted = os.environ.get("CXX" if recipe.launcher.cpu else "CC")
    usual = ["c++", "g++", "clang++"] if recipe.launcher.cpu else ["cc", "gcc", "clang"]
    names = [wanted] if wanted else usual
    if not any(map(shutil.which, names)):
        yield Finding(
            "compiler",
            f"{' and '.join(reasons)} compiles while the run goes on, and none of "
            f"{', '.join(names)} is here. Install one (Debian: build-essential), name it by "
            "CC and CXX, or turn that key off",
        )


def check_network(recipe: Recipe) -> Iterator[Finding]:
    """Whether the processes of this machine can meet: loopback, the port and interfaces named."""
    if recipe.processes == 1 and recipe.launcher.kind != "torchrun":
        return
    port = os.environ.get("MASTER_PORT", "0")
    try:
        with socket.socket() as listener:
            listener.bind(("" if recipe.launcher.nodes > 1 else "127.0.0.1", int(port)))
    except (OSError, ValueError, OverflowError) as error:
        what = f"MASTER_PORT={port}" if port != "0" else "a port"
        yield Finding(
            "network",
            f"the processes cannot meet: {what} cannot be opened here ({error}). "
            "Unset MASTER_PORT, so that a free one is taken, or end what holds it",
        )
    there = [name for _, name in socket.if_nameindex()]
    for variable in INTERFACES:
        asked = os.environ.get(variable, "")
        if not asked or asked.startswith("^"):
            continue
        names = asked.removeprefix("=").split(",")
        if not any(one.startswith(name.split(":")[0]) for name in names for one in there):
            yield Finding(
                "network",
                f"{variable}={asked} names no interface of this machine, which has "
                f"{', '.join(there)}: correct or unset it",
            )
