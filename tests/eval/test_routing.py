"""Expert use by task, and the mutual information of task and expert set."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from eval.routing import (
    instruction_key,
    joint_table,
    load_routing,
    normalised_mutual_information,
    set_codes,
    task_shares,
)
from eval.stream import load_stream
from tests.eval.make_run import make_stream

SHARES = {"red?": {"VQAv2": 1.0}, "blue?": {"VQAv2": 1.0}, "up?": {"Fin": 1.0}}


def _write(path: Path, instructions: list[dict]) -> Path:
    content = {"layers": ["l0", "l1"], "num_experts": 3, "instructions": instructions}
    path.write_text(json.dumps(content), "utf-8")
    return path


def _entry(text: str, rows: int, pairs: list[tuple[int, int]]) -> dict:
    use = [[0.75 if e == a else 0.25 if e == b else 0.0 for e in range(3)] for a, b in pairs]
    selected = [[1.0 if e in pair else 0.0 for e in range(3)] for pair in pairs]
    return {"text": text, "rows": rows, "use": use, "selected": selected}


def test_shares_are_weighted_by_rows(tmp_path: Path) -> None:
    entries = [
        _entry("<|im_start|> red?\n", 3, [(0, 1), (0, 2)]),
        _entry("blue?", 1, [(1, 0), (0, 2)]),
        _entry("up?", 2, [(2, 1), (0, 2)]),
        _entry("never asked", 5, [(2, 1), (0, 2)]),
    ]
    routing = load_routing(
        _write(tmp_path / "routing.json", entries), SHARES, ["Fin", "VQAv2", "GQA"]
    )
    assert routing.tasks == ["Fin", "VQAv2"]
    np.testing.assert_allclose(routing.use[1, 0], [0.625, 0.375, 0.0])
    np.testing.assert_allclose(routing.selected[0, 0], [0, 1, 1])
    np.testing.assert_allclose(routing.use.sum(axis=-1), 1.0)
    assert (routing.rows, routing.unknown_rows) == (6, 5)
    # Layer 0: the set names the task. Layer 1: one set for all.
    assert routing.nmi.tolist() == pytest.approx([1.0, 0.0])


def test_damaged_routing_is_told(tmp_path: Path) -> None:
    entry = _entry("red?", 1, [(0, 1)])
    with pytest.raises(ValueError, match=r"found shape \(1, 3\), expected \(2, 3\)"):
        load_routing(_write(tmp_path / "routing.json", [entry]), SHARES, ["Fin", "VQAv2"])


def test_set_codes() -> None:
    selected = np.array([[1, 0, 1, 0], [0.9, 0.8, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]])
    assert set_codes(selected).tolist() == [0b0101, 0b0011, 0b0011, 0b1000]


def _slow_nmi(pairs: list[tuple[int, int]]) -> float:
    n = len(pairs)

    def entropy(items: list) -> float:
        return -sum(items.count(x) / n * math.log(items.count(x) / n) for x in set(items))

    tasks, sets = entropy([t for t, _ in pairs]), entropy([s for _, s in pairs])
    return 2 * (tasks + sets - entropy(pairs)) / (tasks + sets)


def test_mutual_information_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pairs = [(int(t), int((t + rng.integers(0, 3)) % 4)) for t in rng.integers(0, 4, 60)]
        weights = np.eye(4)[[t for t, _ in pairs]]
        table = joint_table(weights, np.array([s for _, s in pairs]))
        assert normalised_mutual_information(table) == pytest.approx(_slow_nmi(pairs))


def test_nothing_to_separate_is_nan() -> None:
    assert math.isnan(normalised_mutual_information(np.zeros((0, 0))))
    assert math.isnan(normalised_mutual_information(np.array([[5.0]])))


def test_shared_instructions_are_shared_out(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, ["VQAv2", "Fin"], chunks=1, tests=2)
    path = stream / "test" / "Fin.jsonl"
    shared = "What colour is shape 0? Answer with one word."
    text = path.read_text("utf-8").replace("Does chart 0 rise? A. yes B. no", shared)
    path.write_text(text, "utf-8")
    shares = task_shares(load_stream(stream))
    assert shares[instruction_key(shared)] == {"VQAv2": 0.5, "Fin": 0.5}
    assert shares[instruction_key("Does chart 1 rise? A. yes B. no")] == {"Fin": 1.0}
    assert instruction_key("<image>\n Does  it ? <|im_end|>") == instruction_key("does it?")
