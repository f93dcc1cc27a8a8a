"""Test sets by period: is January forgotten? A row of its own in matrix, report and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.chunk.__main__ import main as chunk
from data_prep.files import read_jsonl, write_jsonl
from data_prep.stream import open_stream
from eval.compare import compare
from eval.compare.page import html
from eval.matrix import append_scores
from eval.predictions import chunk_scores, split_results
from eval.report import write_report
from eval.report.data import load_run
from eval.report.page import held
from eval.routing.router_accuracy import count_choices
from tests.eval.make_run import host_results
from tests.eval.report.page_reader import tables_of

MONTHS = ["shop.2026-01", "shop.2026-02"]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two months of a table, cut by the calendar."""
    folder = tmp_path_factory.mktemp("periods")
    rows = [f"What is {i}?,a{i % 3},2026-0{1 + i // 30}-{1 + i % 28:02d}" for i in range(60)]
    (folder / "shop.csv").write_text("question,answer,day\n" + "\n".join(rows), encoding="utf-8")
    where = ["--source", str(folder / "shop.csv"), "--out", str(folder / "shop"), "--workers", "1"]
    cut = ["--by", "time", "--column", "day", "--every", "1mo", "--holdout", "0.3"]
    assert chunk([*where, *cut]) == 0
    assert open_stream(folder / "shop").tasks == MONTHS
    return folder / "shop"


def make(run: Path, stream: Path, known: list[dict[str, float]]) -> Path:
    """Write a run: `known` holds by chunk what share of each month's answers is right."""
    for index, skill in enumerate(known):
        folder = run / "chunks" / f"{index:03d}"
        folder.mkdir(parents=True)
        results = folder / "answers.jsonl"
        lines = host_results(stream, list(skill), skill, seed=index)
        results.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        split_results(results, stream, folder / "predictions", list(skill))
        scores = chunk_scores(folder / "predictions", stream, index)
        (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
        append_scores(run / "matrix.csv", index, scores)
    data = {"stream": str(stream), "sha256": "1" * 64, "chunks": ["2" * 64] * 2}
    manifest = {"name": run.name, "recipe": {"method": run.name}, "data": data}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run


def test_the_report_says_of_choices_what_router_json_does(stream: Path, tmp_path: Path) -> None:
    """Both months' samples are named "shop" in the chunks, 24 in the first and 16 in the second."""
    known = [dict.fromkeys(MONTHS, 0.0), {MONTHS[0]: 1.0}, dict.fromkeys(MONTHS, 1.0)]
    run = make(tmp_path / "branchlora", stream, known)
    for path in sorted((run / "chunks" / "002" / "predictions").glob("*.jsonl")):
        lines = read_jsonl(path)
        write_jsonl(path, [line | {"expert": 1 + n % 2} for n, line in enumerate(lines)])
    counted = count_choices(run / "chunks" / "002" / "predictions", stream, 2)
    assert counted is not None
    assert (counted["dominant_chunk"], counted["any_chunk"]) == (0.5, 1.0)
    (run / "chunks" / "002" / "router.json").write_text(json.dumps(counted), encoding="utf-8")
    page = write_report(run).read_text("utf-8")
    assert "After chunk 2, 50.0 % of the questions went to the dominant chunk" in page
    assert "(by chance 50.0 %) and 100.0 % to a chunk that held it" in page
    framed = [(row, c) for row in (0, 1) for c in range(4) if held(load_run(run), row, c)]
    assert framed == [(0, 1), (1, 2)], "each month in the chunk of that month"
    assert tables_of(page)["training samples by task"][0] == ["chunk", "shop"]


def test_every_month_is_a_row_and_what_it_lost_is_told(stream: Path, tmp_path: Path) -> None:
    january, february = MONTHS
    nothing = dict.fromkeys(MONTHS, 0.0)
    # February's test set came with February: no model answered it after January.
    forgets = make(tmp_path / "lora", stream, [nothing, {january: 1.0}, {january: 0, february: 1}])
    keeps = make(tmp_path / "er", stream, [nothing, {january: 1.0}, dict.fromkeys(MONTHS, 1.0)])
    page = write_report(forgets).read_text("utf-8")
    for name in (*MONTHS, "chunk 1 (2026-01)", "chunk 2 (2026-02)"):
        assert name in page, name
    assert "by shop.2026-01 100.0 (since chunk 1)" in page
    assert "shop.2026-01" in (forgets / "answers.html").read_text("utf-8")

    compared = compare([forgets, keeps])
    assert compared.tasks == MONTHS
    lasts = {name: compared.cells[name, f"last/{january}"].value for name in ("lora", "er")}
    assert lasts == {"lora": 0.0, "er": 1.0}
    assert all(month in html(compared) for month in MONTHS)
