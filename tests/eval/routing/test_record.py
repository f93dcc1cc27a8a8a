"""Routing by task, mutual information of task and expert set, and what is drawn from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_prep.stream import open_stream
from eval.routing import diagnosis
from eval.routing.record import (
    instruction_key,
    load_routing,
    normalised_mutual_information,
    task_shares,
    write_probe,
)
from tests.eval.make_run import make_stream

TASKS = ["Fin", "VQAv2", "GQA"]


def _group(name: str, rows: float, use: list, sets: list[dict[str, float]]) -> dict:
    kept = [[sum(w for m, w in s.items() if int(m) >> e & 1) for e in range(3)] for s in sets]
    entropies = {"task_entropy": [0.5, 1.0], "token_entropy": [0.1, 0.2]}
    return {"name": name, "rows": rows, "use": use, "selected": kept, "sets": sets, **entropies}


def _content(**changes: object) -> dict:
    """Layer 0: the set names the task. Layer 1: one set for all."""
    groups = [
        _group("VQAv2", 4, [[0.75, 0.25, 0], [0.5, 0.25, 0.25]], [{"3": 1.0}, {"5": 1.0}]),
        _group("Fin", 2, [[0, 0.25, 0.75], [0.25, 0.5, 0.25]], [{"6": 1.0}, {"5": 1.0}]),
        _group("other", 5, [[1, 0, 0], [1, 0, 0]], [{"3": 1.0}, {"5": 1.0}]),
    ]
    content = {
        "format": 2,
        "layers": ["m.layers.0.q_proj", "m.layers.1.q_proj"],
        "num_experts": 3,
        "top_k": 2,
        "rows": 11,
        "groups": groups,
        "cka": [[0.9, 0.1, 0.2], [0.5, 0.3, 0.4]],
        "vector_cosine": [[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]],
        "vector_variance": [0.8, 0.2],
        "instructions": [
            {"text": "red?", "group": "VQAv2", "rows": 4, "vector": [1.0, 2.0]},
            {"text": "never asked", "group": "other", "rows": 5, "vector": [0.0, 0.0]},
        ],
    }
    return content | changes


def _write(folder: Path, content: dict) -> Path:
    path = folder / "routing.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_tasks_in_the_order_asked_for(tmp_path: Path) -> None:
    routing = load_routing(_write(tmp_path, _content()), TASKS)
    assert routing.tasks == ["Fin", "VQAv2"]
    np.testing.assert_allclose(routing.use[1, 0], [0.75, 0.25, 0.0])
    np.testing.assert_allclose(routing.selected[0, 0], [0, 1, 1])
    assert (routing.rows, routing.unknown_rows) == (6, 5)
    assert routing.nmi.tolist() == pytest.approx([1.0, 0.0])
    # Pairs stand in the file's order: (VQAv2, Fin), (VQAv2, other), (Fin, other).
    np.testing.assert_allclose(routing.cka, [[[1, 0.9], [0.9, 1]], [[1, 0.5], [0.5, 1]]])
    assert [i.task for i in routing.instructions] == ["VQAv2"]


def test_not_a_number_is_a_gap_not_a_zero(tmp_path: Path) -> None:
    content = _content()
    content["groups"][0]["use"][1] = [None, None, None]
    routing = load_routing(_write(tmp_path, content), TASKS)
    assert np.isnan(routing.use[1, 1]).all()
    # The other layer still tells how much the two tasks share.
    assert diagnosis.overlap(routing.use)[0, 1] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "format: found 1, expected 2; evaluate again"),
        ({"num_experts": 4}, r"found shape \(2, 2, 3\), expected \(2, 2, 4\)"),
        ({"cka": [[0.9], [0.5]]}, "cka: found 1 pairs, expected 3"),
        ({"layers": ["one"]}, "expected"),
    ],
)
def test_damaged_routing_is_told(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_routing(_write(tmp_path, _content(**changes)), TASKS)


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
        table = np.zeros((4, 4))
        for task, kept in pairs:
            table[task, kept] += 1
        assert normalised_mutual_information(table) == pytest.approx(_slow_nmi(pairs))


def test_nothing_to_separate_is_nan() -> None:
    assert math.isnan(normalised_mutual_information(np.zeros((0, 0))))
    assert math.isnan(normalised_mutual_information(np.array([[5.0]])))


def test_overlap_of_three_tasks() -> None:
    use = np.array([[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 1.0]]])  # shared: 0.5, 0, and 0.5
    np.testing.assert_allclose(diagnosis.overlap_with_others(use), [0.25, 0.5, 0.25])
    assert np.isnan(diagnosis.overlap_with_others(use[:1])).all(), "no other task"


def test_overlap_and_drift(tmp_path: Path) -> None:
    first = load_routing(_write(tmp_path, _content()), TASKS)
    # Layer 0 shares 0.25, layer 1 shares 0.25 + 0.25 + 0.25.
    np.testing.assert_allclose(diagnosis.overlap(first.use), [[1, 0.5], [0.5, 1]])
    assert diagnosis.off_diagonal(diagnosis.overlap(first.use)) == pytest.approx(0.5)
    moved = _content()
    moved["groups"][0]["use"] = [[0.25, 0.75, 0], [0.5, 0.25, 0.25]]
    del moved["groups"][1:]
    moved |= {"cka": [[], []], "rows": 4}
    second = load_routing(_write(tmp_path, moved), TASKS)
    found = diagnosis.drift({3: first, 5: second}, TASKS)
    assert np.isnan(found[0]).all()
    # VQAv2 moved half its weight in one of two layers; Fin was not recorded the second time.
    assert found[1, 1] == pytest.approx(0.25)
    assert np.isnan(found[1, [0, 2]]).all()


def test_changes_of_kept_sets(tmp_path: Path) -> None:
    def course(*chunks: dict[str, tuple[int, list]]) -> dict:
        """Chunks, each as {text: (rows, kept sets)}; every text is one of VQAv2."""
        found = {}
        for number, texts in enumerate(chunks):
            instructions = [
                {"text": text, "group": "VQAv2", "rows": rows, "vector": [0.0], "kept": kept}
                for text, (rows, kept) in texts.items()
            ]
            path = _write(tmp_path, _content(instructions=instructions))
            found[2 * number + 1] = load_routing(path, TASKS)
        return found

    before = {"red?": (3, [3, 5]), "blue?": (1, [3, None]), "gone": (9, [3, 3])}
    after = {"red?": (3, [3, 6]), "blue?": (1, [5, 5]), "new": (9, [6, 6])}
    changed = diagnosis.kept_changes(course(before, after, after), TASKS)
    assert np.isnan(changed[0]).all()
    # red? counts three times in both layers, blue? once in the first alone: 3 + 1 of 7 moved.
    np.testing.assert_allclose(changed[:, 1], [np.nan, 4 / 7, 0.0])
    assert np.isnan(changed[:, [0, 2]]).all()
    old = _write(tmp_path, _content())  # a record of before there was the list
    pair = {1: load_routing(old, TASKS), 2: course(before)[1]}
    assert np.isnan(diagnosis.kept_changes(pair, TASKS)).all()


def test_shared_instructions_are_shared_out(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, ["VQAv2", "Fin"], chunks=1, tests=2)
    path = stream / "test" / "Fin.jsonl"
    shared = "What colour is shape 0? Answer with one word."
    text = path.read_text("utf-8").replace("Does chart 0 rise? A. yes B. no", shared)
    path.write_text(text, "utf-8")
    shares = task_shares(open_stream(stream), ["VQAv2", "Fin"])
    assert shares[instruction_key(shared)] == {"VQAv2": 0.5, "Fin": 0.5}
    assert shares[instruction_key("Does chart 1 rise? A. yes B. no")] == {"Fin": 1.0}
    assert instruction_key("<image>\n Does  it ? <|im_end|>") == instruction_key("does it?")
    write_probe(stream, ["VQAv2", "Fin"], tmp_path / "probe.json")
    assert json.loads((tmp_path / "probe.json").read_text("utf-8"))["texts"] == shares
