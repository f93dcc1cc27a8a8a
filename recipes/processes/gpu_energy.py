"""GPU time and energy, where NVIDIA's driver tells them; without it nothing is told."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from recipes.processes.machine import gpu_count


class EnergyMeter:
    """What the GPUs of this machine use between `start` and a reading.

    Needs the package nvidia-ml-py and a GPU that counts its energy (Volta or newer). All GPUs that
    the run may use are counted, also when something else runs on them.
    """

    def __init__(self, gpus: int) -> None:
        """`gpus`: processes of the run on this machine, one a GPU; 0 on CPU."""
        self.gpus = min(gpus, gpu_count())
        self._start = time.monotonic()
        self._joules = self._count()

    def gpu_seconds(self) -> float | None:
        """Seconds times GPUs since the start; None on CPU."""
        return round(self.gpus * (time.monotonic() - self._start), 1) if self.gpus else None

    def joules(self) -> float | None:
        """Energy since the start; None where the driver does not tell it."""
        now = self._count()
        return None if now is None or self._joules is None else round(now - self._joules, 1)

    def _count(self) -> float | None:
        """Joules since the driver was loaded, summed over the GPUs."""
        if not self.gpus:
            return None
        try:
            nvml: Any = import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # noqa: BLE001 - no package, no driver, no right to ask: not told
            return None
        try:
            devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self.gpus)]
            return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(d) for d in devices) / 1000
        except nvml.NVMLError:
            return None
        finally:
            nvml.nvmlShutdown()


def added(before: float | None, more: float | None) -> float | None:
    """The sum of two readings, of which either may not be known."""
    return before if more is None else round((before or 0.0) + more, 1)
