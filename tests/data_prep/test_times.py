"""Times as people write them: none is taken for another."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from data_prep.chunk.__main__ import main as chunk
from data_prep.chunk.times import microseconds
from data_prep.errors import DataError

CASES = Path(__file__).parents[1] / "fixtures" / "cases"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("20240105", "2024-01-05"),
        (20240105, "2024-01-05"),
        (20240105.0, "2024-01-05"),
        ("2024-01-05", "2024-01-05"),
        ("2024-01", "2024-01-01"),
        ("2024", "2024-01-01"),
        (1970, "1970-01-01"),
        ("2024-01-05T10:11:12Z", "2024-01-05T10:11:12"),
        ("20240105T101112", "2024-01-05T10:11:12"),
        ("20240105T101112Z", "2024-01-05T10:11:12"),
        ("20240105101112", "2024-01-05T10:11:12"),
        ("202401051011", "2024-01-05T10:11"),
        ("2024-01-05 12:11:12+02:00", "2024-01-05T10:11:12"),
        ("2024:01:05 10:11:12", "2024-01-05T10:11:12"),
        ("2024:01:05", "2024-01-05"),
        (1704449472, "2024-01-05T10:11:12"),
        ("1704449472", "2024-01-05T10:11:12"),
        (1704449472000, "2024-01-05T10:11:12"),
        (1704449472000000, "2024-01-05T10:11:12"),
        (1704449472000000000, "2024-01-05T10:11:12"),
        ("1.704449472e9", "2024-01-05T10:11:12"),
        ("2024-1-5", "2024-01-05"),
        ("2024/01/05 9:05 pm", "2024-01-05T21:05"),
        ("2024.01.05 12:00 AM", "2024-01-05"),
        ("2024_01_05", "2024-01-05"),
        ("2024-005", "2024-01-05"),
        ("2024005", "2024-01-05"),
        ("2024-W01-5", "2024-01-05"),
        ("2024W015T101112", "2024-01-05T10:11:12"),
        ("2024-01-05-10-11-12", "2024-01-05T10:11:12"),
        ("20240105_101112", "2024-01-05T10:11:12"),
        ("2024-01-05T10:11:12.123456789Z", "2024-01-05T10:11:12.123456"),
        ("2024-01-05T10:11:12,5", "2024-01-05T10:11:12.500000"),
        ("2024-01-05T10:11:12+0200", "2024-01-05T08:11:12"),
        ("2024-01-05T10:11:12\u221202:00", "2024-01-05T12:11:12"),
        ("2024-01-05 10:11:12 UTC", "2024-01-05T10:11:12"),
        ("2024-01-05T12:11:12+02:00[Europe/Berlin]", "2024-01-05T10:11:12"),
        ("2024-01-05T24:00:00", "2024-01-06"),
        ("2016-12-31T23:59:60Z", "2017-01-01"),
        ("2024:01:05 10:11:12.5+02:00", "2024-01-05T08:11:12.500000"),
        ("Jan 5, 2024", "2024-01-05"),
        ("5th January 2024 10:11", "2024-01-05T10:11"),
        ("05-Jan-2024", "2024-01-05"),
        ("Fri, 05 Jan 2024 10:11:12 GMT", "2024-01-05T10:11:12"),
        ("Fri, 05 Jan 2024 10:11:12 +0200", "2024-01-05T08:11:12"),
        ("Fri Jan  5 10:11:12 2024", "2024-01-05T10:11:12"),
        ("Fri Jan 05 10:11:12 +0200 2024", "2024-01-05T08:11:12"),
        ("05/Jan/2024:10:11:12 +0000", "2024-01-05T10:11:12"),
        ("2024\u5e741\u67085\u65e5", "2024-01-05"),
        ("\uff12\uff10\uff12\uff14-01-05", "2024-01-05"),
        (date(2024, 1, 5), "2024-01-05"),
        (datetime(2024, 1, 5, 10), "2024-01-05T10:00"),
    ],
)
def test_a_time_is_read_as_it_is_meant(value, expected):
    moment = datetime.fromisoformat(expected).replace(tzinfo=timezone.utc)
    assert microseconds(value, "taken")[0] == int(moment.timestamp() * 1e6)


@pytest.mark.parametrize(
    "value",
    [
        *("20241305", "240105", "202401", 86400, -5, 0, True, "05.01.2024", "1/5/2024", "nan"),
        *("01/05/2024", "13/05/2024", "24-01-05", "2024-13-05", "2024/13/05", "2024-02-30"),
        *("2023-366", "2023366", "2024-01-015", "2024-01-0510:11", "2024-01-05-08:00", "2024-Q1"),
        *("2024-01-05 10:11 PST", "2024-01-05T10:11[Europe/Berlin]", "2024-01-05 13:00 pm"),
        *("2024-01-05T25:00", "2024-01-05T10:61", "Jan 32, 2024", "5/Jan/24", "2024-01-05 x"),
        *("1e999", "soon", 2**70, [2024], float("inf"), "2024:13:05 10:11:12"),
    ],
)
def test_what_could_be_two_things_is_refused(value):
    with pytest.raises(DataError, match="--epoch"):
        microseconds(value, "taken")


def test_a_unit_that_is_asked_for_holds():
    assert microseconds(86400, "t", "s")[0] == 86_400_000_000
    assert microseconds("20240105", "t", "s")[0] == 20_240_105_000_000


def _write(path: Path, times: list[Any]) -> Path:
    rows = [{"question": f"{n}?", "answer": "yes", "taken": t} for n, t in enumerate(times)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _cut(source: Path, out: Path, *more: str) -> int:
    args = ["--source", str(source), "--out", str(out), "--workers", "1", "--by", "time"]
    return chunk([*args, "--column", "taken", "--every", "7d", *more])


def test_dates_without_dashes_are_no_seconds(tmp_path, capsys):
    assert _cut(CASES / "06" / "a.jsonl", tmp_path / "s") == 0
    cuts = json.loads((tmp_path / "s" / "stream.json").read_text())["cut"]
    assert len(cuts) == 5
    assert cuts[0]["from"].startswith("2024-01-05")
    assert cuts[-1]["to"].startswith("2024-06-01")
    assert "read as dates without dashes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "times", [["20240105", 1704449472], ["2024", "2024-02-01"], [1704449472, 1704449472000]]
)
def test_forms_that_are_mixed_are_refused(tmp_path, capsys, times):
    assert _cut(_write(tmp_path / "a.jsonl", times), tmp_path / "s") != 0
    said = capsys.readouterr().err
    assert "several forms" in said
    assert "a.jsonl:1" in said
    assert "a.jsonl:2" in said
