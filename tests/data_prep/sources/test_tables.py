"""Parquet, Arrow and the folders that `save_to_disk` writes, of every kind."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from data_prep.chunk.__main__ import main as chunk
from data_prep.errors import DataError
from data_prep.sources.readers import data_files, read_items

PNG = (Path(__file__).parents[2] / "fixtures/cases/04/pics/a.png").read_bytes()
ROWS = {"question": ["a?", "b?", "c?"], "answer": ["x", "y", "z"]}


def _arrow(path: Path, table: pa.Table, stream: bool = False, **options: Any) -> Path:
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return path


def _parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


WRITERS: dict[str, Callable[[Path, pa.Table], Path]] = {
    "Arrow file": lambda path, table: _arrow(path / "a.arrow", table),
    "Arrow stream": lambda path, table: _arrow(path / "a.arrow", table, stream=True),
    "Arrow stream without an ending": lambda path, table: _arrow(path / "a", table, stream=True),
    "Feather, packed": lambda path, table: _arrow(path / "a.feather", table, compression="lz4"),
    "Parquet": lambda path, table: _parquet(path / "a.parquet", table),
    "Parquet without an ending": lambda path, table: _parquet(path / "a", table),
}


def _cut(source: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    args = ["--source", str(source), "--out", str(out), "--workers", "1", "--no-shuffle", *more]
    assert chunk(args) == 0
    return [json.loads(line) for line in (out / "chunks/001.jsonl").open()]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "pictures",
    [
        pa.array([PNG] * 3),
        pa.array([PNG] * 3, pa.large_binary()),
        pa.array([PNG] * 3, pa.binary(len(PNG))),
        pa.array([{"bytes": PNG, "path": None}] * 3),
        pa.array([list(PNG)] * 3, pa.list_(pa.uint8())),
        pa.array([[PNG]] * 3),
        pa.array([[{"bytes": PNG, "path": "a.png"}]] * 3),
    ],
    ids=lambda array: str(array.type)[:20],
)
def test_pictures_of_every_type_of_column(tmp_path, kind, pictures):
    table = pa.table({**ROWS, "image": pictures})
    rows = _cut(WRITERS[kind](tmp_path, table), tmp_path / "s")
    assert [row["messages"][1]["content"] for row in rows] == ["x", "y", "z"]
    assert [(tmp_path / "s" / row["images"][0]).read_bytes() for row in rows] == [PNG] * 3


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_numbered_through_batches_and_nulls_are_left_out(tmp_path, kind):
    table = pa.table({"question": [f"{n}?" for n in range(300)], "answer": ["a", None, "b"] * 100})
    rows = list(read_items(WRITERS[kind](tmp_path, table)))
    assert [number for number, _ in rows] == list(range(1, 301))
    assert rows[1] == (2, {"question": "1?"})
    assert rows[299] == (300, {"question": "299?", "answer": "b"})


def test_classes_are_read_by_their_names(tmp_path):
    kinds = Features({"question": Value("string"), "answer": ClassLabel(names=["cat", "dog"])})
    saved = Dataset.from_dict({"question": ["a?", "b?"], "answer": [1, 0]}, features=kinds)
    saved.save_to_disk(str(tmp_path / "d"))
    saved.to_parquet(str(tmp_path / "a.parquet"))
    for at, source in enumerate((tmp_path / "d", tmp_path / "a.parquet")):
        rows = _cut(source, tmp_path / f"s{at}")
        assert [row["messages"][1]["content"] for row in rows] == ["dog", "cat"]


def test_turns_as_a_sequence_of_roles_and_one_of_contents(tmp_path):
    turns = {"role": ["user", "assistant"], "content": ["a?", "b"]}
    Dataset.from_dict({"messages": [turns]}).save_to_disk(str(tmp_path / "d"))
    (row,) = _cut(tmp_path / "d", tmp_path / "s")
    assert [turn["content"] for turn in row["messages"]] == ["a?", "b"]


def test_a_shard_that_is_missing_is_told(tmp_path):
    Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "d"), num_shards=2)
    assert len(data_files([tmp_path / "d"])) == 2
    (tmp_path / "d/data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"1 of 2 files that its state.json names are missing"):
        data_files([tmp_path / "d"])


def test_a_folder_of_splits_gives_training_and_test(tmp_path):
    for part in ("train", "test"):
        Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "d" / part))
    _cut(tmp_path / "d/train", tmp_path / "s", "--test", f"shop={tmp_path / 'd/test'}")
    assert len((tmp_path / "s/test/shop.jsonl").read_text().splitlines()) == 3


def test_a_folder_from_the_hub_says_where_its_data_are(tmp_path):
    (tmp_path / "hub/data").mkdir(parents=True)
    _parquet(tmp_path / "hub/data/train-00000-of-00001.parquet", pa.table(ROWS))
    with pytest.raises(DataError, match=r"give that folder, .*/hub/data"):
        data_files([tmp_path / "hub"])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_packed_or_a_cut_file_is_named(tmp_path, kind):
    path = WRITERS[kind](tmp_path, pa.table(ROWS))
    data = path.read_bytes()
    path.write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="Parquet or Arrow inside gzip; unpack it"):
        list(read_items(path))
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=r"damaged (Parquet|Arrow) file"):
        list(read_items(path))


def test_bytes_that_json_cannot_hold_are_told(tmp_path, capsys):
    path = _parquet(tmp_path / "a.parquet", pa.table({**ROWS, "key": pa.array([b"\1\2"] * 3)}))
    assert chunk(["--source", str(path), "--out", str(tmp_path / "s"), "--workers", "1"]) == 1
    assert "which JSON cannot express: leave its column out" in capsys.readouterr().err
