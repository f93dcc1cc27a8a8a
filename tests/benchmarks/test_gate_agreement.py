"""The share of equal gates inside a task and between tasks, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.fixed_gates.gate_agreement import BASE, Embedder, agreement, texts_of


def test_shares_of_equal_gates_by_hand() -> None:
    gates = torch.tensor([
        [1.0, 1, 1, 1],  # a
        [1.0, 1, 1, -1],  # a: 3 of 4 equal
        [1.0, -1, -1, -1],  # b: 1 and 2 of 4 equal to those of a
        [-1.0, -1, -1, 1],  # c: 1 and 0 of a, 2 of b
    ])  # fmt: skip
    inside, nearest = agreement(gates, ["a", "a", "b", "c"])
    assert inside["a"] == 0.75
    assert math.isnan(inside["b"]), "one prompt has no other"
    assert nearest == {"a": 0.375, "b": 0.5, "c": 0.5}
    # Gates of top-k are E / k or 0: kept and not kept are the two values.
    assert agreement((gates > 0) * 2.0, ["a", "a", "b", "c"])[1] == nearest


def test_a_text_is_the_mean_of_its_tokens(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "<image>What is this?"}]}\n\n')
    (text,) = texts_of(file)
    assert text == "What is this?"
    embedder = Embedder(BASE)
    ids = embedder.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = sum(embedder.table[i] for i in ids) / len(ids)
    assert embedder.vectors([text, text])[1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
