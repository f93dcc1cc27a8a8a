"""This machine, described without torch: GPUs, cores, memory, versions, git."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "ms-swift", "peft", "accelerate", "datasets", "deepspeed")


@cache
def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that processes of ours may use; empty without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    names = tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if done.returncode or visible is None:
        return () if done.returncode else names
    return names[: len([part for part in visible.split(",") if part.strip() not in ("", "-1")])]


def gpu_count() -> int:
    """Number of usable GPUs."""
    return len(gpus())


def hardware() -> dict[str, object]:
    """Processor, cores, memory in GiB and GPUs, for the manifest."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": list(gpus()),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git(repo: Path) -> dict[str, object]:
    """Commit of `repo` and whether tracked files differ from it; nulls outside a repository."""
    sha = _git(repo, "rev-parse", "HEAD")
    if sha is None:
        return {"sha": None, "dirty": None}
    return {"sha": sha, "dirty": bool(_git(repo, "status", "--porcelain", "--untracked-files=no"))}


def _git(repo: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(repo), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
