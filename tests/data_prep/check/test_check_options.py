"""data_prep.check: options that would do nothing are refused; what cannot be written is told."""

from __future__ import annotations

import json

import pytest

from data_prep.check.__main__ import main
from data_prep.stream import open_stream
from tests.data_prep.check.test_check import run, sample, stream
from tests.data_prep.trees import picture


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-length", "1"], "--max-length: counts no tokens without --recipe or --model"),
        (["--tokens", "all"], "--tokens: counts no tokens without --recipe or --model"),
        (["--near", "--no-decode"], "--near compares what --no-decode does not read: give one"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, capsys, options, words):
    folder = stream(tmp_path / "s", [sample("a")])
    assert main([str(folder), *options]) == 2
    assert capsys.readouterr().err == f"error: {words}\n"


@pytest.mark.parametrize("option", ["--max-length", "--tokens"])
def test_a_count_of_nothing_is_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        main([str(tmp_path), option, "0"])
    assert f"argument {option}: found 0, expected at least 1" in capsys.readouterr().err


def test_a_code_that_allows_nothing_is_named(tmp_path, capsys):
    folder = stream(tmp_path / "s", [sample("a", "images/none.png")])
    assert run(folder, "--allow", "nonsense", "--allow", "image-missing")[0] == 0
    told = capsys.readouterr().err
    assert told == "--allow nonsense: nothing of that code; found: image-missing\n"


def test_a_report_that_cannot_be_written_is_told(tmp_path, capsys):
    folder = stream(tmp_path / "s", [sample("a")])
    assert main([str(folder), "--report", str(tmp_path)]) == 2
    expected = f"error: --report {tmp_path}: a folder; expected the name of a file\n"
    assert capsys.readouterr().err == expected
    assert main([str(folder), "--report", str(folder / "stream.json/report.json")]) == 2
    out = capsys.readouterr()
    assert "1 samples, 0 images, 0 errors" in out.out  # what was found is not lost
    assert out.err.startswith("error: ")


def test_a_file_alone_is_fixed_beside_itself(tmp_path):
    picture(tmp_path / "data/images/a.png")
    rows = [sample("1", "images/a.png"), sample("2", "images/none.png")]
    file = tmp_path / "data/a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(file), "--fix", "--workers", "1"]) == 0
    copy = open_stream(tmp_path / "data/a.jsonl.clean")
    (kept,) = copy.chunk_file(1).read_text().splitlines()
    assert json.loads(kept)["id"] == "1"
    assert (copy.root / "images/a.png").read_bytes() == (
        tmp_path / "data/images/a.png"
    ).read_bytes()
    assert len(file.read_text().splitlines()) == 2
    assert main([str(file), "--fix", str(tmp_path)]) == 2  # around it
