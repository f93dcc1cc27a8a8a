"""The score of the best constant answer to a task."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from data_prep.stream import open_stream
from eval.constant_answers import best_constant
from tests.eval.make_run import make_stream


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """A stream whose manifest does not tell the constant answers' scores."""
    folder = make_stream(tmp_path / "stream", ["Fin", "TextCaps", "RS"], chunks=2, tests=8)
    path = folder / "stream.json"
    manifest = json.loads(path.read_text("utf-8"))
    for entry in manifest["tasks"].values():
        entry.pop("majority", None)
    for chunk in manifest["chunks"]:
        chunk["file"] = f"chunks/{chunk['index']:03d}.jsonl"
        chunk["tasks"] = {"Fin": 6 * chunk["index"], "TextCaps": 2}
        write_chunk(folder / chunk["file"], ["B", "B", "B", "A", "A", "C"] * chunk["index"])
    path.write_text(json.dumps(manifest), "utf-8")
    return folder


def write_chunk(path: Path, answers: list[str]) -> None:
    """Writes a chunk of Fin."""
    path.parent.mkdir(exist_ok=True)
    lines = [
        {"task": "Fin", "id": f"{path.stem}-{n}", "messages": [{"role": "user", "content": "?"},
         {"role": "assistant", "content": answer}]}
        for n, answer in enumerate(answers)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def golds(folder: Path, task: str) -> list[str]:
    lines = (folder / "test" / f"{task}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def test_the_best_constant_answer_is_found(stream: Path) -> None:
    wanted = golds(stream, "Fin")
    best = max(wanted.count(letter) for letter in "ABC") / len(wanted)
    assert best > 0
    assert best_constant(open_stream(stream), "Fin") == pytest.approx(best)


@pytest.mark.parametrize("period", [None, 1, 2])
def test_the_answers_of_all_chunks_count_and_a_period_has_its_own(
    stream: Path, period: int | None
) -> None:
    """Chunk 1 knows only what is right in five of eight tests, the larger chunk 2 other answers."""
    write_chunk(stream / "chunks/001.jsonl", ["red"] * 6)
    write_chunk(stream / "chunks/002.jsonl", ["green"] * 9 + ["blue"] * 3)
    path = stream / "test/Fin.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for line, gold in zip(lines, ["red"] * 5 + ["blue"] * 3, strict=True):
        line["messages"][-1]["content"] = gold
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    file = stream / "stream.json"
    manifest = json.loads(file.read_text("utf-8"))
    manifest["tasks"]["Fin"] |= {"scorer": "exact"} | ({"chunk": period} if period else {})
    file.write_text(json.dumps(manifest), "utf-8")
    wanted = {None: 5 / 8, 1: 5 / 8, 2: 3 / 8}[period]
    assert best_constant(open_stream(stream), "Fin") == pytest.approx(wanted)


def test_captions_and_untrained_tasks_have_none(stream: Path) -> None:
    opened = open_stream(stream)
    assert math.isnan(best_constant(opened, "TextCaps"))
    assert math.isnan(best_constant(opened, "RS"))


def test_the_manifests_own_figure_is_taken(stream: Path) -> None:
    path = stream / "stream.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["tasks"]["Fin"]["majority"] = 0.125
    path.write_text(json.dumps(manifest), "utf-8")
    assert best_constant(open_stream(stream), "Fin") == 0.125


@pytest.mark.parametrize("gone", [("001",), ("001", "002")])
def test_chunks_that_are_gone_leave_no_figure(stream: Path, gone: tuple[str, ...]) -> None:
    for name in gone:
        (stream / f"chunks/{name}.jsonl").unlink()
    assert math.isnan(best_constant(open_stream(stream), "Fin"))
