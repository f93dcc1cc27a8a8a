"""Runs of version 0.1 (tests/fixtures/old_run, two real `smoke` runs cut to four tasks).

Their predictions have no `score`. Reports and comparisons read them all the same.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from data_prep.files import read_json
from data_prep.stream import open_stream
from eval.compare import compare
from eval.predictions import chunk_scores
from eval.report import write_report
from eval.report.data import load_run
from tests.eval.report.page_reader import cards_of, mean, shown, tables_of

STORED = Path(__file__).resolve().parents[1] / "fixtures" / "old_run"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: the manifests name the stream beside the runs, from wherever they are read."""
    return Path(shutil.copytree(STORED, tmp_path_factory.mktemp("old") / "runs"))


def _matrix(run: Path) -> dict[tuple[int, str], float]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(r["chunk"]), r["task"]): float(r["score"]) for r in csv.DictReader(file)}


@pytest.mark.parametrize("method", ["strlora", "lora"])
def test_an_old_run_is_reported(old: Path, method: str) -> None:
    page = write_report(old / method).read_text("utf-8")
    assert load_run(old / method).gaps == [], "the scores made now are those of matrix.csv"
    a = _matrix(old / method)
    tasks = open_stream(old / "stream").tasks
    assert cards_of(page)["Last"][0] == shown(mean([a[3, task] for task in tasks]))
    for chunk, row in enumerate(tables_of(page)["score after each chunk, in percent"][1:]):
        assert row[1:-1] == [shown(a[chunk, task]) for task in tasks]


def test_old_runs_are_compared(old: Path) -> None:
    compared = compare([old / "strlora", old / "lora"])
    assert compared.gaps == []
    for method in ("strlora", "lora"):
        a = _matrix(old / method)
        for task in compared.tasks:
            cell = compared.cell(method, f"last/{task}")
            assert cell.value == a[3, task]
            assert cell.interval.low <= cell.value <= cell.interval.high
    assert all(test.p == test.p for test in compared.tests)


@pytest.mark.parametrize("method", ["strlora", "lora"])
def test_the_scores_of_an_old_run_are_those_it_stored(old: Path, method: str) -> None:
    for folder in sorted((old / method / "chunks").iterdir()):
        found = chunk_scores(folder / "predictions", old / "stream")
        assert found == read_json(folder / "scores.json")
