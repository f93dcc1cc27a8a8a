"""Which GPUs of a machine are a process's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.processes import machine
from recipes.processes.machine import gpus

LINES = """0, GPU-aaaa-1, NVIDIA A, 81559 MiB
1, GPU-bbbb-2, NVIDIA B, 24576 MiB
2, GPU-bbcc-3, NVIDIA C, 16384 MiB
Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error
"""
A, B, C = "NVIDIA A, 81559 MiB", "NVIDIA B, 24576 MiB", "NVIDIA C, 16384 MiB"


@pytest.fixture(autouse=True)
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program that answers as NVIDIA's does on a machine with three unlike GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LINES}END\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpus.cache_clear()
    yield
    gpus.cache_clear()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (A, B, C)),
        ("", ()),
        ("-1", ()),
        ("2,1", (C, B)),
        ("0,-1,1", (A,)),  # as CUDA reads it: what follows is not seen
        ("7", ()),
        ("GPU-bbcc,0", (C, A)),
        ("MIG-1234,MIG-5678", (A, A)),
    ],
)
def test_the_gpus_that_cuda_would_show(
    visible: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx avx2 avx512f avx512bw", "AVX-512"),
        ("fpu sse2 avx avx2", "AVX2"),
        ("fpu sse2 avx", None),
        ("", None),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_instructions(
    flags: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their kernels, and so a run's scores, differ."""
    (tmp_path / "cpuinfo").write_text(f"model name\t: AMD EPYC\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = machine.hardware()
    assert (found["processor"], found["instruction_set"]) == ("AMD EPYC", expected)
