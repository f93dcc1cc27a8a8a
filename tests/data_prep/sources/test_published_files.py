"""Files as people publish them: saved datasets, Parquet, pictures that are none, odd names."""

from __future__ import annotations

import json

import pytest

from data_prep.chunk.__main__ import main as chunk
from tests.data_prep.test_forms import CASES, cut, texts


def test_a_folder_by_save_to_disk_is_read(tmp_path, capsys):  # axolotl#1430, datasets#7018
    saved = CASES / "05" / "saved"
    rows = cut(saved, tmp_path / "s")
    alone = cut(saved / "data-00000-of-00001.arrow", tmp_path / "t")
    assert [row["messages"] for row in rows] == [row["messages"] for row in alone]
    assert rows
    args = ["--source", str(saved / "state.json"), "--out", str(tmp_path / "u")]
    assert chunk(args) != 0
    said = capsys.readouterr().err
    assert "give its folder" in said
    assert said.count("[json]") == 0


def test_a_folder_of_splits_says_which_to_give(tmp_path, capsys):
    from datasets import Dataset, DatasetDict

    part = Dataset.from_list([{"question": "a?", "answer": "b"}])
    DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "d"))
    assert chunk(["--source", str(tmp_path / "d"), "--out", str(tmp_path / "s")]) != 0
    assert "test, train" in capsys.readouterr().err
    assert len(cut(tmp_path / "d" / "train", tmp_path / "t")) == 1


def test_one_object_over_many_lines_is_one_error(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"question": "a", "answer": "b"}] * 3}, indent=2))
    assert chunk(["--source", str(path), "--out", str(tmp_path / "s")]) != 0
    assert capsys.readouterr().err.count("a.json") == 1


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"Stop" stands on what?', '"Stop" stands on what?'),
        ('"Stop', '"Stop'),
        ('"a ""b"" c"', 'a "b" c'),
    ],
)
def test_a_tsv_cell_that_starts_with_a_quote(tmp_path, cell, text):
    path = tmp_path / "a.tsv"
    path.write_text(f"question\tanswer\n{cell}\tyes\nWhat?\tno\n")
    rows = cut(path, tmp_path / "s")
    assert [texts(row) for row in rows] == [[text, "yes"], ["What?", "no"]]


def test_parts_and_bytes_of_a_parquet_file(tmp_path):
    from datasets import Dataset

    turns = [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a van"}]},
    ]
    data = (CASES / "04" / "pics" / "a.png").read_bytes()
    row = {"messages": turns, "images": [{"bytes": data, "path": None}]}
    Dataset.from_list([row]).to_parquet(str(tmp_path / "a.parquet"))
    (read,) = cut(tmp_path / "a.parquet", tmp_path / "s")
    assert texts(read) == ["<image>What?", "a van"]
    assert read["images"][0].startswith("embedded/")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"<?xml version='1.0'?><error/>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"%PDF-1.4", "a PDF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 20, "HEIC"),
    ],
)
def test_files_that_are_no_pictures_are_named(tmp_path, data, words):
    from data_prep.images import inspect

    (tmp_path / "a.png").write_bytes(data)
    ((code, text, _),) = inspect(tmp_path / "a.png", "a.png").findings
    assert code == "image-unknown"
    assert words in text


def test_avif_and_wrapped_base64_inside_a_sample(tmp_path):
    import base64
    from io import BytesIO

    from PIL import Image

    store = BytesIO()
    Image.new("RGB", (64, 64), "red").save(store, "AVIF")
    row = {"question": "a?", "answer": "b", "image": base64.encodebytes(store.getvalue()).decode()}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = cut(tmp_path / "a.jsonl", tmp_path / "s")
    assert read["images"][0].endswith(".avif")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_unicode_form_and_file_addresses(tmp_path, form):
    import unicodedata

    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name = unicodedata.normalize(form, "café 1.png")
    (tmp_path / name).write_bytes((CASES / "04" / "pics" / "a.png").read_bytes())
    address = f"file://{tmp_path}/caf%C3%A9%201.png"
    written = [
        unicodedata.normalize(other, name),
        address,
        f".\\{name}",
    ]
    lines = [{"question": f"{n}?", "answer": "b", "image": w} for n, w in enumerate(written)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = cut(tmp_path / "a.jsonl", tmp_path / "s")
    assert {row["images"][0] for row in rows} == {f"images/{name}"}
