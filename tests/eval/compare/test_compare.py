"""eval.compare: every number recomputed from the files, marks that hold, and bad input."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats

from data_prep.files import read_json, read_jsonl, write_json, write_jsonl
from eval.compare import compare, tables
from eval.compare.__main__ import main
from eval.compare.verdict import sentences
from eval.report.data import load_run
from tests.eval.compare.conftest import CHUNKS, TASKS, write_run
from tests.eval.make_run import make_stream


def recomputed(run: Path, stream: Path) -> dict[str, float]:
    """The scores over the stream from the prediction files alone, in plain loops."""
    a: list[dict[str, float]] = []
    for chunk in range(CHUNKS + 1):
        row = {}
        for task in TASKS:
            lines = read_jsonl(run / "chunks" / f"{chunk:03d}" / "predictions" / f"{task}.jsonl")
            right = [line["prediction"].lower() == line["gold"].lower() for line in lines]
            row[task] = sum(right) / len(right)
        a.append(row)
    first = {}
    for chunk in json.loads((stream / "stream.json").read_text("utf-8"))["chunks"]:
        for task in chunk["tasks"]:
            first.setdefault(task, chunk["index"])
    mean = lambda values: sum(values) / len(values) if values else math.nan  # noqa: E731
    end = a[CHUNKS]
    seen = [t for t in TASKS if first[t] < CHUNKS]
    later = [t for t in TASKS if first[t] > 1]
    return {
        "last": mean(end.values()),
        "average": mean([mean(a[c].values()) for c in range(1, CHUNKS + 1)]),
        "forgetting": mean([max(a[c][t] for c in range(1, CHUNKS)) - end[t] for t in seen]),
        "backward": mean([end[t] - a[first[t]][t] for t in seen]),
        "forward": mean([a[first[t] - 1][t] - a[0][t] for t in later]),
        "lost": mean([max(a[c][t] for c in range(1, CHUNKS + 1)) - end[t] for t in TASKS]),
        "plasticity": mean([max(a[c][t] for c in range(1, CHUNKS + 1)) - a[0][t] for t in TASKS]),
    } | {f"last/{t}": end[t] for t in TASKS}


def test_every_number_comes_from_the_files(good: Path, poor: Path, stream: Path) -> None:
    found = compare([good, poor])
    assert found.gaps == []
    assert found.names == ["strlora", "lora"]  # the base models differ: no row for them
    for name, run in (("strlora", good), ("lora", poor)):
        for key, value in recomputed(run, stream).items():
            cell = found.cell(name, key)
            assert cell.value == pytest.approx(value, abs=1e-6, nan_ok=True), key
            assert math.isnan(value) or cell.interval.low <= cell.value <= cell.interval.high
    rows = list(csv.DictReader(tables.as_csv(found).splitlines()))
    written = {(r["method"], r["column"]): r for r in rows}
    for (name, key), row in written.items():
        cell = found.cell(name, key)
        assert row["value"] == ("" if math.isnan(cell.value) else repr(cell.value))
        assert int(row["best"]) == cell.best


def test_only_a_lead_that_holds_is_marked(
    good: Path, poor: Path, tmp_path: Path, stream: Path
) -> None:
    found = compare([good, poor])
    assert found.cell("strlora", "last").best
    assert not found.cell("lora", "last").best
    assert found.cell("strlora", "forgetting").best
    assert {t.kind for t in found.tests if t.column.startswith("last/")} == {"mcnemar"}
    assert all(t.leader == "strlora" for t in found.tests if t.column.startswith("last"))
    # The same skill, other answers: somebody leads, nobody is marked.
    twin = write_run(tmp_path / "twin", stream, [0.5, 0.9, 0.9], "er", seed=2)
    close = compare([good, twin])
    leads = {t.difference for t in close.tests if t.column == "last"}
    assert leads
    assert not any(
        close.cell(name, key).best for name in close.names for key in ("last", "average")
    )
    # With a third method the lead over the second is what counts.
    three = compare([good, twin, poor])
    assert not any(three.cell(name, "last").best for name in three.names)
    assert len([t for t in three.tests if t.column == "last"]) == 2


def test_a_method_never_beats_its_own_copy(good: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(good, copy)
    manifest = read_json(copy / "manifest.json")
    manifest["recipe"]["method"] = "lora"
    write_json(copy / "manifest.json", manifest)
    found = compare([good, copy])
    assert found.names == ["base model", "strlora", "lora"]
    assert found.cell("base model", "last").value == pytest.approx(
        np.mean([found.cell("base model", f"last/{t}").value for t in TASKS])
    )
    assert {test.adjusted for test in found.tests} == {1.0}
    assert {test.difference for test in found.tests} == {0.0}


def test_seeds_are_one_method(tmp_path: Path, stream: Path) -> None:
    runs = [write_run(tmp_path / f"s{n}", stream, [0.5, 0.9, 0.9], seed=n) for n in range(3)]
    runs += [write_run(tmp_path / f"l{n}", stream, [0.5, 0.6, 0.3], "lora", n) for n in range(3)]
    found = compare(runs)
    seeds = [(None, 0), (None, 1), (None, 2)]
    assert found.seeds == {"strlora": seeds, "lora": seeds}
    values = [recomputed(run, stream)["last"] for run in runs[:3]]
    cell = found.cell("strlora", "last")
    assert cell.value == pytest.approx(np.mean(values), abs=1e-6)
    assert cell.values == pytest.approx(values, abs=1e-6)
    half = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)
    assert cell.interval.half_width == pytest.approx(half, rel=1e-4)
    assert cell.best
    (test,) = (test for test in found.tests if test.column == "last")
    others = [recomputed(run, stream)["last"] for run in runs[3:]]
    assert test.kind == "paired"
    assert test.p == pytest.approx(stats.ttest_rel(values, others).pvalue, rel=1e-3)
    # Without the seeds in common the runs are not paired.
    welch = compare([*runs[:3], *runs[3:5]])
    (test,) = (test for test in welch.tests if test.column == "last")
    assert test.kind == "welch"
    # One seed against three: the same test samples still pair them.
    mixed = compare([runs[0], *runs[3:]])
    assert {test.kind for test in mixed.tests if test.column == "last"} == {"samples"}
    text = " ".join(tables.text(mixed).split())
    assert "standard deviation over runs (n - 1); where n = 1, standard error over test" in text
    shutil.copytree(runs[0], tmp_path / "again")
    with pytest.raises(ValueError, match="the same recipe and seed"):
        compare([*runs, tmp_path / "again"])


def test_every_spread_is_named_in_the_header(tmp_path: Path, stream: Path, capsys: Any) -> None:
    """Three seeds: standard deviation, error and half interval of one set of values, by hand."""
    runs = [write_run(tmp_path / f"s{n}", stream, [0.5, 0.9, 0.9], seed=n) for n in range(3)]
    values = 100 * np.array([recomputed(run, stream)["last"] for run in runs])
    std = np.std(values, ddof=1)
    for kind, half, words in (
        ("std", std, "±: standard deviation over runs (n - 1)."),
        ("sem", std / math.sqrt(3), "±: standard error of the mean over runs."),
        ("ci95", 4.302653 * std / math.sqrt(3), "±: half of the 95 % t interval of the mean"),
    ):
        assert main([*map(str, runs), "--spread", kind, "--columns", "last"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert words in told
        assert f"StrLoRA 3 {values.mean():.1f} ± {half:.1f} " in told
        # Apart from it, always: the interval of the mean, and the values as points.
        points = " ".join(f"{value:.1f}" for value in values)
        assert f"] {points} " in told
        assert "n: 3 runs, seeds 0, 1, 2" in told
    assert main([str(runs[0]), "--columns", "last,last"]) == 0
    assert "n  Last [%]\n" in capsys.readouterr().out, "a column stands once"
    assert main([str(runs[0]), "--columns", "last,lost,nothing"]) == 2
    assert "no column nothing; the columns are last, average" in capsys.readouterr().err


def test_streams_of_several_seeds_are_runs_of_one_method(tmp_path: Path) -> None:
    """Each stream seed has its own test samples; every method on each stream: paired by stream."""
    runs = []
    for number in range(3):
        folder = make_stream(tmp_path / f"stream{number}", TASKS, CHUNKS, tests=20 + 10 * number)
        data = {"stream": str(folder), "sha256": str(number) * 64, "chunks": ["2" * 64] * CHUNKS}
        for method, skills in (("strlora", [0.5, 0.9, 0.9]), ("lora", [0.5, 0.6, 0.3])):
            recipe = {"method": method, "seed": 0, "data": {"seed": number, "stream": str(folder)}}
            root = tmp_path / "runs" / f"{method}{number}"
            runs.append(write_run(root, folder, skills, method, number, recipe=recipe, data=data))
    (tmp_path / "runs" / "sweep.json").write_text("{}", "utf-8")
    (tmp_path / "runs" / "not-started").mkdir()
    found = compare([tmp_path / "runs"])  # a folder of runs
    assert found.gaps == []
    assert found.seeds["strlora"] == [(0, 0), (1, 1), (2, 2)]
    assert found.tasks == TASKS
    (test,) = (test for test in found.tests if test.column == "last")
    assert (test.kind, test.leader) == ("paired", "strlora")
    # A method that lacks a stream: all are compared over the streams that every method has.
    fewer = compare(runs[:-1])
    assert fewer.seeds == {name: [(0, 0), (1, 1)] for name in ("strlora", "lora")}
    assert [(gap.what, gap.why) for gap in fewer.gaps] == [
        ("strlora2", "left out: not every method has a run on its stream")
    ]
    with pytest.raises(ValueError, match="where every method has run on each of them"):
        compare([runs[0], runs[3]])


def test_seeds_of_the_model_on_one_stream_count_as_one(tmp_path: Path) -> None:
    """Three streams, two seeds each: intervals and tests are over the means of the streams."""
    runs, last = [], defaultdict(list)
    for number in range(6):
        folder = make_stream(tmp_path / f"stream{number // 2}", TASKS, CHUNKS, tests=20)
        data = {"stream": str(folder), "sha256": str(number // 2) * 64, "chunks": ["2" * 64] * 2}
        for method, skills in (("strlora", [0.5, 0.9, 0.9]), ("lora", [0.5, 0.6, 0.3])):
            recipe = {"method": method, "data": {"seed": number // 2, "stream": str(folder)}}
            root = tmp_path / "runs" / f"{method}{number}"
            runs.append(write_run(root, folder, skills, method, number, recipe=recipe, data=data))
            last[method].append(recomputed(runs[-1], folder)["last"])
    found = compare(runs[::-1])
    ours, theirs = (np.reshape(last[name], (3, 2)).mean(axis=1) for name in ("strlora", "lora"))
    cell = found.cell("strlora", "last")
    assert cell.values == pytest.approx(ours[::-1], abs=1e-6)
    assert cell.spread.std == pytest.approx(np.std(ours, ddof=1), abs=1e-6)
    (test,) = (test for test in found.tests if test.column == "last")
    assert (test.kind, test.p) == ("paired", pytest.approx(stats.ttest_rel(ours, theirs).pvalue))
    told = " ".join(tables.text(found).split())
    assert "stream seeds 2, 1, 0 (those of one stream count as one" in told
    assert "paired over 3 streams, of each the mean of runs" in " ".join(sentences(found))


def test_a_run_still_going_on_is_compared_where_all_stand(
    good: Path, tmp_path: Path, stream: Path
) -> None:
    short = write_run(tmp_path / "short", stream, [0.5, 0.6], "lora", planned=3)
    found = compare([good, short])
    why = {gap.what: gap.why for gap in found.gaps}
    assert "after chunk 2, the last that all runs have" in why["good: chunks after 2"]
    assert "still going on; chunk 2 so far" in why["short"]
    end = read_jsonl(good / "chunks" / "002" / "predictions" / "VQAv2.jsonl")
    right = np.mean([line["prediction"] == line["gold"] for line in end])
    assert found.cell("strlora", "last/VQAv2").value == pytest.approx(right, abs=1e-6)
    assert "still going on" in tables.text(found)


def test_another_stream_is_compared_by_its_last_score(
    good: Path, tmp_path: Path, stream: Path
) -> None:
    data = {"stream": str(stream), "sha256": "9" * 64, "chunks": ["2" * 64]}
    joint = write_run(tmp_path / "joint", stream, [0.95], "joint", data=data)
    found = compare([good, joint])
    assert "last scores only" in {gap.what: gap.why for gap in found.gaps}["Streams"]
    assert found.cell("strlora", "last").value == pytest.approx(
        recomputed(good, stream)["last"], abs=1e-6
    )
    assert math.isnan(found.cell("joint", "forgetting").value)
    tested = {t.column.split("/")[0] for t in found.tests if math.isfinite(t.p)}
    assert tested == {"last"}


def test_costs(good: Path, poor: Path) -> None:
    steps_of = {1: 10, 2: 30}
    for run, speed, trainable in ((good, 0.3, "0.5711"), (poor, 0.2, "0.2867")):
        state = read_json(run / "state.json")
        records = [{"index": c, "trained": True, "steps": n} for c, n in steps_of.items()]
        write_json(run / "state.json", {**state, "chunks": records})
        adapter = run / "chunks" / "003" / "adapter"
        adapter.mkdir()
        numbers = np.zeros((30, 50), dtype=np.float32)
        save_file({"w": numbers}, adapter / "adapter_model.safetensors")
        for chunk, steps in steps_of.items():
            begin = {"train_speed(s/it)": 9.9, "global_step/max_steps": "1/9", "memory(GiB)": 1.5}
            end = {"train_speed(s/it)": speed * chunk, "global_step/max_steps": f"{steps}/{steps}"}
            write_jsonl(run / "chunks" / f"00{chunk}" / "train_metrics.jsonl", [begin, end])
        line = f"[INFO] model_parameter_info: P: 5.9M Params ({trainable}M Trainable [4.8%]), 0.1M"
        (run / "chunks" / "001" / "train.log").write_text(f"x\n{line} Buffers.\n", "utf-8")
    found = compare([good, poor])
    costs = ("trainable", "stored", "seconds_a_step", "to_lora", "memory")
    ours = [found.cell("strlora", key).value for key in costs]
    # (0.3 x 10 + 0.6 x 30) / 40 seconds a step; LoRA takes two thirds of that.
    assert ours == pytest.approx([0.5711, 0.0015, 0.525, 1.5, 1.5])
    assert "Step time to LoRA [x]" in tables.text(found)
    # A log that lost its end says so, and its chunk is left out: (0.3 x 10) / 10.
    assert load_run(good).gaps == []
    log = good / "chunks" / "002" / "train_metrics.jsonl"
    log.write_text(log.read_text("utf-8").splitlines()[0] + '\n{"loss": 0', "utf-8")
    assert compare([good, poor]).cell("strlora", "seconds_a_step").value == pytest.approx(0.3)
    told = [gap.why for gap in load_run(good).gaps]
    assert told == ["train_metrics.jsonl ends at step 1 of 30: its end is lost"]
    # Without an accelerator's figure, the main memory that the orchestrator saw.
    for log in good.glob("chunks/*/train_metrics.jsonl"):
        log.unlink()
    state = read_json(good / "state.json")
    state["chunks"] = [{"index": 0}, {"train_memory_gib": 2.5}, {"train_memory_gib": None}]
    write_json(good / "state.json", state)
    assert compare([good, poor]).cell("strlora", "memory").value == 2.5
    (good / "chunks" / "003" / "adapter" / "adapter_model.safetensors").write_bytes(b"\xff" * 9)
    assert math.isnan(compare([good, poor]).cell("strlora", "stored").value)


def test_files_and_marks(good: Path, poor: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main([str(good), str(poor), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "StrLoRA" in told
    assert " *" in told
    names = ["compare.csv", "compare.html", "compare.md", "compare.tex"]
    names += ["stream.pdf", "stream.svg", "tasks.pdf", "tasks.svg", "tests.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    text = (out / "compare.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:3]}) == 1
    assert "**" in text
    latex = (out / "compare.tex").read_text("utf-8")
    assert "\\mathbf{" in latex
    assert "Last [\\%]" in latex
    assert latex.count("\\toprule") == latex.count("\\end{tabular}") == 5
    assert "% ±: standard error over test samples" in latex
    assert tables.escape("a_b & 5 %") == "a\\_b \\& 5 \\%"
    cells = list(csv.DictReader((out / "compare.csv").open(encoding="utf-8")))
    (last,) = (r for r in cells if (r["method"], r["column"]) == ("strlora", "last"))
    assert (last["unit"], last["over"], last["n"]) == ("fraction", "samples", "1")
    assert 0 < float(last["value"]) <= 1
    tests = list(csv.DictReader((out / "tests.csv").open(encoding="utf-8")))
    assert {row["leader"] for row in tests} <= {"strlora", "lora"}


def test_a_reader_that_has_enough_is_no_failure(good: Path, poor: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "eval.compare", str(good), str(poor), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head -0` does
        _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert len(list(out.iterdir())) == 9


def test_what_cannot_be_compared_is_told(
    good: Path, tmp_path: Path, stream: Path, capsys: Any
) -> None:
    def message(*runs: Path) -> str:
        assert main([str(run) for run in runs]) == 2
        return str(capsys.readouterr().err)

    assert "no such run" in message(good, tmp_path / "none")
    assert "given twice" in message(good, tmp_path / "good" / ".." / "good")
    (tmp_path / "empty").mkdir()
    assert "no score to compare" in message(good, tmp_path / "empty")
    other = make_stream(tmp_path / "other", ["Fin"], chunks=1)
    fin = write_run(tmp_path / "fin", other, [0.5], tasks=["Fin"])
    assert "no task that all runs were tested on" in message(good, fin)
    (tmp_path / "fin" / "matrix.csv").write_text("chunk,task,score,n\n0,Fin,2.0,9\n", "utf-8")
    assert "expected chunk >= 0, score 0..1" in message(good, fin)


def test_other_tasks_and_other_samples_are_left_out(
    good: Path, tmp_path: Path, stream: Path
) -> None:
    third = make_stream(tmp_path / "third", ["VQAv2", "OCRVQA", "Fin"], chunks=CHUNKS, tests=60)
    more = write_run(tmp_path / "more", third, [0.5, 0.6, 0.3], "lora",
                     tasks=["VQAv2", "OCRVQA", "Fin"])  # fmt: skip
    found = compare([good, more])
    assert found.tasks == TASKS
    assert "not evaluated in good" in {gap.what: gap.why for gap in found.gaps}["Task Fin"]
    fewer = make_stream(tmp_path / "fewer", TASKS, chunks=CHUNKS, tests=60)
    for line in (lines := read_jsonl(fewer / "test" / "VQAv2.jsonl")):
        line["id"] += "-b"
    write_jsonl(fewer / "test" / "VQAv2.jsonl", lines)
    renamed = write_run(tmp_path / "renamed", fewer, [0.5, 0.6, 0.3], "lora")
    # Streams of two seeds give the same ids to other questions, or other answers to them.
    reseeded = make_stream(tmp_path / "reseeded", TASKS, chunks=CHUNKS, tests=60)
    for line in (lines := read_jsonl(reseeded / "test" / "VQAv2.jsonl")):
        line["messages"][-1]["content"] = "white"
    write_jsonl(reseeded / "test" / "VQAv2.jsonl", lines)
    reseeded = write_run(tmp_path / "again", reseeded, [0.5, 0.6, 0.3], "lora")
    for run in (renamed, reseeded):
        found = compare([good, run])
        assert found.tasks == ["OCRVQA"]
        assert "different samples" in {gap.what: gap.why for gap in found.gaps}["Task VQAv2"]


def test_a_single_run_is_a_table_without_marks(good: Path) -> None:
    found = compare([good])
    assert found.names == ["base model", "strlora"]
    assert found.tests == []
    assert not any(cell.best for cell in found.cells.values())
