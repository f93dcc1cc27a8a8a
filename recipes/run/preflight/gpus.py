"""Do the GPUs work, from torch, in the recipe's dtype? Nothing falls back to the CPU by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.config.schema import Recipe
from recipes.processes.machine import driver_version, gpu_count
from recipes.run.placement import container
from recipes.run.preflight import gpu_probe
from recipes.run.preflight.finding import Finding

PATIENCE = 180  # seconds; a cold import of torch from a network disk takes a minute
DEVICE = Path("/dev/nvidiactl")  # there wherever the driver is, also in a container
CPU_ONLY = "or set launcher.cpu: true, if the CPU is what you want"


def check_gpus(recipe: Recipe) -> Iterator[Finding]:
    """Whether there are enough GPUs and each multiplies matrices; the driver is named beside."""
    launcher = recipe.launcher
    if launcher.cpu:
        return
    listed = gpu_count()
    if not listed and not DEVICE.exists():
        yield _too_few(recipe, 0, "; nvidia-smi lists none")
        return
    report = _probe(recipe)
    if isinstance(report, str):
        yield Finding("CUDA", f"torch gave no answer about the GPUs ({report}), {CPU_ONLY}")
        return
    versions = _versions(report)
    if report["error"]:
        yield Finding("CUDA", f"{listed} GPUs are listed, but torch cannot use them: "
                      f"{report['error']}; {versions}. {_fix(report)}, {CPU_ONLY}")  # fmt: skip
        return
    if len(report["gpus"]) < launcher.nproc:
        yield _too_few(recipe, len(report["gpus"]), f"; {versions}")
    for index, gpu in enumerate(report["gpus"]):
        if gpu["error"]:
            yield Finding(
                "CUDA",
                f"GPU {index} ({gpu['name'] or 'no name'}) does not multiply {recipe.model.dtype} "
                f"matrices: {gpu['error']}; {versions}. Take it out (CUDA_VISIBLE_DEVICES), choose "
                "another model.dtype, or have the machine looked at",
            )
    yield from _taken(recipe, report["gpus"])


def _too_few(recipe: Recipe, count: int, why: str) -> Finding:
    return Finding(
        "GPUs",
        f"launcher.nproc asks for {recipe.launcher.nproc}, here are {count}{why}. Run it on a "
        "machine with enough, or set launcher.nproc to a divisor that keeps schedule.global_batch "
        f"(the accumulation is derived), {CPU_ONLY}",
    )


def _probe(recipe: Recipe) -> dict[str, Any] | str:
    """What gpu_probe printed; why there is nothing, as text."""
    inside = container(recipe)
    command = [*inside, "python3" if inside else sys.executable, gpu_probe.__file__]
    command += [recipe.model.dtype, str(recipe.launcher.nproc)]
    # A dry run leaves nothing behind: neither bytecode nor compiled kernels.
    unwritten = {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_CACHE_DISABLE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | unwritten
        )
    except subprocess.TimeoutExpired:
        return f"it hung for {PATIENCE} s: does nvidia-smi answer?"
    except OSError as error:
        return str(error)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"exit code {done.returncode}"
    # The last line: libraries print above it.
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _versions(report: dict[str, Any]) -> str:
    built = f"CUDA {report['built_for']}" if report["built_for"] else "CPUs only"
    reaches = f", which reaches up to CUDA {report['driver_cuda']}" if report["driver_cuda"] else ""
    return f"torch {report['torch']} for {built}, driver {driver_version() or 'unknown'}{reaches}"


def _fix(report: dict[str, Any]) -> str:
    if report["built_for"] is None:
        return (
            "Install a torch for CUDA: remove .venv, then bash recipes/setup.sh without "
            "TORCH_INDEX_URL or with the index of a CUDA build"
        )
    if report["driver_cuda"] and _number(report["driver_cuda"]) < _number(report["built_for"]):
        return (
            "Update the driver, or install a torch for the driver's CUDA (TORCH_INDEX_URL in "
            "recipes/setup.sh)"
        )
    return "Make nvidia-smi and CUDA_VISIBLE_DEVICES agree, restart the driver or the machine"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _taken(recipe: Recipe, gpus: list[dict[str, Any]]) -> Iterator[Finding]:
    """GPUs whose free memory does not even hold the base model's weights."""
    weights = sum(p.stat().st_size for p in Path(recipe.model.path).glob("*.safetensors"))
    if "zero3" in (recipe.launcher.deepspeed or "").lower():
        weights //= recipe.processes
    for index, gpu in enumerate(gpus):
        if gpu["free"] is not None and gpu["free"] < weights:
            yield Finding(
                "GPUs",
                f"GPU {index} ({gpu['name']}) has {gpu['free'] / 2**30:.1f} GiB free and the base "
                f"model takes {weights / 2**30:.1f}: end what runs on it, or choose others "
                "(CUDA_VISIBLE_DEVICES)",
            )
