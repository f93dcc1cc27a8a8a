"""--append: what is known of the stream's sources and pictures, and what that is taken for."""

from __future__ import annotations

import json

import pytest

from data_prep.chunk.__main__ import append_source
from data_prep.chunk.__main__ import main as chunk
from data_prep.compose.__main__ import main as compose
from data_prep.files import sha256_file
from data_prep.stream import open_stream
from data_prep.stream_writer import BadSamples
from tests.data_prep.chunk.test_append import append, content, made, month


def test_one_file_of_several_is_known_again(tmp_path, capsys):
    first, second, third = (month(tmp_path, number) for number in (1, 2, 3))
    out = tmp_path / "shop"
    options = ["--images", str(tmp_path / "photos"), "--workers", "1"]
    assert chunk(["--source", str(first), str(second), "--out", str(out), *options]) == 0
    was = sha256_file(out / "stream.json")
    assert append(out, second) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    words = ["--append", str(out), "--source", str(third), str(first), str(second)]
    assert chunk([*words, "--workers", "1"]) == 2
    told = capsys.readouterr().err
    assert "month1.csv, month2.csv: in the stream already, with the same pictures; 2 of 3" in told
    assert sha256_file(out / "stream.json") == was
    assert append(out, third) == 0
    assert chunk([*words, "--workers", "1"]) == 0
    assert "complete, nothing to do" in capsys.readouterr().out


def test_a_trained_picture_that_is_gone_is_missing_for_a_new_sample(tmp_path):
    stream = made(tmp_path)
    assert append(stream, month(tmp_path, 2)) == 0  # notes the pictures of both months
    good = month(tmp_path, 3)
    bad = tmp_path / "bad.csv"
    bad.write_text(f"{good.read_text()}m1-0.png,Again?,red,2026-03-20\n")
    (tmp_path / "photos/m1-0.png").unlink()  # trained, so it may go
    before = content(stream)
    with pytest.raises(BadSamples) as refused:
        append_source(stream, bad, None, {}, lambda: None, workers=1)
    assert [str(problem) for problem in refused.value.problems] == [
        "sample b3-bad-0000014: image 'images/m1-0.png' does not exist; put the file there or "
        "leave the sample out [image-missing]"
    ]
    assert content(stream) == before
    append_source(stream, good, None, {}, lambda: None, workers=1)
    assert before.items() < content(stream).items()
    notes = (stream / "pictures.jsonl").read_text()
    assert '"images/m1-0.png"' in notes  # what was known of it stays


def test_another_cut_does_not_take_over_what_belongs_to_the_first(tmp_path, capsys):
    stream = made(tmp_path)  # --by time --column day --every 1mo --holdout 0.3
    options = ["--by", "count", "--size", "5", "--holdout", "0"]
    assert append(stream, month(tmp_path, 2), *options) == 0
    assert [chunk.samples for chunk in open_stream(stream).chunks[1:]] == [5, 5, 2]
    assert append(stream, month(tmp_path, 3), "--by", "column") == 2
    assert "--by column needs --column NAME" in capsys.readouterr().err
    assert append(stream, month(tmp_path, 3), "--by", "time") == 0  # as the first
    assert open_stream(stream).chunk_name(5) == "2026-03"


def test_a_stated_mixture_is_not_mixed_with_the_drawn_one_of_the_first(tmp_path):
    for number in (1, 2):
        rows = [{"question": f"{number}-{n}?", "answer": "yes"} for n in range(6)]
        (tmp_path / f"a{number}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "stated.json").write_text('[{"a": 4}, {"a": 1}]')
    out = tmp_path / "s"
    words = ["--task", f"a={tmp_path}/a1.jsonl", "--dirichlet", "1", "--chunks", "2"]
    assert compose([*words, "--out", str(out), "--workers", "1"]) == 0
    words = ["--task", f"a={tmp_path}/a2.jsonl", "--mixture", str(tmp_path / "stated.json")]
    assert compose([*words, "--append", str(out), "--workers", "1"]) == 0
    assert [chunk.samples for chunk in open_stream(out).chunks] == [3, 3, 4, 1]


def test_a_batch_that_is_all_held_out_is_refused_with_the_way_out(tmp_path, capsys):
    stream = made(tmp_path)  # --holdout 0.3
    held = open_stream(stream).test_records("shop.2026-01")[0]["images"][0]
    one = tmp_path / "one.csv"
    one.write_text(f"file,question,answer,day\n{held.removeprefix('images/')},Why?,so,2026-04-01\n")
    was = sha256_file(stream / "stream.json")
    assert append(stream, one) == 2
    assert capsys.readouterr().err.endswith(
        "error: one.csv: no samples to train on; the hold-out (--holdout 0.3) takes all that there "
        "are, 1; give more of them at once, or --holdout 0\n"
    )
    assert sha256_file(stream / "stream.json") == was
    assert append(stream, one, "--holdout", "0") == 0


def test_a_batch_that_is_all_bad_names_its_first_sample(tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text("question,answer\nWhy?,\n")
    assert chunk(["--source", str(bad), "--out", str(tmp_path / "s"), "--skip-bad"]) == 2
    told = capsys.readouterr().err
    assert "no samples to train on; --skip-bad left all of them out, the first: " in told
    assert "bad.csv:2: " in told
