"""Plain lines are sparse and say chunk, step, loss and time left."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from eval.charts.figure import duration
from recipes.run import terminal as module
from recipes.run.runner import ChunkPlan, what_is_ahead
from recipes.run.terminal import Ahead, Progress, score_text
from recipes.run_folder.state import ChunkRecord, RunState


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def plain(out: io.StringIO) -> Progress:
    return Progress("toy", 4, Console(file=out, force_terminal=False, width=200))


def test_plain_lines_are_throttled(
    out: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    metrics = tmp_path / "logging.jsonl"
    with plain(out) as progress:
        progress.ahead = lambda: Ahead(3, 3, 90.0, 40.0)
        progress.begin(2, "train", "training on 8 samples")
        tick = progress.watch_training(metrics)
        for step in range(1, 101):
            row = {"loss": 1 / step, "global_step/max_steps": f"{step}/100"}
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            now += 1.0
            tick()
    lines = out.getvalue().splitlines()
    loss = sum(1 / step for step in range(6, 16)) / 10  # of the last ten steps
    assert lines[0] == "[toy] chunk 2/4 training on 8 samples"
    assert len(lines) <= 1 + 100 / module.PLAIN_SECONDS
    assert lines[1].startswith(
        f"[toy] chunk 2/4 training step 15/100, loss {loss:.4f}, about 6 min 25 s left"
    )  # 85 s of this training, 2 more of 90 s, 3 evaluations of 40 s


def test_the_time_left_follows_what_is_done_now(
    out: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that takes longer than any before; times worked by hand."""
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n" * 10, encoding="utf-8")  # of an evaluation that was interrupted
    with plain(out) as progress:
        assert progress.seconds_left() is None
        progress.ahead = lambda: Ahead(2, 3, 100.0, 50.0)
        progress.begin(2, "evaluate", "evaluating")
        tick = progress.watch_answers(answers, total=50)
        assert progress.seconds_left() == 50 + 2 * 100 + 2 * 50
        now += 20
        tick()
        assert progress.seconds_left() == 30 + 2 * 100 + 2 * 50
        for _ in range(3):  # 10 answers in 60 s
            now += 60
            with answers.open("a", encoding="utf-8") as file:
                file.write("{}\n" * 10)
            tick()
        assert progress.seconds_left() == 10 * 6 + 2 * 100 + 2 * 50
        now += 600  # the machine is busy with something else: the speed seen is lower
        assert progress.seconds_left() == 10 * 26 + 2 * 100 + 2 * 50


def test_the_first_activities_tell_their_own_time(
    out: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    metrics = tmp_path / "logging.jsonl"
    with plain(out) as progress:
        progress.ahead = lambda: Ahead(4, 4, None, 30.0)  # the base model was evaluated
        progress.begin(1, "train", "training")
        assert progress.seconds_left() is None
        tick = progress.watch_training(metrics)
        for step in (1, 11):
            now += 10
            row = {"loss": 1.0, "global_step/max_steps": f"{step}/21"}
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            tick()
        # 10 s for the 10 steps left, and three trainings of 20 + 10 s
        assert progress.seconds_left() == 10 + 3 * 30 + 4 * 30


def test_what_is_ahead_is_read_from_the_state() -> None:
    records = [
        ChunkRecord(0, evaluated=True, eval_seconds=9.0),
        ChunkRecord(1, trained=True, train_seconds=50.0),
        ChunkRecord(2, trained=True, evaluated=True, train_seconds=70.0, eval_seconds=11.0),
        ChunkRecord(3),
    ]
    plan = [ChunkPlan(n, n > 0, n % 2 == 0) for n in range(7)]
    assert what_is_ahead(RunState(records, done=2), plan) == Ahead(4, 2, 60.0, 10.0)
    assert what_is_ahead(RunState(), plan[:1]) == Ahead(0, 1, None, None)


def test_a_half_written_row_is_not_read(out: io.StringIO, tmp_path: Path) -> None:
    metrics = tmp_path / "logging.jsonl"
    metrics.write_text(
        '{"loss": 2.5, "global_step/max_steps": "3/9"}\n{"loss": 1', encoding="utf-8"
    )
    with plain(out) as progress:
        progress.watch_training(metrics)()
        assert (progress.activity.step, progress.activity.loss) == (3, 2.5)


def test_answers_are_counted_in_the_result_file(out: io.StringIO, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    with plain(out) as progress:
        progress.begin(1, "evaluate", "evaluating")
        tick = progress.watch_answers(answers, total=40)
        tick()
        assert progress.activity.steps == 0
        for text, count in (("{}\n{}\n", 2), ('{"a', 2), ('": 1}\n', 3), ("", 3)):
            with answers.open("a", encoding="utf-8") as file:
                file.write(text)
            tick()
            assert (progress.activity.step, progress.activity.steps) == (count, 40)


def test_a_terminal_gets_a_panel(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Progress("toy", 4, console) as progress:
        progress.scores = {"Fin": 0.5}
        progress.begin(1, "evaluate", "evaluating")
        progress.watch_answers(tmp_path / "none.jsonl", total=4)()
    assert "Fin 50.0" in out.getvalue()


def test_a_terminal_wraps_at_words_and_shows_a_bar(tmp_path: Path) -> None:
    out = io.StringIO()
    scores = {f"Task{n:02d}": n / 11 for n in range(11)}
    with Progress("toy", 4, Console(file=out, force_terminal=True, width=40)) as progress:
        progress.say(score_text(scores, scores))
    words = score_text(scores, scores).split()
    plain_text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line for line in plain_text.splitlines() if "Task" in line]
    assert len(lines) > 5
    assert all(word in words for line in lines for word in line.split() if "Task" in word)
    assert all(len(line.rstrip()) <= 40 for line in lines)
    out = io.StringIO()
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n{}\n", "utf-8")
    with Progress("toy", 4, Console(file=out, force_terminal=True, width=120)) as progress:
        progress.begin(1, "evaluate", "evaluating")
        progress.watch_answers(answers, total=4)()
    assert "━" * 11 in out.getvalue()


def test_durations_and_scores() -> None:
    assert [duration(s) for s in (0.4, 59.4, 65, 7800)] == [
        "0 s",
        "59 s",
        "1 min 05 s",
        "2 h 10 min",
    ]
    assert score_text({"Fin": 0.5, "GQA": 0.25}) == "Fin 50.0, GQA 25.0 | mean 37.5"
    assert score_text({}) == "none"
    before = {"Fin": 0.375, "GQA": 0.25}
    changed = score_text({"Fin": 0.5, "GQA": 0.2496}, before)
    assert changed == "Fin 50.0 (+12.5), GQA 25.0 (+0.0) | mean 37.5 (+6.2)"
    # A task that is new has no change, nor has a mean over other tasks.
    assert score_text({"Fin": 0.5, "RS": 0.1}, before) == "Fin 50.0 (+12.5), RS 10.0 | mean 30.0"
