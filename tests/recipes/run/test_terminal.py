"""Plain lines are sparse and say chunk, step, loss and time left."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from recipes.run import terminal as module
from recipes.run.terminal import Progress, duration, score_text


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
        progress.chunk_took(100.0, chunks_left=3)
        progress.begin(2, "train", "training on 8 samples")
        tick = progress.watch_training(metrics)
        for step in range(1, 101):
            row = {"loss": 1 / step, "global_step/max_steps": f"{step}/100"}
            with metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            now += 1.0
            tick()
    lines = out.getvalue().splitlines()
    assert lines[0] == "[toy] chunk 2/4 training on 8 samples"
    assert len(lines) <= 1 + 100 / module.PLAIN_SECONDS
    assert lines[1].startswith(
        "[toy] chunk 2/4 training step 15/100, loss 0.0667, about 4 min 45 s"
    )


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


def test_durations_and_scores() -> None:
    assert [duration(s) for s in (0.4, 59.4, 65, 7800)] == [
        "0 s",
        "59 s",
        "1 min 05 s",
        "2 h 10 min",
    ]
    assert score_text({"Fin": 0.5, "GQA": 0.25}) == "Fin 50.0, GQA 25.0 | mean 37.5"
    assert score_text({}) == "none"
