"""data_prep.stream: what a manifest may say, and what must be true of the files that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import sha256_file, write_jsonl
from data_prep.stream import FORMAT, MANIFEST, StreamError, open_stream


def sample(name: str, image: str = "images/a.png") -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "yes"}]
    return {"messages": turns, "images": [image], "task": "t", "id": name}


def entry(root: Path, name: str, names: list[str]) -> dict[str, Any]:
    digest = write_jsonl(root / name, [sample(n) for n in names])
    return {"samples": len(names), "sha256": digest}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a stream of two chunks; task t has a test and a validation set, u only samples."""
    chunks = [
        {"index": n, "file": f"chunks/{n:03d}.jsonl", "tasks": tasks}
        | entry(tmp_path, f"chunks/{n:03d}.jsonl", ["a", "b"])
        for n, tasks in ((1, {"t": 2, "u": 0}), (2, {"t": 1, "u": 1}))
    ]
    task = {"scorer": "exact", "test": "test/t.jsonl", **entry(tmp_path, "test/t.jsonl", ["c"])}
    validation = {"file": "validation/t.jsonl", **entry(tmp_path, "validation/t.jsonl", ["d"])}
    tasks = {"t": {**task, "majority": 0.25, "validation": validation}}
    head = {"format": FORMAT, "name": "mine", "seed": 3, "links": {}}
    (tmp_path / MANIFEST).write_text(json.dumps({**head, "tasks": tasks, "chunks": chunks}))
    return tmp_path


def change(root: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((root / MANIFEST).read_text())
    how(content)
    (root / MANIFEST).write_text(json.dumps(content))


def test_a_stream_is_what_its_manifest_says(root):
    stream = open_stream(root)
    assert (stream.name, stream.tasks, stream.facts) == ("mine", ["t"], {"seed": 3, "links": {}})
    assert [chunk.index for chunk in stream.chunks] == [1, 2]
    assert stream.chunk_file(2) == root / "chunks/002.jsonl"
    assert stream.chunk(2).tasks == {"t": 1, "u": 1}
    assert stream.first_seen() == {"t": 1, "u": 2}
    assert stream.sha256 == sha256_file(root / MANIFEST)
    task = stream.task("t")
    assert (task.scorer, task.majority, task.test.samples) == ("exact", 0.25, 1)
    assert task.validation is not None
    assert task.validation.file == "validation/t.jsonl"
    assert [record["id"] for record in stream.test_records("t")] == ["c"]
    assert stream.test_records("t", limit=0) == []
    stream.verify_chunk(1)
    stream.verify_tests(["t"])


def test_an_unknown_task_is_named(root):
    with pytest.raises(StreamError, match=r"stream\.json: no task 'x'; it has: t"):
        open_stream(root).test_file("x")


def test_no_stream_says_how_to_make_one(tmp_path):
    with pytest.raises(StreamError, match=r"no such stream; make one, .* data_prep\.mini --out"):
        open_stream(tmp_path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda m: m.update(format="strlora-stream/2"), "format is 'strlora-stream/2', expected"),
        (lambda m: m.pop("chunks"), r"is not a stream manifest \(KeyError\('chunks'\)\)"),
        (lambda m: m["chunks"][0].pop("sha256"), "is not a stream manifest"),
        (lambda m: m["chunks"][0].update(index="one"), "is not a stream manifest"),
        (lambda m: m["chunks"][0].update(file="../x.jsonl"), "names '../x.jsonl', which lies outs"),
        (lambda m: m["chunks"][0].update(file="/x.jsonl"), "names '/x.jsonl', which lies outside"),
        (lambda m: m["tasks"]["t"].update(test="a/../../x"), "lies outside the stream"),
        (lambda m: m["tasks"].update({"../t": m["tasks"]["t"]}), r"'\.\./t' is no name of a task"),
        (lambda m: m["tasks"].update({"a b": m["tasks"]["t"]}), "'a b' is no name of a task"),
    ],
)
def test_a_wrong_manifest_is_refused(root, how, message):
    change(root, how)
    with pytest.raises(StreamError, match=message):
        open_stream(root)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, ""])
def test_a_manifest_that_is_no_json_object_is_refused(root, text):
    (root / MANIFEST).write_text(text)
    with pytest.raises(StreamError, match=r"stream\.json"):
        open_stream(root)


def test_a_changed_or_missing_file_is_told(root):
    stream = open_stream(root)
    write_jsonl(root / "chunks/001.jsonl", [sample("z")])
    with pytest.raises(StreamError, match=r"001\.jsonl was changed after the stream was made"):
        stream.verify_chunk(1)
    stream.verify_chunk(2)
    (root / "test/t.jsonl").unlink()
    with pytest.raises(StreamError, match=r"t\.jsonl is missing"):
        stream.verify_tests(["t"])


@pytest.mark.parametrize("image", ["/etc/a.png", "../a.png", "http://x/a.png", "a\0.png", "~/a"])
def test_an_image_outside_the_stream_is_told_with_its_line(root, image):
    path = root / "chunks/001.jsonl"
    digest = write_jsonl(path, [sample("a"), sample("b", image)])
    change(root, lambda m: m["chunks"][0].update(sha256=digest))
    with pytest.raises(StreamError, match=r"001\.jsonl:2: image"):
        open_stream(root).verify_chunk(1)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "empty test set"),
        ([{"messages": sample("a")["messages"]}], "sample 1: expected 'id' and 'messages'"),
        ([{"id": "a", "messages": []}], "sample 1: expected 'id' and 'messages'"),
        ([sample("a"), sample("a")], "sample 2: id 'a' occurs twice"),
    ],
)
def test_test_samples_must_be_told_apart(root, records, message):
    write_jsonl(root / "test/t.jsonl", records)
    with pytest.raises(ValueError, match=message):
        open_stream(root).test_records("t")
