"""Choices among chunks in report, scalars and comparison, recomputed from the run's own files."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import pytest

from eval.compare.__main__ import main
from eval.compare.names import printed
from eval.report import write_report
from eval.report.data import load_run
from eval.report.scalars import scalars_of
from eval.routing.router_accuracy import router_accuracy
from tests.eval.make_run import make_run, second_run
from tests.eval.report.page_reader import Rows, shown, tables_of

CHUNKS, QUESTIONS = 3, 10


def test_right_is_the_chunk_with_most_samples_and_any_that_held_it() -> None:
    found = router_accuracy({1: 2, 2: 5, 4: 1}, 10, {1: 30, 2: 10, 3: 30, 4: 0})
    # Two questions without a record are wrong.
    assert found.values() == (0.2, 0.7, 0.5, 0.75)
    for nothing in (router_accuracy({1: 2}, 2, {1: 0, 2: 0}), router_accuracy({}, 0, {1: 3})):
        assert all(math.isnan(value) for value in vars(nothing).values())


def _choose(run: Path, method: str) -> None:
    """Let the run's files say what the tuner or the orchestrator writes for such a method."""
    draw = random.Random(method)
    for chunk in range(1, CHUNKS + 1):
        folder = run / "chunks" / f"{chunk:03d}"
        tasks = [path.stem for path in sorted((folder / "predictions").glob("*.jsonl"))]
        picked = {task: draw.choices(range(1, chunk + 1), k=QUESTIONS) for task in tasks}
        counts = {t: {str(c): p.count(c) for c in sorted(set(p))} for t, p in picked.items()}
        illegal, what = (1, "adapter") if method == "mr_lora" else (0, "router")
        entries = {t: {"n": QUESTIONS, "experts": counts[t], "illegal": illegal} for t in tasks}
        text = json.dumps({"chunk": chunk, "what": what, "tasks": entries})
        (folder / "router.json").write_text(text, "utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    keys, _ = make_run(tmp_path_factory.mktemp("choices"), CHUNKS, CHUNKS, tests=QUESTIONS)
    pool = second_run(keys, "mr_lora")
    manifest = json.loads((keys / "manifest.json").read_text("utf-8"))
    manifest["recipe"]["method"] = "branchlora"
    (keys / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    found = {"branchlora": keys, "mr_lora": pool}
    for method, run in found.items():
        _choose(run, method)
    return found


def _recomputed(run: Path, chunk: int) -> dict[str, tuple[float, float]]:
    """Return home and held by task, with plain loops over the two files that hold the truth."""
    stream = json.loads((run / "manifest.json").read_text("utf-8"))["data"]["stream"]
    mixtures = json.loads((Path(stream) / "stream.json").read_text("utf-8"))["chunks"][:chunk]
    folder = run / "chunks" / f"{chunk:03d}"
    entries = json.loads((folder / "router.json").read_text("utf-8"))["tasks"]
    shares = {t: {c: n / e["n"] for c, n in e["experts"].items()} for t, e in entries.items()}
    found = {}
    for task, chosen in shares.items():
        samples = [mixture["tasks"].get(task, 0) for mixture in mixtures]
        home = held = 0.0
        for name, share in chosen.items():
            home += share * (samples[int(name) - 1] == max(samples))
            held += share * (samples[int(name) - 1] > 0)
        found[task] = (home, held) if max(samples) else (math.nan, math.nan)
    return found


def _mean(found: dict[str, tuple[float, float]], figure: int) -> float:
    known = [pair[figure] for pair in found.values() if not math.isnan(pair[figure])]
    return sum(known) / len(known)  # every task asks as many questions


@pytest.mark.parametrize("method", ["branchlora", "mr_lora"])
def test_the_report_says_what_the_files_say(runs: dict[str, Path], method: str) -> None:
    page = write_report(runs[method]).read_text("utf-8")
    tables, what = tables_of(page), "router" if method == "branchlora" else "adapter"
    last = tables[f"which chunk's {what} each task took after chunk {CHUNKS}"]
    wanted = _recomputed(runs[method], CHUNKS)
    assert {row[0]: (row[2], row[3]) for row in last[1:]} == {
        task: (shown(home), shown(held)) for task, (home, held) in wanted.items()
    }
    illegal = "1" if method == "mr_lora" else "\u2013"
    assert {row[6] for row in last[1:]} == {illegal}
    course: Rows = tables["right choices by task and chunk, in percent"]
    for row in course[1:]:
        chunk, name = re.fullmatch(r"chunk (\d+), (dominant chunk|any chunk)", row[0]).groups()  # type: ignore[union-attr]
        found = _recomputed(runs[method], int(chunk))
        figure = ("dominant chunk", "any chunk").index(name)
        assert dict(zip(course[0][1:], row[1:], strict=True)) == {
            task: shown(pair[figure]) for task, pair in found.items()
        }
    assert f"{shown(_mean(wanted, 0))} % of the questions went to the dominant" in page
    expected = "named no adapter for 5 questions" if method == "mr_lora" else "key are nearest"
    assert expected in page


def test_scalars_hold_the_same_figures(runs: dict[str, Path]) -> None:
    for method, run in runs.items():
        data = load_run(run)
        for chunk in range(1, CHUNKS + 1):
            found = scalars_of(data, chunk)
            wanted = _recomputed(run, chunk)
            assert found["choice/dominant_chunk"] == pytest.approx(_mean(wanted, 0))
            assert found["choice/any_chunk"] == pytest.approx(_mean(wanted, 1))
            assert found.get("choice/illegal") == (0.1 if method == "mr_lora" else None)


def test_a_comparison_shows_both(runs: dict[str, Path], tmp_path: Path) -> None:
    assert main([*map(str, runs.values()), "--out", str(tmp_path)]) == 0
    tables = tables_of((tmp_path / "compare.html").read_text("utf-8"))
    course = tables["right choices (dominant chunk), in percent"]
    assert course[0] == ["after", *map(printed, runs)]
    for row in course[1:]:
        chunk = int(row[0].removeprefix("chunk "))
        assert row[1:] == [shown(_mean(_recomputed(run, chunk), 0)) for run in runs.values()]
    by_run = {
        row[0]: row[1:]
        for row in tables["choice of a chunk by run, in percent of the questions"][1:]
    }
    assert by_run["MR-LoRA"][-1] == "10.0"
    assert by_run["BranchLoRA"][-1] == "\u2013"
    assert by_run["MR-LoRA"][3] == shown(_mean(_recomputed(runs["mr_lora"], CHUNKS), 1))

    assert main([str(runs["mr_lora"]), "--out", str(tmp_path / "one")]) == 0
    alone = (tmp_path / "one" / "compare.html").read_text("utf-8")
    assert "Is the right chunk chosen?" in alone
    assert "Without a routing record" not in alone, "nothing is routed inside the model"


def test_damaged_choices_are_a_gap(runs: dict[str, Path]) -> None:
    path = runs["mr_lora"] / "chunks" / "002" / "router.json"
    whole = path.read_text("utf-8")
    try:
        path.write_text('{"chunk": 2, "tasks": []}', "utf-8")
        page = write_report(runs["mr_lora"]).read_text("utf-8")
        assert "Choice of chunks after chunk 2" in page
    finally:
        path.write_text(whole, "utf-8")
