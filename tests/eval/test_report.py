"""The report: every number once more from the files, by code of its own; gaps where files lack."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from eval.report import write_report
from eval.report.__main__ import main
from eval.report.data import load_run
from eval.report.svg import Scale, polyline, spread, ticks
from tests.eval.make_run import make_run

CHUNKS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, not to be changed."""
    run, _ = make_run(tmp_path_factory.mktemp("finished"), chunks=CHUNKS, done=CHUNKS, tests=16)
    write_report(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's folder, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def _page(run: Path) -> str:
    return (run / "report.html").read_text("utf-8")


def _tables(page: str) -> dict[str, list[list[str]]]:
    """Return the tables of a page: {caption: rows of text, the head first}."""
    tables = {}
    for summary, body in re.findall(r"<summary>Table: (.*?)</summary>(.*?)</details>", page, re.S):
        rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
        tables[unescape(summary)] = [[unescape(cell) for cell in row] for row in cells]
    return tables


def _cards(page: str) -> dict[str, tuple[str, str]]:
    pattern = (
        r'<dt>([^<]*)</dt>\s*<dd><span class="figure">([^<]*)</span>'
        r'(?: <span class="stderr">± ([^<]*)</span>)?'
    )
    return {name: (value, error) for name, value, error in re.findall(pattern, page)}


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}".replace("-", "\u2212")  # noqa: RUF001


def _matrix(run: Path) -> dict[tuple[int, str], float]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(r["chunk"]), r["task"]): float(r["score"]) for r in csv.DictReader(file)}


def _stream(run: Path) -> dict:
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    return json.loads((Path(manifest["data"]["stream"]) / "stream.json").read_text("utf-8"))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_headline_numbers(finished: Path) -> None:
    a, stream, cards = _matrix(finished), _stream(finished), _cards(_page(finished))
    tasks = list(stream["tasks"])
    first = {
        t: min((c["index"] for c in stream["chunks"] if c["tasks"].get(t)), default=None)
        for t in tasks
    }
    best = {t: max(a[c, t] for c in range(1, CHUNKS)) for t in tasks}
    seen = [t for t in tasks if first[t] is not None]
    expected = {
        "Last": _mean([a[CHUNKS, t] for t in tasks]),
        "Average": _mean([_mean([a[c, t] for t in tasks]) for c in range(1, CHUNKS + 1)]),
        "Forgetting": _mean([best[t] - a[CHUNKS, t] for t in tasks]),
        "Base model": _mean([a[0, t] for t in tasks]),
        "Backward transfer": _mean([a[CHUNKS, t] - a[first[t], t] for t in seen]),
        "Forward transfer": _mean([a[first[t] - 1, t] - a[0, t] for t in seen]),
        "Plasticity": _mean([max(best[t], a[CHUNKS, t]) - a[0, t] for t in tasks]),
        "Majority answer": 0.2,
    }
    assert {name: cards[name][0] for name in expected} == {
        name: _shown(value) for name, value in expected.items()
    }


def test_standard_error_of_last(finished: Path) -> None:
    """Against the formula for independent tasks; bootstrap noise is a few percent."""
    total = 0.0
    scores = json.loads((finished / "chunks" / f"{CHUNKS:03d}" / "scores.json").read_text("utf-8"))
    entries = {t: e for t, e in scores["tasks"].items() if t != "TextCaps"}
    for entry in entries.values():
        total += (entry["stderr"] * math.sqrt((entry["n"] - 1) / entry["n"])) ** 2
    tasks = len(scores["tasks"])
    low = math.sqrt(total) / tasks
    value = float(_cards(_page(finished))["Last"][1])
    assert 0.85 * 100 * low <= value <= 1.5 * 100 * low + 0.5


def test_matrix_and_composition_tables(finished: Path) -> None:
    a, stream, tables = _matrix(finished), _stream(finished), _tables(_page(finished))
    tasks = list(stream["tasks"])
    rows = tables["score after each chunk, in percent"]
    assert rows[0] == ["after", *tasks, "mean"]
    for chunk, row in enumerate(rows[1:]):
        values = [a[chunk, t] for t in tasks]
        assert row[1:] == [_shown(v) for v in [*values, _mean(values)]]
    assert len(rows) == CHUNKS + 2
    mixture = tables["training samples by task"]
    for chunk, row in zip(stream["chunks"], mixture[1:], strict=True):
        assert row[1:] == [str(chunk["tasks"].get(t, 0)) for t in mixture[0][1:]]


def test_task_table(finished: Path) -> None:
    a, stream = _matrix(finished), _stream(finished)
    rows = _tables(_page(finished))["all tasks, scores in percent; failed: over all chunks"]
    head = rows[0]
    for row in rows[1:]:
        cell = dict(zip(head, row, strict=True))
        task = cell["task"]
        best = max(a[c, task] for c in range(1, CHUNKS))
        assert cell["scorer"] == stream["tasks"][task]["scorer"]
        assert (cell["samples"], cell["failed"]) == ("16", "0")
        assert cell["last"].split(" ")[0] == _shown(a[CHUNKS, task])
        assert cell["base"].split(" ")[0] == _shown(a[0, task])
        assert cell["forgetting"].split(" ")[0] == _shown(best - a[CHUNKS, task])


def test_expert_table(finished: Path) -> None:
    path = finished / "chunks" / f"{CHUNKS:03d}" / "routing.json"
    content = json.loads(path.read_text("utf-8"))
    rows = _tables(_page(finished))[f"expert use by task after chunk {CHUNKS}, in percent"]
    assert [row[0] for row in rows[1:]] == ["VQAv2", "OCRVQA", "Fin", "Grounding", "TextCaps"]
    for group, row in zip(content["groups"], rows[1:], strict=True):
        for expert in range(4):
            share = _mean([layer[expert] for layer in group["use"]])
            assert row[1 + expert] == _shown(share)


def test_timing_and_losses(finished: Path) -> None:
    page = _page(finished)
    rows = _tables(page)["optimizer steps and wall time by chunk"]
    state = json.loads((finished / "state.json").read_text("utf-8"))
    assert rows[-1][1] == str(sum(c["steps"] for c in state["chunks"]))
    assert rows[-1][2] == f"{sum(c['train_seconds'] for c in state['chunks']):.0f}"
    lines = (finished / "chunks" / "001" / "train_metrics.jsonl").read_text("utf-8").splitlines()
    first = _tables(page)["language-model loss by optimizer step"][1]
    assert first == ["1", f"{json.loads(lines[0])['loss']:.4g}"]


def test_the_page_stands_alone(finished: Path) -> None:
    page = _page(finished)
    assert page.count("<svg") >= 12
    # Every plot and picture has a text; what is left are marks in legends, hidden from readers.
    assert page.count('<svg viewBox="0 0 12 12"') == 5
    assert page.count('role="img" aria-label=') == page.count("<svg") - 5
    assert page.count("data:image/jpeg;base64,") == 5
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in page
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert "prefers-color-scheme: dark" in page
    assert "Finished: 4 of 4 chunks" in page
    assert "not available" not in page


def test_the_same_files_give_the_same_page(run: Path) -> None:
    first = _page(run)
    write_report(run)
    assert re.sub(r"Written [^<]* UTC", "", _page(run)) == re.sub(r"Written [^<]* UTC", "", first)


def test_a_run_still_going_on(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=6, done=2, tests=8)
    shutil.rmtree(run / "chunks" / "002" / "predictions")
    write_report(run)
    page = _page(run)
    assert "Still going on: 2 of 6 chunks" in page
    assert 'class="waiting"' in page
    assert "Predictions of VQAv2 after chunk 2" in page
    # The scores themselves are in matrix.csv.
    assert _cards(page)["Last"][0] == _shown(
        _mean([v for (c, _), v in _matrix(run).items() if c == 2])
    )


def test_only_the_base_model(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=3, done=0, tests=4)
    page = write_report(run).read_text("utf-8")
    assert _cards(page)["Last"] == ("–", "")  # noqa: RUF001
    assert _cards(page)["Base model"][0] != "–"  # noqa: RUF001
    assert "Forgetting: not available" in page
    assert "Expert use: not available" in page
    assert "Loss curves: not available" in page


def test_an_empty_folder(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text("utf-8")
    assert "Nothing has been evaluated yet" in page
    assert "What this report could not read" in page


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("manifest.json", "Configuration"),
        ("state.json", "State of the run"),
        ("recipe.yaml", "Recipe"),
        ("matrix.csv", "Nothing has been evaluated yet"),
        ("chunks/002/routing.json", "Routing after chunk 2"),
        ("chunks/002/train_metrics.jsonl", "Training log of chunk 2"),
        ("chunks/002/predictions/Fin.jsonl", "Predictions of Fin after chunk 2"),
    ],
)
def test_damaged_files_are_marked(run: Path, damage: str, expected: str) -> None:
    path = run / damage
    if path.suffix in (".json", ".jsonl"):
        path.write_text('{"torn\n{}\n', "utf-8")
    else:
        path.unlink()
    write_report(run)
    assert expected in _page(run)
    assert Path(damage).name in unescape(_page(run))


def test_scores_that_contradict_the_predictions_are_told(run: Path) -> None:
    path = run / "matrix.csv"
    lines = path.read_text("utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("2,Fin,"))
    lines[at] = "2,Fin,0.999000,16"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    write_report(run)
    assert "matrix.csv says 0.999000" in _page(run)


def test_failed_samples_are_shown(run: Path) -> None:
    path = run / "chunks" / "001" / "predictions" / "Fin.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[0] |= {"prediction": None, "error": "out of memory"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    write_report(run)
    assert "1 test samples got no answer" in _page(run)


def test_text_from_models_is_escaped(run: Path) -> None:
    for chunk in range(CHUNKS + 1):
        path = run / "chunks" / f"{chunk:03d}" / "predictions" / "Fin.jsonl"
        path.write_text(
            path.read_text("utf-8").replace('"prediction": "C"', '"prediction": "<b>x"'), "utf-8"
        )
    write_report(run)
    assert "<b>x" not in _page(run)
    assert "&lt;b&gt;x" in _page(run)


def test_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main([str(run / "none")]) == 2
    assert "no such run" in capsys.readouterr().err


def test_a_moved_stream_can_be_named(tmp_path: Path) -> None:
    run, stream = make_run(tmp_path, chunks=2, done=1, tests=4)
    moved = Path(shutil.move(stream, tmp_path / "elsewhere"))
    assert "Stream" in {gap.what for gap in load_run(run).gaps}
    assert load_run(run, moved).gaps == []


def test_many_tasks_and_chunks(tmp_path: Path) -> None:
    tasks = [f"Task{n:02d}" for n in range(20)]
    run, _ = make_run(tmp_path, chunks=30, done=30, tests=2, tasks=tasks, routed=False)
    page = write_report(run).read_text("utf-8")
    assert len(page) < 2_000_000
    assert 'class="series many"' in page


def test_svg_helpers() -> None:
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-0.1, 0.3)[0] <= -0.1
    assert ticks(0.5, 0.5) == [0.5]
    assert Scale(0, 10, 100, 200)(5) == 150
    assert polyline([(0, 1), (1, math.nan), (2, 3), (3, 4)]) == "M0.0 1.0 h0 M2.0 3.0 L3.0 4.0"
    placed = spread([10, 11, 12, 90], 8, 0, 100)
    assert all(b - a >= 8 - 1e-9 for a, b in pairwise(placed))
    assert spread([99, 99], 8, 0, 100) == [92, 100]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_in_a_real_browser(finished: Path, tmp_path: Path) -> None:
    """No console message, and the plots have a size."""
    switches = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    switches += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1600"]
    switches += ["--enable-logging=stderr", f"--screenshot={tmp_path / 'page.png'}"]
    url = (finished / "report.html").resolve().as_uri()
    done = subprocess.run(["chromium", *switches, url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "page.png").stat().st_size > 40_000
