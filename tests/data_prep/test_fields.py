"""Fields of every shape are read by `datasets` and by the host, in files of any size.

After huggingface/datasets#2799, #3965, #5596, #7159 and #7222, huggingface/course#692,
modelscope/ms-swift#8326.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk
from data_prep.compose.__main__ import main as compose
from data_prep.sources.fields import Columns
from data_prep.sources.raw_forms import to_host

COUNT = 14_000  # samples of 1.5 kB
FIELDS: dict[str, Callable[[bool], object]] = {
    "key": lambda late: {"a": 1, **({"late": "x"} if late else {})},
    "deep": lambda late: [{"a": [{"b": 1, "c": 2} if late else {"b": 1}]}],
    "time": lambda late: "soon" if late else "2024-01-05T10:00:00",
    "times": lambda late: {"seen": ["soon" if late else "2024-01-05"]},
    "type": lambda late: {"a": "x" if late else 1},
    "items": lambda late: ["a"] if late else [1],
    "large": lambda late: 2**64 if late else 1,
    "empty": lambda late: ["x"] if late else [],
    "null": lambda late: {"a": 0.5 if late else None},
    "closed": lambda late: {"at": "2024-01-05T10:00:00Z" if late else None},
    "missing": lambda late: "2024-01-05" if late else None,
    "real": lambda late: {"a": 0.5 if late else 1},
    "rejected_response": lambda late: "no" if late else None,  # the host deletes what has none
    "dotted": lambda late: {"a.b": 1, **({"a.b.c": 2} if late else {})},
}


def _source(path: Path, count: int, late: int, **fixed: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for number in range(count):
            row = {"id": f"s{number}", "question": f"{number}? " + "x" * 1400, "answer": "yes"}
            extra = {key: make(number >= count - late) for key, make in FIELDS.items()}
            file.write(json.dumps({**row, **extra, **fixed}) + "\n")
    return path


def _cut(source: Path, out: Path, *more: str) -> int:
    return chunk(
        ["--source", str(source), "--out", str(out), "--workers", "1", "--size", "20000", *more]
    )


@pytest.mark.parametrize("count", [40, pytest.param(COUNT, marks=pytest.mark.slow)])
def test_what_differs_late_is_read_by_datasets_and_by_the_host(tmp_path, monkeypatch, count):
    source = _source(tmp_path / "a.jsonl", count, 10)
    assert _cut(source, tmp_path / "s", "--no-shuffle") == 0
    assert check([str(tmp_path / "s"), "--workers", "1"]) == 0
    file = str(tmp_path / "s" / "chunks" / "001.jsonl")
    rows = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "hf"))
    assert len(rows) == count
    assert json.loads(rows[-1]["type"]) == {"a": "x"}
    assert json.loads(rows[-1]["large"]) == 2**64
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "swift"))
    from swift.dataset import load_dataset as host

    train, _ = host([file], split_dataset_ratio=0.0)
    assert len(train) == count


def test_chunks_are_read_together_by_datasets(tmp_path):
    source = _source(tmp_path / "a.jsonl", 40, 10)
    assert _cut(source, tmp_path / "s", "--no-shuffle", "--size", "15") == 0
    files = sorted(map(str, (tmp_path / "s" / "chunks").iterdir()))
    rows = load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert (len(files), len(rows)) == (3, 40)


def test_composed_chunks_are_read_together_by_datasets(tmp_path):
    for task, late in (("a", 0), ("b", 20)):
        _source(tmp_path / f"tasks/{task}.jsonl", 20, late)
    (tmp_path / "m.json").write_text(json.dumps([{"a": 20}, {"b": 20}]))
    args = ["--source", str(tmp_path / "tasks"), "--mixture", str(tmp_path / "m.json")]
    assert compose([*args, "--out", str(tmp_path / "s"), "--workers", "1"]) == 0
    files = sorted(map(str, (tmp_path / "s" / "chunks").iterdir()))
    rows = load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert (len(files), len(rows)) == (2, 40)


@pytest.mark.slow
def test_check_finds_what_the_host_stops_at(tmp_path, capsys):
    source = _source(tmp_path / "a.jsonl", COUNT, 10)
    assert _cut(source, tmp_path / "s", "--no-shuffle") == 0
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    with (tmp_path / "loose.jsonl").open("w") as file:
        for row in rows:
            turns = [
                {"role": "user", "content": row.pop("question")},
                {"role": "assistant", "content": row.pop("answer")},
            ]
            file.write(json.dumps({"messages": turns, **row}) + "\n")
    assert check([str(tmp_path / "loose.jsonl"), "--workers", "1"]) == 1
    found = capsys.readouterr().out
    assert "[fields-uneven]" in found
    assert all(f"'{name}'" in found for name in FIELDS)


def test_pictures_that_come_late_are_refused_with_the_fix(tmp_path, capsys):
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(COUNT):
            row = {"id": f"s{number}", "question": f"{number}? " + "x" * 1400, "answer": "yes"}
            image = {"image": "a.png"} if number >= COUNT - 5 else {}
            file.write(json.dumps({**row, **image}) + "\n")
    assert _cut(tmp_path / "a.jsonl", tmp_path / "s", "--no-shuffle") != 0
    said = capsys.readouterr().err
    assert "'images' of sample" in said
    assert "--size" in said


def test_a_loss_that_comes_late_is_written_for_all_answers(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(COUNT):
            turns: list[dict[str, object]] = [
                {"role": "user", "content": f"{number}? " + "x" * 1400},
                {"role": "assistant", "content": "yes"},
            ]
            if number >= COUNT - 5:
                turns[1]["loss"] = False
            file.write(json.dumps({"id": f"s{number}", "messages": turns}) + "\n")
    assert _cut(tmp_path / "a.jsonl", tmp_path / "s", "--no-shuffle") == 0
    file_name = str(tmp_path / "s" / "chunks" / "001.jsonl")
    rows = load_dataset("json", data_files=file_name, split="train", cache_dir=str(tmp_path / "h"))
    assert rows[0]["messages"][1]["loss"] is True
    assert rows[-1]["messages"][1]["loss"] is False
    assert check([str(tmp_path / "a.jsonl"), "--workers", "1"]) == 1


def test_a_field_with_names_as_keys_becomes_text():
    columns = Columns()
    for number in range(300):
        columns.add({"messages": [], "scores": {f"image {number}": 0.5}})
    assert columns.uneven(0) == {"scores": False}


@pytest.mark.parametrize("text", ["{[0, 1], [2, 3]}", "{{}: 1}", "[" * 10_000])
def test_text_that_only_looks_like_a_list_or_an_object_stays(text):
    sample = to_host({"question": "Which?", "answer": text, "note": text}, str)
    assert (sample["messages"][-1]["content"], sample["note"]) == (text, text)
