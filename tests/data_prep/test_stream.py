"""The stream folder: counts, hashes, resume, refusal of changed files, the same bytes again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_prep.mini import __main__ as command
from data_prep.mini.manifest import StreamError, hit, majority
from data_prep.mini.mixtures import SIZES, apportion
from data_prep.mini.stream import PARTIAL, write_stream

# sha256 of stream.json, which holds the hash of every JSONL and of all decoded pixels. It changes
# only when a task, the mixture or Pillow's drawing changes: then raise data_prep.mini.VERSION.
GOLDEN_SMOKE = "1eb323d41fff62e82df8938a9f53f58e4d82f8f8140a16a83c67008e9d0913ca"


def rows(path):
    """Return the records of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def copy(smoke, tmp_path):
    """Return a copy of the smoke stream that a test may change."""
    return shutil.copytree(smoke, tmp_path / "copy")


def tree(folder):
    """Return path -> bytes of every file below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_golden_hash(smoke):
    assert hashlib.sha256((smoke / "stream.json").read_bytes()).hexdigest() == GOLDEN_SMOKE


def test_counts_and_hashes(smoke, manifest):
    assert manifest["format"] == "strlora-stream/1"
    assert manifest["name"] == "mini-strcvit-smoke"
    seen = set()
    for number, chunk in enumerate(manifest["chunks"], 1):
        records = rows(smoke / chunk["file"])
        assert chunk["index"] == number
        assert len(records) == chunk["samples"]
        assert Counter(r["task"] for r in records) == chunk["tasks"]
        data = (smoke / chunk["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == chunk["sha256"]
        seen |= {r["id"] for r in records}
    for name, entry in manifest["tasks"].items():
        records = rows(smoke / entry["test"])
        assert len(records) == entry["samples"] == SIZES["smoke"].test
        assert {r["task"] for r in records} == {name}
        assert 0 <= entry["majority"] < 1
        seen |= {r["id"] for r in records}
    assert len(seen) == 3 * SIZES["smoke"].samples + 6 * SIZES["smoke"].test


def test_records_are_in_the_hosts_form(smoke, manifest):
    for chunk in manifest["chunks"]:
        for record in rows(smoke / chunk["file"]):
            user, assistant = record["messages"]
            assert (user["role"], assistant["role"]) == ("user", "assistant")
            assert user["content"].count("<image>") == len(record["images"]) == 1
            with Image.open(smoke / record["images"][0]) as image:
                assert image.size == (112, 112)
                assert image.format == "PNG"


def test_pixel_hash_is_of_the_decoded_images(smoke, manifest):
    entry = manifest["chunks"][0]
    digests = [
        hashlib.sha256(np.asarray(Image.open(smoke / row["images"][0])).tobytes()).digest()
        for row in rows(smoke / entry["file"])
    ]
    assert hashlib.sha256(b"".join(digests)).hexdigest() == entry["pixels_sha256"]


def test_chunks_are_shuffled(smoke, manifest):
    order = [row["task"] for row in rows(smoke / manifest["chunks"][0]["file"])]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_second_run_does_nothing_and_is_quick(smoke):
    before = tree(smoke)
    started = time.monotonic()
    assert write_stream(smoke, "smoke", seed=0) is False
    assert time.monotonic() - started < 1.0
    assert tree(smoke) == before


def test_interrupted_run_goes_on(smoke, tmp_path):
    def stop(done, total, file):
        if file == "chunks/002.jsonl":
            raise KeyboardInterrupt

    folder = tmp_path / "stream"
    with pytest.raises(KeyboardInterrupt):
        write_stream(folder, "smoke", workers=1, report=stop)
    assert (folder / PARTIAL).exists()
    assert not (folder / "stream.json").exists()
    written = []
    assert write_stream(folder, "smoke", workers=1, report=lambda d, t, file: written.append(file))
    assert "chunks/001.jsonl" not in written
    assert "chunks/003.jsonl" in written
    assert tree(folder) == tree(smoke)


def test_parallel_run_gives_the_same_bytes(smoke, tmp_path):
    assert write_stream(tmp_path / "two", "smoke", workers=2)
    assert tree(tmp_path / "two") == tree(smoke)


def test_other_seed_gives_other_samples(smoke, tmp_path):
    assert write_stream(tmp_path / "one", "smoke", seed=1, workers=1)
    first, other = (rows(f / "chunks/001.jsonl") for f in (smoke, tmp_path / "one"))
    assert first != other


def test_changed_chunk_is_refused(copy):
    path = copy / "chunks/002.jsonl"
    path.write_text(path.read_text().replace("yes", "no") + "{}\n")
    with pytest.raises(StreamError, match=r"002.jsonl: sha256 is .* the file was changed. Delete"):
        write_stream(copy, "smoke")


def test_missing_chunk_is_made_again(copy, smoke):
    (copy / "chunks/002.jsonl").unlink()
    assert write_stream(copy, "smoke", workers=1)
    assert tree(copy) == tree(smoke)


def test_missing_image_is_made_again(copy, smoke):
    next((copy / "images/test/Fin").iterdir()).unlink()
    assert write_stream(copy, "smoke", workers=1)
    assert tree(copy) == tree(smoke)


def test_other_stream_in_the_folder_is_refused(copy):
    with pytest.raises(StreamError, match=r"seed is 0, this run would make 5\. Choose"):
        write_stream(copy, "smoke", seed=5)
    with pytest.raises(StreamError, match="name is 'mini-strcvit-smoke'"):
        write_stream(copy, "tiny")


def test_unknown_size_is_named(tmp_path):
    with pytest.raises(KeyError, match="size 'huge' is unknown, expected one of smoke, tiny"):
        write_stream(tmp_path, "huge")


def test_command_line(copy, capsys):
    assert command.main(["--out", str(copy), "--size", "smoke"]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert command.main(["--out", str(copy), "--size", "smoke", "--seed", "9"]) == 1
    assert "error:" in capsys.readouterr().err


def test_tiny_mixture_recurs_vanishes_and_comes_late():
    table = SIZES["tiny"]
    counts = table.counts()
    assert [sum(chunk.values()) for chunk in counts] == [300] * 8
    assert all(2 <= len(chunk) <= 4 for chunk in counts)
    assert not any("Places365" in chunk for chunk in counts[3:])
    assert not any("Grounding" in chunk for chunk in counts[:3])
    assert len(table.tasks) == 6


@pytest.mark.parametrize(("total", "expected"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (1, [1, 0, 0])])
def test_apportion(total, expected):
    assert list(apportion({"a": 1, "b": 1, "c": 1}, total).values()) == expected


def test_majority_takes_the_best_train_constant():
    def made(*answers):
        return [{"messages": [{}, {"content": answer}]} for answer in answers]

    assert majority("exact", made("a", "a", "b"), made("b", "b", "a", "c")) == 0.25
    boxes = made("[0.00, 0.00, 0.50, 0.50]", "[0.00, 0.00, 0.50, 0.60]")
    assert majority("grounding", boxes, made("[0.00, 0.00, 0.50, 0.55]")) == 1.0
    assert not hit("grounding", "[0.00, 0.00, 0.50, 0.50]", "[0.50, 0.50, 1.00, 1.00]")
