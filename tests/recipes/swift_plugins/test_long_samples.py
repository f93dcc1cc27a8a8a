"""What the host's own dataset and template make of samples that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.real_host import BASE

pytest.importorskip("swift")
WORDS = {"short": (3, 1), "long": (400, 1), "long answer": (3, 400)}


def row(kind: str) -> dict[str, Any]:
    question, answer = WORDS[kind]
    turns = zip(("user", "assistant"), (question, answer), strict=True)
    return {"messages": [{"role": role, "content": " red" * count} for role, count in turns]}


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Returns a function: rows of such kinds and what to do -> the host's dataset of them."""
    from swift.dataset.utils import LazyLLMDataset
    from swift.model import get_model_processor
    from swift.template import get_template

    from recipes.swift_plugins import long_samples

    monkeypatch.setattr(LazyLLMDataset, "__getitem__", long_samples.take)
    processor = get_model_processor(str(BASE), load_model=False)[1]
    template = get_template(processor, max_length=128)
    template.set_mode("train")
    monkeypatch.setenv("STRLORA_TOO_LONG_FILE", str(tmp_path / "noted.jsonl"))

    def made(kinds: list[str], policy: str) -> LazyLLMDataset:
        monkeypatch.setenv("STRLORA_TOO_LONG", policy)
        return LazyLLMDataset([row(kind) for kind in kinds], template.encode, strict=True)

    return made


def noted(folder: Path) -> list[tuple[int, int, str]]:
    lines = (folder / "noted.jsonl").read_text(encoding="utf-8").splitlines()
    return [(each["row"], each["of"], each["done"]) for each in map(json.loads, lines)]


def test_skip_takes_the_next_row_and_goes_round(dataset: Any, tmp_path: Path) -> None:
    rows = dataset(["short", "long answer", "long", "short", "long"], "skip")
    short = list(rows[0]["input_ids"])
    assert [list(rows[i]["input_ids"]) for i in (1, 4)] == [short, short]
    assert noted(tmp_path) == [(1, 5, "skip"), (2, 5, "skip"), (4, 5, "skip")]
    with pytest.raises(ValueError, match="all 1 samples have more tokens than max_length"):
        dataset(["long"], "skip")[0]


def test_cut_keeps_the_start_of_the_answer(dataset: Any, tmp_path: Path) -> None:
    rows = dataset(["long answer", "long", "short"], "cut")
    found = rows[0]
    template = rows.encode_func.__self__
    template.max_length = 10_000
    whole = rows.encode_func(row("long answer"))
    template.max_length = 128
    assert list(found["input_ids"]) == list(whole["input_ids"][:128])
    assert list(found["labels"]) == list(whole["labels"][:128])
    assert list(rows[1]["input_ids"]) == list(rows[2]["input_ids"]), "of its answer nothing is left"
    assert noted(tmp_path) == [(0, 3, "cut"), (1, 3, "skip")]
    assert template.truncation_strategy == "raise"


def test_stop_stops(dataset: Any, tmp_path: Path) -> None:
    from swift.template.base import MaxLengthError

    with pytest.raises(MaxLengthError):
        dataset(["short", "long"], "stop")[1]
    assert noted(tmp_path) == [(1, 2, "stop")]
