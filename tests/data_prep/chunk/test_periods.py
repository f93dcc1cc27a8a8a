"""Chunks by the calendar, test sets by period, and their names."""

# ruff: noqa: E501 - a row of a table stands on one line

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk
from data_prep.chunk.periods import Period
from data_prep.stream import StreamError, open_stream


def stamps(*days: str) -> np.ndarray:
    return np.array([np.datetime64(day, "us").astype(np.int64) for day in days])


@pytest.mark.parametrize(
    ("every", "days", "names"),
    [
        ("1mo", ["2026-01-31T23:59:59", "2026-02-01", "2026-02-28"], ["2026-01", *["2026-02"] * 2]),
        ("2mo", ["2026-01-31", "2026-02-28", "2026-03-01"], [*["2026-01"] * 2, "2026-03"]),
        ("1q", ["2025-12-31", "2026-01-01", "2026-03-31", "2026-04-01"], ["2025-Q4", *["2026-Q1"] * 2, "2026-Q2"]),
        ("1y", ["1969-12-31", "1970-01-01", "2026-06-01"], ["1969", "1970", "2026"]),
        ("7d", ["2026-01-05", "2026-01-11", "2026-01-12"], [*["2026-01-05"] * 2, "2026-01-12"]),
        ("90m", ["2026-01-05T10:00", "2026-01-05T11:29", "2026-01-05T11:30"], [*["2026-01-05T10-00-00"] * 2, "2026-01-05T11-30-00"]),
    ],
)  # fmt: skip
def test_periods_by_hand(every, days, names):
    period, times = Period.read(every), stamps(*days)
    first = int(times[0])
    assert [period.name(period.start(int(t), first)) for t in times] == names
    numbers = period.numbers(times, first).tolist()
    same = [a == b for a, b in pairwise(numbers)]
    assert same == [a == b for a, b in pairwise(names)]


@pytest.mark.parametrize("text", ["", "mo", "0mo", "1month", "1M", "-1q", "1.5y", "1 y"])
def test_other_lengths_are_refused(text):
    with pytest.raises(StreamError, match=r"expected a number and s, m \(minutes\)"):
        Period.read(text)


def test_months_have_chunks_and_test_sets_of_their_own(table, tmp_path, capsys):
    out = tmp_path / "shop"
    options = ["--by", "time", "--column", "day", "--every", "1mo", "--holdout", "0.6"]
    source = table("file,question,answer,day")
    arguments = ["--source", str(source), "--images", str(tmp_path / "photos"), "--out", str(out)]
    assert chunk([*arguments, *options, "--workers", "1"]) == 0
    stream = open_stream(out)
    assert [stream.chunk_name(n) for n in (1, 2, 3)] == ["2026-01", "2026-02", "2026-03"]
    assert stream.first_seen() == {"shop": 1} | {f"shop.2026-0{n}": n for n in (1, 2, 3)}
    days = Counter()
    for task in stream.tasks:
        for record in stream.test_records(task):
            assert record["task"] == "shop"
            assert f"shop.{record['day'][:7]}" == task
            days[task] += 1
    for number in (1, 2, 3):
        lines = [json.loads(line) for line in stream.chunk_file(number).read_text().splitlines()]
        assert {datetime.fromisoformat(line["day"]).month for line in lines} == {number}
        days["trained"] += len(lines)
    assert days.total() == 18
    assert check([str(out), "--no-decode"]) == 0
    assert check([str(out), "--fix"]) == 0
    clean = open_stream(tmp_path / "shop.clean")
    assert (clean.first_seen(), clean.chunk_name(2)) == (stream.first_seen(), "2026-02")


def test_several_chunks_of_a_month_share_its_test_set(table, tmp_path):
    out = tmp_path / "shop"
    options = ["--by", "time", "--column", "day", "--every", "1mo", "--size", "2"]
    source = table("file,question,answer,day")
    arguments = ["--source", str(source), "--images", str(tmp_path / "photos"), "--out", str(out)]
    assert chunk([*arguments, *options, "--holdout", "0.3", "--workers", "1"]) == 0
    stream = open_stream(out)
    names = [stream.chunk_name(n + 1) for n in range(len(stream.chunks))]
    months = [name[:7] for name in names]
    assert names[:2] == ["2026-01 (1)", "2026-01 (2)"]
    for task, test in stream.tests.items():
        assert test.chunk == months.index(task.removeprefix("shop.")) + 1
