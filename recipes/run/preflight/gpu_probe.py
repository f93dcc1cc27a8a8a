"""Prints as JSON what torch can do with the GPUs: `python gpu_probe.py bfloat16 4`.

A process of its own: the orchestrator imports no torch, and a driver that hangs can be ended.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SIDE = 256  # of the matrices: every sum is 256, which each dtype holds exactly


def probe(dtype: str, count: int) -> dict[str, Any]:
    """What torch was built for, and of each of the first `count` GPUs whether it multiplies.

    Returns `torch`, `built_for` (CUDA, None: a build for CPUs), `driver_cuda`, `error` (None: CUDA
    starts), and `gpus`: name, error (None: it works) and free bytes of each.
    """
    import torch

    report: dict[str, Any] = {"torch": torch.__version__, "built_for": torch.version.cuda}
    report |= {"driver_cuda": None, "error": None, "gpus": []}
    if torch.version.cuda is None:
        return report | {"error": "it is a build without CUDA"}
    with_driver = getattr(torch._C, "_cuda_getDriverVersion", None)
    try:
        number = with_driver() if with_driver else 0
        report["driver_cuda"] = f"{number // 1000}.{number % 1000 // 10}" if number else None
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return report | {"error": _first_line(error)}
    for index in range(min(count, torch.cuda.device_count())):
        report["gpus"].append(_multiply(torch, index, getattr(torch, dtype)))
    return report


def _multiply(torch: Any, index: int, dtype: Any) -> dict[str, Any]:
    gpu: dict[str, Any] = {"name": "", "error": None, "free": None}
    try:
        gpu["name"] = torch.cuda.get_device_name(index)
        ones = torch.ones(SIDE, SIDE, dtype=dtype, device=f"cuda:{index}")
        wrong = int((ones @ ones != SIDE).sum())
        gpu["free"] = torch.cuda.mem_get_info(index)[0]
        if wrong:
            gpu["error"] = f"{wrong} of {SIDE * SIDE} sums are wrong"
    except RuntimeError as error:
        gpu["error"] = _first_line(error)
    return gpu


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], int(sys.argv[2]))))
