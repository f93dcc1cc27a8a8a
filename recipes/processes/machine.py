"""This machine, described without torch: GPUs, cores, memory, versions, git."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "ms-swift", "peft", "accelerate", "datasets", "deepspeed")
CPUINFO = Path("/proc/cpuinfo")


@cache
def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that processes of ours may use; empty without a driver."""
    said = _nvidia_smi("index,uuid,name,memory.total")
    # Of a GPU that is broken the program prints a sentence in the place of the fields.
    lines = [line.split(", ", 2) for line in said if line.count(", ") >= 3]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(text for _, _, text in lines)
    named = []
    for part in map(str.strip, visible.split(",")):
        known = [text for index, uuid, text in lines if part == index or _begins(uuid, part)]
        if part.startswith("MIG-"):
            known = [text for _, _, text in lines]  # a slice of one of them; the query names none
        # CUDA, too, stops at the first entry that is no device.
        if not known:
            break
        named.append(known[0])
    return tuple(named)


def _begins(uuid: str, part: str) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES is a GPU's UUID, or the beginning of one."""
    return part.startswith("GPU-") and uuid.startswith(part)


def driver_version() -> str | None:
    """The version of the NVIDIA driver, from nvidia-smi or the kernel; None: there is none."""
    if found := _nvidia_smi("driver_version"):
        return found[0]
    with suppress(OSError):
        kernel = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        return next((word for word in kernel.split() if word[0].isdigit() and "." in word), None)
    return None


def _nvidia_smi(fields: str) -> list[str]:
    """What the driver's program says of each GPU, a line for each; nothing where it fails."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    # A broken driver may hang, and every command that looks at the machine would with it.
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return []


def gpu_count() -> int:
    """Number of usable GPUs."""
    return len(gpus())


def hardware() -> dict[str, object]:
    """Processor, its instruction set, cores, memory in GiB and GPUs, for the manifest."""
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "instruction_set": instruction_set(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": list(gpus()),
    }


def processor() -> str:
    """The processor's name as Linux has it ("AMD EPYC 9654"); else its kind ("x86_64")."""
    # platform.processor() is empty on most Linux systems.
    return _of_cpuinfo("model name") or platform.machine()


def instruction_set() -> str | None:
    """The widest vectors that torch has kernels for here; None: not known.

    Processors of one name differ in it ("AMD EPYC" of a cloud), and so do the numbers.
    """
    flags = _of_cpuinfo("flags").split()
    sets = {"avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in sets.items() if flag in flags), None)


def _of_cpuinfo(field: str) -> str:
    """A field of the first processor, empty where there is none."""
    with suppress(OSError):
        text = CPUINFO.read_text(encoding="utf-8")
        if found := re.search(rf"^{field}\s*:\s*(.+?)\s*$", text, re.M):
            return found[1]
    return ""


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers; None: not installed."""
    known: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = None
    return known


def git(repo: Path) -> dict[str, object]:
    """Commit of `repo` and whether tracked files differ from it; nulls outside a repository."""
    try:
        dirty = bool(_git(repo, "status", "--porcelain", "--untracked-files=no"))
        return {"sha": _git(repo, "rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError) as error:
        # Git's own words: no repository, no git, or one of another owner and what to set.
        words = getattr(error, "stderr", None) or str(error)
        return {"sha": None, "dirty": None, "problem": words.strip()}


def _git(repo: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repo), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


# Variables of the user that change numbers: how ms-swift and its models cut pictures and videos
# into tokens, and how NVIDIA's libraries and torch multiply.
_CHANGES_NUMBERS = re.compile(
    r"(MAX|MIN|VIDEO_MAX|VIDEO_MIN|VIDEO_TOTAL)_PIXELS|(IMAGE|VIDEO)_(MAX|MIN)_TOKEN_NUM|"
    r"(VIDEO_)?MAX_(NUM|SLICE_NUMS|PARTITION)|(MAX_)?NUM_(FRAMES|CROPS)|NFRAMES|FPS(_.*)?|"
    r"SPATIAL_MERGE_SIZE|INPUT_SIZE|IMAGE_SIZE|IMG_SIZE|BASE_SIZE|CROP_MODE|HD_NUM|VIDEO_SEGMENTS|"
    r"IMAGE_FACTOR|MAX_RATIO|DOWNSAMPLE_MODE|QWENVL_BBOX_FORMAT|ENABLE_THINKING|THINKING_MODE|"
    r"THINKING_BUDGET|REASONING_EFFORT|CELOSS_PARALLEL_SIZE|RANDOM_DATASET_RESPONSE|"
    r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|"
    r"TORCH_BLAS_PREFER_.*|MKL_CBWR|MKL_ENABLE_INSTRUCTIONS|ONEDNN_MAX_CPU_ISA|ATEN_CPU_CAPABILITY",
    re.IGNORECASE,
)


def number_variables() -> dict[str, str]:
    """Variables of our environment that change the numbers of a run, for its manifest."""
    return {n: v for n, v in sorted(os.environ.items()) if _CHANGES_NUMBERS.fullmatch(n)}
