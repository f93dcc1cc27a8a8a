"""Large files: the host's loader reads them, and memory does not grow with them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from datasets import load_dataset

from recipes import REPO
from tests.data_prep.test_chunk import cut, plain, write


def test_the_hosts_loader_reads_chunks_with_late_and_mixed_fields(tmp_path):
    """`datasets` stops at a field that first appears after 10 MB; our chunks are even."""
    records = plain(25_000, note="x" * 400)
    records[-1]["late"] = "here"
    records[-2]["mixed"], records[-3]["mixed"] = [1], "one"
    source = write(tmp_path / "a.jsonl", records)
    cut(source, tmp_path / "out", "--size", "25000", "--no-shuffle")
    path = tmp_path / "out/chunks/001.jsonl"
    assert path.stat().st_size > 10 << 20
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    loaded = load_dataset("json", data_files=str(path), **options)
    assert loaded[-1]["late"] == "here"
    assert (loaded[-2]["mixed"], loaded[-3]["mixed"]) == ("[1]", "one")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Ten times the samples in hardly more memory; benchmarks/data_speed.py goes to a million."""
    peaks = []
    for count in (10_000, 100_000):
        source = write(tmp_path / f"{count}.jsonl", plain(count))
        code = (
            "import resource, sys; from data_prep.chunk.__main__ import main; main(sys.argv[1:]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        out = ["--source", str(source), "--out", str(tmp_path / str(count)), "--workers", "1"]
        done = subprocess.run(
            [sys.executable, "-c", code, *out], cwd=REPO, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.3 * peaks[0], peaks
