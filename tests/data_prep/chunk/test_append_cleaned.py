"""--append to a copy that `check --fix` made, and names that are taken: nothing is written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data_prep.append import append_stream, parsed
from data_prep.check.__main__ import main as check
from data_prep.chunk import GENERATOR
from data_prep.chunk.__main__ import _TAKEN_OVER, _plan, parser
from data_prep.chunk.__main__ import main as chunk
from data_prep.stream import StreamError, open_stream
from tests.data_prep.check.test_check import sample
from tests.data_prep.check.test_check import stream as stream_of
from tests.data_prep.chunk.test_append import append, content, made, month

COLOURS = {"base": (0, 255, 0), "A": (255, 0, 0), "B": (0, 0, 255)}


def folder_of(tmp_path: Path, name: str, count: int = 8) -> Path:
    """A folder of pictures of one colour, the same file names in each, and their table."""
    (tmp_path / name).mkdir()
    rows = []
    for n in range(count):
        Image.new("RGB", (16 + n, 16), COLOURS[name]).save(tmp_path / name / f"{n:03d}.png")
        rows.append({"image": f"{n:03d}.png", "question": f"Colour {n}?", "answer": name})
    table = tmp_path / name / "data.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def append_folder(stream: Path, table: Path) -> int:
    return append(stream, table, "--images", str(table.parent))


def grown_and_cleaned(tmp_path: Path, *options: str) -> Path:
    """The cleaned copy of a stream that grew once, from a second folder of pictures."""
    out = tmp_path / "shop"
    source = ["--source", str(folder_of(tmp_path, "base")), "--out", str(out), "--workers", "1"]
    assert chunk([*source, "--holdout", "0.4", *options]) == 0
    assert append_folder(out, folder_of(tmp_path, "A")) == 0
    assert check([str(out), "--fix", "--workers", "1"]) == 0
    return tmp_path / "shop.clean"


def of_an_earlier_version(copy: Path) -> None:
    """Take the batches out of its manifest, as earlier versions left them out."""
    manifest = json.loads((copy / "stream.json").read_text())
    manifest.pop("batches", None)
    (copy / "stream.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("earlier", [False, True])
def test_a_cleaned_copy_that_had_grown_keeps_its_links_and_its_test_sets(tmp_path, earlier):
    copy = grown_and_cleaned(tmp_path)
    if earlier:
        of_an_earlier_version(copy)
    before = content(copy)
    assert append_folder(copy, folder_of(tmp_path, "B")) == 0
    assert before.items() < content(copy).items()
    stream = open_stream(copy)
    assert stream.tasks == ["shop", "shop.batch2", "shop.batch3"]
    assert [stream.tests[name].chunk for name in stream.tasks] == [None, 2, 3]
    folders = {"images": "base", "images2": "A", "images3": "B"}
    assert stream.facts["links"] == {k: str(tmp_path / name) for k, name in folders.items()}
    files = [(stream.chunk_file(n), name) for n, name in enumerate(COLOURS, start=1)]
    for file, name in [*files, (stream.test_file("shop.batch3"), "B")]:
        for record in map(json.loads, file.read_text().splitlines()):
            assert record["messages"][1]["content"] == name
            assert Image.open(copy / record["images"][0]).getpixel((0, 0)) == COLOURS[name]
            prefix = {"base": "", "A": "b2-", "B": "b2-" if earlier else "b3-"}[name]
            assert record["id"].startswith(f"{prefix}data-")


def test_a_cleaned_copy_knows_what_was_added_before(tmp_path, capsys):
    copy = grown_and_cleaned(tmp_path)
    (batch,) = open_stream(copy).facts["batches"]
    files = content(copy)
    assert batch["files"] == {f: files[f] for f in ("chunks/002.jsonl", "test/shop.batch2.jsonl")}
    assert batch["before"] is None
    (of_source,) = open_stream(tmp_path / "shop").facts["batches"]
    assert batch["generator"] == of_source["generator"]  # `watch` finds its deliveries there
    was = (copy / "stream.json").read_bytes()
    for name in ("A", "base"):
        assert append_folder(copy, tmp_path / name / "data.jsonl") == 0
    assert capsys.readouterr().out.count("complete, nothing to do") == 2
    assert (copy / "stream.json").read_bytes() == was


def test_chunks_of_a_copy_are_numbered_so_that_the_next_one_is_free(tmp_path):
    source, out = month(tmp_path, 1), tmp_path / "shop"
    options = ["--images", str(tmp_path / "photos"), "--size", "4", "--workers", "1"]
    assert chunk(["--source", str(source), "--out", str(out), *options]) == 0
    assert append(out, month(tmp_path, 2)) == 0
    for n in range(4, 8):  # all of chunk 2, of three; chunk 5 is the second of the batch
        (tmp_path / f"photos/m1-{n}.png").unlink()
    of_source = [json.loads(line)["id"] for line in (out / "chunks/005.jsonl").open()]
    assert check([str(out), "--fix", "--workers", "1"]) == 0
    copy = tmp_path / "shop.clean"
    before, stream = content(copy), open_stream(copy)
    assert [entry.file for entry in stream.chunks] == [f"chunks/00{n}.jsonl" for n in range(1, 6)]
    assert [json.loads(line)["id"] for line in stream.chunk_file(4).open()] == of_source
    own = {f"chunks/00{n}.jsonl": before[f"chunks/00{n}.jsonl"] for n in (3, 4, 5)}
    assert stream.facts["batches"][0]["files"] == own
    assert append(copy, month(tmp_path, 3)) == 0
    assert before.items() < content(copy).items()
    assert check([str(copy), "--workers", "1"]) == 0


def test_files_that_are_taken_are_never_written_over(tmp_path):
    stream = made(tmp_path)
    words = ["--append", str(stream), "--source", str(month(tmp_path, 2)), "--workers", "1"]
    late = _plan(*parsed(parser(), words, GENERATOR, _TAKEN_OVER))
    assert append(stream, month(tmp_path, 3)) == 0  # between the other's reading and its writing
    before = {p: p.read_bytes() for p in stream.rglob("*") if p.is_file()}
    with pytest.raises(StreamError, match=r"names chunks/002\.jsonl already, so nothing was added"):
        append_stream(stream, late, 1)
    assert {p: p.read_bytes() for p in stream.rglob("*") if p.is_file()} == before
    assert append(stream, tmp_path / "month2.csv") == 0


def test_a_stream_s_own_folder_of_pictures_is_no_link(tmp_path):
    folder_of(tmp_path, "base", 1)
    own = stream_of(tmp_path / "own", [sample("1", "images/000.png")])
    shutil.copytree(tmp_path / "base", own / "images")
    assert append_folder(own, folder_of(tmp_path, "A")) == 0
    assert open_stream(own).facts["links"] == {"images2": str(tmp_path / "A")}
    assert check([str(own), "--workers", "1"]) == 0
