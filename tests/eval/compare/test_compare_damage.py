"""What is damaged in a run becomes a marked gap, never a number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.files import read_jsonl, write_jsonl
from eval.compare import compare, tables


def _drop_predictions(run: Path) -> None:
    shutil.rmtree(run / "chunks" / "002" / "predictions")


def _double_an_id(run: Path) -> None:
    path = run / "chunks" / "003" / "predictions" / "VQAv2.jsonl"
    lines = read_jsonl(path)
    write_jsonl(path, [*lines, lines[0]])


def _tear_predictions(run: Path) -> None:
    path = run / "chunks" / "003" / "predictions" / "VQAv2.jsonl"
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")


def _lose_a_score(run: Path) -> None:
    """What is written when no sample of a task got an answer: no number."""
    path = run / "matrix.csv"
    rows = [",nan,".join(row.rsplit(",", 2)[::2]) if row.startswith("3,VQAv2") else row
            for row in path.read_text("utf-8").splitlines()]  # fmt: skip
    path.write_text("\n".join(rows) + "\n", "utf-8")
    _fail_answers(run)


def _lose_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()


def _tear_manifest(run: Path) -> None:
    (run / "manifest.json").write_text("{", "utf-8")


def _fail_answers(run: Path) -> None:
    path = run / "chunks" / "003" / "predictions" / "VQAv2.jsonl"
    lines = [line | {"prediction": None, "error": "no memory"} for line in read_jsonl(path)]
    write_jsonl(path, lines)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop_predictions, "002"),
        (_double_an_id, "occurs twice"),
        (_tear_predictions, "not JSON"),
        (_lose_manifest, "manifest.json"),
        (_tear_manifest, "not JSON"),
        (_fail_answers, "prediction file gives nan"),
        (_lose_a_score, "means are over the other tasks"),
    ],
)
def test_damage_becomes_a_marked_gap(
    good: Path, poor: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(poor)
    found = compare([good, poor])
    assert any(words in gap.why for gap in found.gaps), found.gaps
    assert all(gap.what.startswith(("poor", "Streams")) for gap in found.gaps)
    shown = tables.text(found)
    assert "poor: " in shown
    assert found.cell("strlora", "last").value > 0
