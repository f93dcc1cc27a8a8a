"""Any table or folder: columns by name, other separators, folders of classes, missing pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk
from data_prep.chunk.columns import ColumnNames
from data_prep.errors import DataError
from data_prep.stream import open_stream

NAMES = ["file", "filename", "image_file", "img", "photo", "picture", "path", "Photo"]
MONTHS = ["--by", "time", "--column", "day", "--every", "1mo"]


def cut(source: Path, *more: str) -> int:
    out = source.parent / "out"
    options = ["--images", str(source.parent / "photos"), *more]
    return chunk(["--source", str(source), "--out", str(out), "--workers", "1", *options])


def samples(source: Path) -> list[dict]:
    text = (source.parent / "out/chunks/001.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_usual_names_of_the_picture_column_are_found_and_told_once(table, capsys, name):
    source = table(f"{name},question,answer,day")
    assert cut(source) == 0
    assert all(len(sample["images"]) == 1 for sample in samples(source))
    told = f"read: picture from {name}, question from question, answer from answer; 18 of 18"
    assert capsys.readouterr().out.count(told) == 1


def test_named_columns_are_taken_and_the_others_kept(table, capsys):
    source = table("shot,ask,question,stock", "p{n}.png,What colour?,{colour},s{n}")
    options = ["--image-column", "shot", "--question-column", "ask", "--answer-column", "question"]
    assert cut(source, *options, "--task-column", "question") == 0
    first = next(s for s in samples(source) if s["images"] == ["images/p0.png"])
    assert [turn["content"] for turn in first["messages"]] == ["<image>What colour?", "red"]
    assert (first["task"], first["stock"]) == ("red", "s0")
    assert "picture from shot, question from ask, answer from question, task from question" in (
        capsys.readouterr().out
    )


def test_a_column_that_means_something_else_is_kept_under_another_name():
    raw = {"photo": "a.png", "image": "small.png", "ask": "Why?", "question": "q7", "answer": "so"}
    placed = ColumnNames(image="photo", question="ask").placed(raw)
    assert placed["images"], placed["question"] == ("a.png", "Why?")
    assert (placed["other_image"], placed["other_question"]) == ("small.png", "q7")
    assert sorted(map(str, placed.values())) == sorted(raw.values())  # nothing lost


@pytest.mark.parametrize("label", ["label", "class", "category", "answer"])
def test_one_question_for_all_pictures_takes_the_label_as_answer(table, label):
    source = table(f"file,{label}", "p{n}.png,{colour}")
    assert cut(source, "--question", "Which colour?") == 0
    first = next(s for s in samples(source) if s["images"] == ["images/p1.png"])
    assert [turn["content"] for turn in first["messages"]] == ["<image>Which colour?", "blue"]


@pytest.mark.parametrize(
    ("columns", "raw", "message"),
    [
        (ColumnNames(question="a"), {"b": 1}, "column 'a' is missing; every sample must have it"),
        (ColumnNames(answer="a.b"), {"a": {"c": 1}}, "column 'a.b' is missing"),
        (
            ColumnNames(asked="Why?"),
            {"question": "What?", "answer": "x"},
            "'question' asks 'What?'",
        ),
        (
            ColumnNames(asked="Why?", answer="a"),
            {"messages": [{"role": "user"}], "a": "x"},
            "the sample is written in turns ('messages')",
        ),
    ],
)
def test_columns_that_do_not_fit_the_sample_are_refused(columns, raw, message):
    with pytest.raises(DataError) as refused:
        columns.placed(raw)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--question-column", "ask"], "shop.csv:2: column 'ask' is missing; every sample must"),
        (["--answer-column", "x"], "shop.csv:2: column 'x' is missing; every sample must"),
        (["--task-column", "x"], "shop.csv:2: column 'x' is missing; every sample must"),
        (["--by", "column", "--column", "x"], "shop.csv:2: column 'x' is missing; every sample"),
    ],
)
def test_a_missing_column_is_told_once_with_the_columns_found(table, capsys, options, message):
    assert cut(table("file,question,answer,day"), *options) == 1
    error = capsys.readouterr().err
    assert error.count("is missing") == 1
    assert message in error
    assert "[column] (and 17 more)" in error
    assert "columns found: answer, day, file, question" in error


def test_an_empty_cell_is_not_called_a_missing_column(table, capsys):
    source = table("file,question,answer,day")
    lines = source.read_text("utf-8").splitlines()
    lines[4] = lines[4].replace(lines[4].split(",")[3], "")
    source.write_text("\n".join(lines), encoding="utf-8")
    assert cut(source, *MONTHS) == 1
    error = capsys.readouterr().err
    assert "shop.csv:5: column 'day' is empty here; every sample must have it [column]\n" in error
    assert "columns found" not in error


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,question,question,day", "shop.csv:1: the header names 'question' twice: rename or"),
        ("file,,question,answer", "column 'day' is missing"),
    ],
)
def test_a_header_with_one_name_twice_or_without_one(table, capsys, header, message):
    source = table("file,question,answer,day")
    text = source.read_text("utf-8")
    source.write_text(header + text[text.index("\n") :], encoding="utf-8")
    assert cut(source, *MONTHS) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "column_2" in error or "twice" in error  # a column without a name can be named


def test_many_mistakes_of_one_kind_are_a_few_lines(table, capsys):
    source = table("file,question,answer,day")
    text = source.read_text("utf-8").replace("2026-", "sometime-")
    source.write_text(text, encoding="utf-8")
    assert cut(source, *MONTHS) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum("[time]" in line for line in lines) == 5
    assert any(line.startswith("... and ") and "time x " in line for line in lines)


def test_a_picture_of_another_case_is_named(table, capsys):
    source = table("file,question,answer,day")
    source.write_text(source.read_text("utf-8").replace(".png", ".PNG"), encoding="utf-8")
    assert cut(source) == 0
    assert "p0.png is there: write its path below --images letter by letter" in (
        capsys.readouterr().err
    )


def test_no_answer_column_is_told_once_with_the_columns_found(table, capsys):
    assert cut(table("file,question,colour,day")) == 1
    error = capsys.readouterr().err
    assert error.count("shop.csv:") == 1
    assert "(and 17 more)" in error
    assert "columns found: colour, day, file, question" in error


def test_images_without_any_picture_is_refused(table, capsys):
    source = table("thing,question,answer,day", "item {n},What?,{colour},{day}")
    assert cut(source) == 2
    error = capsys.readouterr().err
    assert "none of the 18 samples has a picture: name the column of their paths with" in error
    assert "Columns found: answer, day, question, thing" in error
    assert not (source.parent / "out").exists()


def test_missing_pictures_are_counted_and_named(table, capsys):
    source = table("file,question,answer,day")
    for number in (2, 5):
        (source.parent / f"photos/p{number}.png").unlink()
    assert cut(source) == 0
    warning = "warning: 2 of 18 samples name a picture that is not in"
    error = capsys.readouterr().err
    assert warning in error
    assert ": p2.png, p5.png; bring the files there" in error


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_another_separator_is_detected(table, mark):
    row = mark.join(("p{n}.png", "What colour, then?", "{colour}", "1,5"))
    source = table(mark.join(("file", "question", "answer", "price")), row)
    assert cut(source) == 0
    assert len(samples(source)) == 18
    assert {s["price"] for s in samples(source)} == {"1,5"}


def test_commas_stay_the_separator_beside_other_marks_and_a_bad_row(table, capsys):
    source = table("file,question,answer,day", "p{n}.png,a;b|c?,{colour},{day}")
    with source.open("a") as file:
        file.write("p1.png,too,few\n")
    assert cut(source, "--skip-bad") == 0
    assert len(samples(source)) == 18
    assert {s["messages"][0]["content"] for s in samples(source)} == {"<image>a;b|c?"}


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_row_with_a_cell_too_many_does_not_hide_the_separator(table, capsys, mark):
    row = mark.join(("p{n}.png", "What colour, then?", "{colour}", "1,5"))
    source = table(mark.join(("file", "question", "answer", "price")), row)
    lines = source.read_text().splitlines()
    lines[2] += f"{mark}checked"
    source.write_text("\n".join([*lines, mark * 3, mark * 3, ""]))
    assert cut(source) == 1
    error = capsys.readouterr().err
    assert f"shop.csv:3: found 5 cells, the header names 4: quote cells that hold {mark!r}" in error
    assert "error: 1 bad sample," in error  # rows of empty cells are none
    assert cut(source, "--skip-bad") == 0
    assert len(samples(source)) == 17
    assert {s["price"] for s in samples(source)} == {"1,5"}


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name, colour in (("cat", "red"), ("dog", "blue"), ("Golden Retriever", "gold")):
        for number in range(4):
            path = tmp_path / f"pets/{name}/{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), colour).save(path)
        (path.parent / "notes.txt").write_text("no picture")
    return tmp_path / "pets"


def test_folders_named_by_class_are_a_source(classes, capsys):
    out = classes.parent / "out"
    arguments = ["--source", str(classes), "--out", str(out), "--question", "Which animal?"]
    assert chunk([*arguments, "--test", f"pets={classes}"]) == 0
    stream = open_stream(out)
    read = [json.loads(line) for line in stream.chunk_file(1).read_text().splitlines()]
    answers = {s["images"][0]: s["messages"][1]["content"] for s in read}
    assert len(answers) == 12
    assert answers["images/Golden Retriever/3.jpg"] == "Golden Retriever"
    assert all((out / image).is_file() for image in answers)
    assert {r["messages"][0]["content"] for r in stream.test_records("pets")} == {
        "<image>Which animal?"
    }
    assert chunk([*arguments, "--test", f"pets={classes}"]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out


def test_pictures_of_a_class_that_no_host_reads_are_named_by_the_check(classes, capsys):
    """A class whose pictures all come from a phone was not there, without a word."""
    out = classes.parent / "out"
    (classes / "bird").mkdir()
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    for path in (classes / "bird/1.HEIC", classes / "Golden Retriever/9.heic"):
        path.write_bytes(heic)
    (classes / "bird/Thumbs.db").write_bytes(b"x")
    assert chunk(["--source", str(classes), "--out", str(out), "--question", "Which?"]) == 0
    read = [json.loads(line) for line in (out / "chunks/001.jsonl").read_text().splitlines()]
    assert len(read) == 14
    assert {"images/bird/1.HEIC"} == {
        s["images"][0] for s in read if s["messages"][1]["content"] == "bird"
    }
    capsys.readouterr()
    assert check([str(out)]) == 1
    said = capsys.readouterr().out
    assert said.count("is a HEIC picture or a video (heic): convert it to PNG") == 2


def test_folders_of_splits_are_no_classes(classes, capsys):
    root = classes.parent / "data"
    (root / "test").mkdir(parents=True)
    classes.rename(root / "train")
    out = str(classes.parent / "out")
    assert chunk(["--source", str(root), "--out", out, "--question", "Which?"]) == 2
    assert "holds splits (test, train), not classes: give the folder of one" in (
        capsys.readouterr().err
    )


def test_classes_without_a_question_are_refused_with_the_fix(classes, capsys):
    assert chunk(["--source", str(classes), "--out", str(classes.parent / "out")]) == 1
    error = capsys.readouterr().err
    assert "(and 11 more)" in error
    assert "columns found: image, label" in error
    assert '--question "..."' in error


def test_what_comes_next_can_be_pasted_and_a_batch_without_tests_is_no_stream_without(
    table, capsys
):
    source, again = (
        table("file,question,answer,day"),
        table("file,question,answer,day", name="again"),
    )
    again.write_text(again.read_text().replace("it?", "this?"))
    out, photos = source.parent / "my shop", source.parent / "photos"
    made = ["--out", str(out), "--images", str(photos), "--test", f"mugs={again}"]
    assert chunk(["--source", str(source), *made, "--task", "mugs", "--workers", "1"]) == 0
    assert f"next: python -m data_prep.check '{out}'" in capsys.readouterr().out
    again.write_text(again.read_text().replace("this?", "that?"))
    assert chunk(["--append", str(out), "--source", str(again), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "0 test sets" in said
    assert "no test set" not in said
