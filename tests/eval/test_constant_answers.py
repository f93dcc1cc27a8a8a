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
        write_chunk(folder / chunk["file"], chunk["index"])
    path.write_text(json.dumps(manifest), "utf-8")
    return folder


def write_chunk(path: Path, index: int) -> None:
    """Writes a chunk in which B is the most frequent answer of Fin."""
    path.parent.mkdir(exist_ok=True)
    answers = ["B", "B", "B", "A", "A", "C"] * index
    lines = [
        {"task": "Fin", "id": f"{index}-{n}", "messages": [{"role": "user", "content": "?"},
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


def test_chunks_that_are_gone_leave_no_figure(stream: Path) -> None:
    for path in (stream / "chunks").iterdir():
        path.unlink()
    assert math.isnan(best_constant(open_stream(stream), "Fin"))
