"""data_prep.compose: stated and drawn mixtures, with and without recurrence."""

# ruff: noqa: E501 - a row of a table stands on one line

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data_prep.compose.__main__ import main as compose
from data_prep.compose.chunk_counts import drawn, without_return
from data_prep.mini.mixtures import strcvit_mixture
from data_prep.published.benchmarks import STRCVIT
from data_prep.stream import open_stream

REPO = Path(__file__).resolve().parents[2]


def tasks(folder: Path, counts: dict[str, int], tests: int = 3) -> Path:
    """Write <task>.jsonl and test/<task>.jsonl in different forms."""
    for task, count in counts.items():
        for path, size in (
            (folder / f"{task}.jsonl", count),
            (folder / f"test/{task}.jsonl", tests),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {"id": f"{task}{n}", "question": f"{task} {n}?", "answer": "x"} for n in range(size)
            ]
            if task == "Grounding":
                box = {"answer_bbox": "[0.1, 0.1, 0.5, 0.5]", "size": [40, 30]}
                rows = [row | box for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(source: Path, out: Path, *more: str) -> int:
    return compose(["--source", str(source), "--out", str(out), "--workers", "1", *more])


def mixture(out: Path) -> list[dict[str, int]]:
    return [chunk.tasks for chunk in open_stream(out).chunks]


def names(out: Path) -> list[str]:
    paths = sorted((out / "chunks").iterdir())
    return [json.loads(row)["id"] for path in paths for row in path.read_text().splitlines()]


def state(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_a_stated_mixture_is_kept_to_the_sample(tmp_path):
    source = tasks(tmp_path / "tasks", {"a": 10, "b": 10})
    file = state(tmp_path / "m.json", [{"a": 4, "b": 1}, {"b": 5}, {"a": 6}])
    assert run(source, tmp_path / "out", "--mixture", file) == 0
    assert mixture(tmp_path / "out") == [{"a": 4, "b": 1}, {"b": 5}, {"a": 6}]
    assert len(set(names(tmp_path / "out"))) == 16
    stream = open_stream(tmp_path / "out")
    assert [len(stream.test_records(task)) for task in ("a", "b")] == [3, 3]


def test_shares_become_counts_and_the_seed_decides(tmp_path):
    source = tasks(tmp_path / "tasks", {"a": 50, "b": 50})
    file = state(tmp_path / "m.json", {"note": "x", "chunks": [{"chunk": 1, "a": 0.7, "b": 0.3}]})
    for out, seed in (("one", "1"), ("again", "1"), ("two", "2")):
        options = ["--mixture", file, "--size", "20", "--seed", seed]
        assert run(source, tmp_path / out, *options) == 0
        assert mixture(tmp_path / out) == [{"a": 14, "b": 6}]
    assert names(tmp_path / "one") == names(tmp_path / "again") != names(tmp_path / "two")


def test_the_published_mixture_over_all_eleven_tasks(tmp_path):
    source = tasks(tmp_path / "tasks", dict.fromkeys(STRCVIT, 1200))
    out = tmp_path / "out"
    assert run(source, out, "--mixture", "strcvit", "--size", "100") == 0
    found = mixture(out)
    assert [sum(chunk.values()) for chunk in found] == [100] * 25
    for chunk, published in zip(found, strcvit_mixture(), strict=True):
        for group in ("ChartQA", "Fin", "Grounding", "ImageNet", "Places365", "TextCaps"):
            assert abs(chunk.get(group, 0) - published[group] / 20) <= 1
    stream = open_stream(out)
    assert {t: stream.task(t).scorer for t in stream.tasks} == {
        name: task.scorer for name, task in STRCVIT.items()
    }


def test_dirichlet_with_and_without_recurrence(tmp_path):
    source = tasks(tmp_path / "tasks", {"a": 100, "b": 100, "c": 100})
    options = ["--dirichlet", "0.5", "--chunks", "10", "--size", "25", "--seed", "4"]
    assert run(source, tmp_path / "back", *options) == 0
    assert run(source, tmp_path / "once", *options, "--no-recurrence") == 0
    for out in ("back", "once"):
        assert [sum(chunk.values()) for chunk in mixture(tmp_path / out)] == [25] * 10
        assert len(set(names(tmp_path / out))) == 250
    assert any(returns(mixture(tmp_path / "back"), task) for task in "abc")
    assert not any(returns(mixture(tmp_path / "once"), task) for task in "abc")


def returns(chunks: list[dict[str, int]], task: str) -> bool:
    """Whether a task is there, away, and there again."""
    present = "".join("x" if chunk.get(task) else " " for chunk in chunks)
    return " " in present.strip()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("draw", [drawn, without_return])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("alpha", [0.2, 1e-3, 1e-6])  # of small ones float64 holds zeros alone
def test_draws_keep_to_size_and_supply(draw, repeat, alpha, seed):
    have = {"a": 40, "b": 7, "c": 100}
    counts = draw(have, 12, 12, alpha, seed, repeat)
    assert [sum(chunk.values()) for chunk in counts] == [12] * 12
    for task, supply in have.items():
        assert repeat or sum(chunk.get(task, 0) for chunk in counts) <= supply
    if draw is without_return:
        assert not any(returns(counts, task) for task in have)


def test_small_concentrations_give_pure_chunks_of_every_task():
    counts = drawn({"a": 1, "b": 1, "c": 1}, 60, 5, 1e-6, seed=0, repeat=True)
    assert all(list(chunk.values()) == [5] for chunk in counts)
    chunks = Counter(task for chunk in counts for task in chunk)
    assert min(chunks[task] for task in "abc") >= 8  # 20 expected, standard deviation 3.7


REFUSED = {
    "too few": (["--mixture", "M"], [{"a": 30}], "a needs 30, has 10. Add data, make the chunks smaller (--size 10 fits)"),
    "unknown task": (["--mixture", "M"], [{"z": 3}], "the mixture names z, but there is no file for it; give --task z=FILE"),
    "no object": (["--mixture", "M"], [3], "chunk 1: found 3, expected {task: samples}"),
    "no number": (["--mixture", "M"], [{"a": "4"}], "chunk 1: a is '4', expected a number of samples"),
    "negative": (["--mixture", "M"], [{"a": -4}], "chunk 1: a is -4, expected a number of samples"),
    "nothing": (["--mixture", "M"], [{"a": 0}], "chunk 1: holds nothing; leave it out"),
    "shares": (["--mixture", "M"], [{"a": 0.5}], "chunk 1: shares need --size"),
    "empty": (["--mixture", "M"], [], "expected [{\"task\": samples}, ...]"),
    "no chunks": (["--dirichlet", "1"], [], "--dirichlet needs --chunks"),
    "alpha": (["--dirichlet", "0", "--chunks", "2"], [], "--dirichlet 0.0: expected a number above 0"),
    "both": (["--mixture", "M", "--no-recurrence"], [{"a": 1}], "go with --dirichlet: a mixture states both"),
    "too many": (["--dirichlet", "1", "--chunks", "5", "--size", "10"], [], "5 chunks of 10 need 50 samples, there are 20"),
    "task twice": (["--dirichlet", "1", "--chunks", "2", "--task", "a=x", "--task", "a=y"], [], "--task a: given twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_composed_is_refused_in_words(tmp_path, capsys, case):
    options, content, message = REFUSED[case]
    source = tasks(tmp_path / "tasks", {"a": 10, "b": 10})
    file = state(tmp_path / "m.json", content)
    assert run(source, tmp_path / "out", *(file if o == "M" else o for o in options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_samples_of_a_task_are_named(tmp_path, capsys):
    source = tasks(tmp_path / "tasks", {"a": 10, "b": 10})
    with (source / "b.jsonl").open("a") as file:
        file.write('{"question": "x"}\n')
    options = ["--dirichlet", "1", "--chunks", "2", "--size", "5"]
    assert run(source, tmp_path / "out", *options) == 1
    assert "b.jsonl:11: 'question' has no 'answer' beside it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(source, tmp_path / "out", *options, "--skip-bad") == 0
    (left,) = (tmp_path / "out/left_out.jsonl").read_text().splitlines()
    assert json.loads(left)["code"] == "no-answer"


def test_repeat_and_only_present(tmp_path):
    source = tasks(tmp_path / "tasks", {"a": 10})
    file = state(tmp_path / "m.json", [{"a": 30, "z": 5}])
    assert run(source, tmp_path / "out", "--mixture", file, "--only-present", "--repeat") == 0
    found = names(tmp_path / "out")
    assert (len(found), len(set(found))) == (30, 10)


def test_a_killed_composition_goes_on(tmp_path):
    source = tasks(tmp_path / "tasks", {"a": 3000, "b": 3000})
    options = ["--dirichlet", "1", "--chunks", "100", "--size", "50", "--workers", "1"]
    command = [sys.executable, "-m", "data_prep.compose", "--source", str(source), *options]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(killed)], cwd=REPO, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(list((killed / ".partial/chunks").glob("0*.jsonl"))) > 5:
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "stream.json").exists()
    assert run(source, killed, *options) == 0
    assert run(source, tmp_path / "whole", *options) == 0
    assert names(killed) == names(tmp_path / "whole")
    assert run(source, killed, *options) == 0  # and now it is a no-op
