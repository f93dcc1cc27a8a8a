"""compare.html: its numbers are those of the tables, and it stands alone."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path

import pytest

from data_prep.files import read_jsonl, write_jsonl
from eval.compare import compare, tables
from eval.compare.__main__ import main
from eval.compare.page import html
from eval.predictions import split_results
from eval.report import write_report
from tests.eval.compare.conftest import TASKS
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


def _open_tables(page: str) -> dict[str, Rows]:
    """The tables that no fold of their own hides, by their heading."""
    found = re.findall(
        r"<h3>([^<]*)</h3>\s*<div class=\"scroll\".*?<table>(.*?)</table>", page, re.S
    )
    slim = re.search(r'<table class="slim">(.*?)</table>', page, re.S)
    assert slim is not None
    parts = [("slim", re.sub(r'<span class="(kept|hidden)">.*?</span>', "", slim.group(1))), *found]
    return {
        name: [[unescape(re.sub(r"<.*?>", "", c)).strip()
                for c in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
               for row in re.findall(r"<tr>(.*?)</tr>", part, re.S)]
        for name, part in parts
    }  # fmt: skip


def test_numbers_from_the_matrices(page: str, runs: list[Path]) -> None:
    found = _open_tables(page)
    stream, more, tasks = (
        found[n] for n in ("slim", "More scores over the stream", "Last, by task, in percent")
    )
    matrices = {name: _matrix(run) for name, run in zip(("StrLoRA", "LoRA"), runs, strict=True)}
    manifest = json.loads((runs[0] / "manifest.json").read_text("utf-8"))
    chunks = json.loads((Path(manifest["data"]["stream"]) / "stream.json").read_text("utf-8"))
    # Nothing is forgotten of a task that only the last chunk taught.
    taught = {task for chunk in chunks["chunks"][:2] for task in chunk["tasks"]}
    for row, other in zip(stream[2:], more[2:], strict=True):
        cell = dict(zip([*stream[0], *more[0]], [*row, *other], strict=True))
        a = matrices[row[0]]
        names = sorted({task for _, task in a})
        last = mean([a[3, t] for t in names])
        assert cell["Last [%]"].split(" ")[0] == shown(last)
        assert cell["Avg (MAP) [%]"].split(" ")[0] == shown(
            mean([mean([a[c, t] for t in names]) for c in (1, 2, 3)])
        )
        best = mean([max(a[c, t] for c in (1, 2, 3)) - a[3, t] for t in names])
        assert cell["Lost since best [%]"].split(" ")[0] == shown(best)
        seen = [t for t in names if t in taught]
        lost = mean([max(a[1, t], a[2, t]) - a[3, t] for t in seen])
        assert cell["Forgetting [%]"].split(" ")[0] == shown(lost)
    assert tasks[0] == ["task", "Base model", "StrLoRA", "LoRA"]
    for head, _, *cells in tasks[1:]:
        values = [a[3, head.removesuffix(" [%]")] for a in matrices.values()]
        assert [text.split(" ")[0] for text in cells] == [shown(value) for value in values]
    assert found["Costs"][0][2] == "Peak memory [GiB]"
    tables = tables_of(page)
    for chunk, row in enumerate(tables["mean score after each chunk, in percent"][1:]):
        means = [mean([v for (c, _), v in a.items() if c == chunk]) for a in matrices.values()]
        assert row[1:] == [shown(value) for value in means]
    by_task = tables["last score by task, in percent"]
    assert by_task[0] == ["task", "Base model", "StrLoRA", "LoRA"]
    for task, base, *others in by_task[1:]:
        assert base == shown(matrices["LoRA"][0, task])
        assert others == [shown(a[3, task]) for a in matrices.values()]
    courses = tables["score by task after each chunk, in percent"]
    for task, name, *scores in courses[1:]:
        assert scores == [shown(matrices[name][c, task]) for c in range(4)]


def test_the_page_opens_with_the_verdict(page: str, runs: list[Path]) -> None:
    """Who is ahead by how much, from the matrices; then what the folds below hold."""
    verdict = re.search(r'<ul class="findings">(.*?)</ul>', page, re.S)
    assert verdict is not None
    last = [mean([v for (c, _), v in _matrix(run).items() if c == 3]) for run in runs]
    leader = "StrLoRA" if last[0] > last[1] else "LoRA"
    gap = shown(max(last) - min(last))
    assert f"<li>Last: {leader} is ahead with {shown(max(last))}, {gap} points above" in verdict[1]
    assert "Every method has one run: another seed may say otherwise." in verdict[1]
    links = re.findall(r'<li><a href="#(\w+)">', page)
    assert set(links) <= set(re.findall(r'id="(\w+)"', page))
    assert page.index('class="findings"') < page.index("<svg") < page.index('class="slim"')
    assert "Machine: 2 cores. Commit: 0000000000." in page
    assert "{'" not in page
    assert "-0.0" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)


def test_the_page_stands_alone(page: str) -> None:
    assert page.count('role="img" aria-label=') == page.count("<svg") >= 8
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page
    assert "http" not in page
    tests = "Tests of every leader against every other method; tests.csv has those by task, too"
    scored = {row[0] for row in _open_tables(page)[tests][1:]}
    assert {"Last", "Forgetting"} <= scored
    assert not any("VQAv2" in score for score in scored)


def test_routing_from_the_files(page: str, runs: list[Path]) -> None:
    """Separation of the routed run; the other is named as without a record."""
    assert "No routing record: LoRA." in page
    separation = tables_of(page)["mutual information of task and expert set"]
    assert separation[0] == ["after", "StrLoRA"]
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
    base = _open_tables(page)["slim"][1]
    assert base[0] == "Base model"
    assert set(base[3:]) == {"\u2013"}


def test_style_drift_stands_beside_the_official_scores(
    good: Path, poor: Path, stream: Path
) -> None:
    """One run says "It is X." after its last chunk: what it loses is form alone."""

    def right(chunk: int, task: str) -> float:
        lines = read_jsonl(poor / "chunks" / f"{chunk:03d}" / "predictions" / f"{task}.jsonl")
        return mean([float(line["prediction"].lower() == line["gold"].lower()) for line in lines])

    knows = {(chunk, task): right(chunk, task) for chunk in range(4) for task in TASKS}
    last = poor / "chunks" / "003"
    answers = list(read_jsonl(last / "answers.jsonl"))
    for line in answers:
        line["response"] = line["messages"][-1]["content"] = f"It is {line['response']}."
    write_jsonl(last / "answers.jsonl", answers)
    split_results(last / "answers.jsonl", stream, last / "predictions", TASKS)
    found = compare([good, poor])
    both = {section.title: section for section in tables.sections(found, tables.ALL)}
    titles = tables.FORM_TITLE, tables.FORM_BY_TASK
    means, by_task = ({r[0]: [t for t, _ in r[2]] for r in both[t].rows} for t in titles)
    blind = [knows[3, task] for task in TASKS]
    assert by_task["LoRA"] == [f"{100 * value:.1f}" for value in blind]
    best = [max(knows[chunk, task] for chunk in range(4)) for task in TASKS]
    lost = mean([b - k for b, k in zip(best, blind, strict=True)])
    wanted = [0.0, mean(blind), mean(blind), mean(best), lost, mean(best) - lost]
    assert means["LoRA"] == [f"{100 * value:.1f}" for value in wanted]
    assert means["StrLoRA"][2] == "0.0"
    shown_there = _open_tables(html(found))
    assert shown_there[tables.FORM_TITLE][-1][2:] == means["LoRA"]
    turned = shown_there[f"{tables.FORM_BY_TASK}, in percent"][1:]
    assert [row[-1] for row in turned] == by_task["LoRA"]
