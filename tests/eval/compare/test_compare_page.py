"""compare.html: its numbers are those of the tables, and it stands alone."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from eval.compare.__main__ import main
from eval.report import write_report
from tests.eval.make_run import make_run, second_run
from tests.eval.report.page_reader import Rows, mean, shown, tables_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    run, _ = make_run(tmp_path_factory.mktemp("compare"), chunks=3, done=3, tests=12)
    return [run, second_run(run)]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out")
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return (out / "compare.html").read_text("utf-8")


def _matrix(run: Path) -> dict[tuple[int, str], float]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(r["chunk"]), r["task"]): float(r["score"]) for r in csv.DictReader(file)}


def _visible(page: str) -> list[Rows]:
    parts = re.findall(r'<table class="compare">(.*?)</table>', page, re.S)
    rows = [re.findall(r"<tr>(.*?)</tr>", part, re.S) for part in parts]
    return [[[re.sub(r"<.*?>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", row)]
             for row in part] for part in rows]  # fmt: skip


def test_numbers_from_the_matrices(page: str, runs: list[Path]) -> None:
    stream, costs, tasks = _visible(page)
    matrices = {name: _matrix(run) for name, run in zip(("strlora", "lora"), runs, strict=True)}
    head = stream[0]
    manifest = json.loads((runs[0] / "manifest.json").read_text("utf-8"))
    chunks = json.loads((Path(manifest["data"]["stream"]) / "stream.json").read_text("utf-8"))
    # Nothing is forgotten of a task that only the last chunk taught.
    taught = {task for chunk in chunks["chunks"][:2] for task in chunk["tasks"]}
    for row in stream[2:]:
        cell, a = dict(zip(head, row, strict=True)), matrices[row[0]]
        names = sorted({task for _, task in a})
        last = mean([a[3, t] for t in names])
        assert cell["Last [%]"].split(" ")[0] == shown(last)
        assert cell["Avg [%]"].split(" ")[0] == shown(
            mean([mean([a[c, t] for t in names]) for c in (1, 2, 3)])
        )
        seen = [t for t in names if t in taught]
        lost = mean([max(a[1, t], a[2, t]) - a[3, t] for t in seen])
        assert cell["Forgetting [%]"].split(" ")[0] == shown(lost)
    for row in tasks[2:]:
        for task, text in zip(tasks[0][2:], row[2:], strict=True):
            value = matrices[row[0]][3, task.removesuffix(" [%]")]
            assert text.split(" ")[0] == shown(value)
    assert costs[0][2] == "Peak memory [GiB]"
    tables = tables_of(page)
    for chunk, row in enumerate(tables["mean score after each chunk, in percent"][1:]):
        means = [mean([v for (c, _), v in a.items() if c == chunk]) for a in matrices.values()]
        assert row[1:] == [shown(value) for value in means]
    by_task = tables["last score by task, in percent"]
    assert by_task[0] == ["task", "base model", "strlora", "lora"]
    for task, base, *others in by_task[1:]:
        assert base == shown(matrices["lora"][0, task])
        assert others == [shown(a[3, task]) for a in matrices.values()]


def test_the_page_stands_alone(page: str) -> None:
    assert page.count('role="img" aria-label=') == page.count("<svg") >= 16
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page
    assert "http" not in page
    assert "tests of every leader against every other method" in tables_of(page)


def test_routing_from_the_files(page: str, runs: list[Path]) -> None:
    """Separation of the routed run; the other is named as without a record."""
    assert "Without a routing record: lora." in page
    separation = tables_of(page)["mutual information of task and expert set"]
    assert separation[0] == ["after", "strlora"]
    reported = tables_of(write_report(runs[0]).read_text("utf-8"))["routing over the stream"]
    assert separation[1:] == [row[:2] for row in reported[1:]]


def test_runs_without_routing_have_no_section(runs: list[Path], tmp_path: Path) -> None:
    assert main([str(runs[1]), "--out", str(tmp_path)]) == 0
    assert 'id="routing"' not in (tmp_path / "compare.html").read_text("utf-8")


def test_unmeasured_scores_are_dashes(runs: list[Path], tmp_path: Path) -> None:
    """The base model has no average and no interval: dashes, not zeros."""
    out = tmp_path / "out"
    assert main([str(runs[0]), "--out", str(out)]) == 0
    page = (out / "compare.html").read_text("utf-8")
    base = _visible(page)[0][1]
    assert base[0] == "base model"
    assert set(base[3:]) == {"\u2013"}
