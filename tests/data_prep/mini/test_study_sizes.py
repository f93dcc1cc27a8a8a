"""The streams of docs/study.md: what they share with `tiny` and `mini`, and their wordings."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from data_prep.mini.mini_stream import write_mini_stream
from data_prep.mini.mixtures import SIZES, TINY
from data_prep.mini.rendering import draw_samples
from data_prep.mini.tasks import TASKS, Task
from data_prep.mini.wordings import WORDINGS, reworded

# sha256 of stream.json of the recipe `tiny`, which scores in README and docs/results rest on.
GOLDEN_TINY = "a5421ac3a47550306cc835e91109dc54df6387af02dd6f818bdd13eeee76b730"


@pytest.mark.slow
def test_tiny_stays_byte_for_byte(tmp_path: Path) -> None:
    assert write_mini_stream(tmp_path / "tiny", "tiny", workers=2)
    manifest = (tmp_path / "tiny" / "stream.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == GOLDEN_TINY


@pytest.mark.parametrize(("study", "of"), [("tiny-study", "tiny"), ("mini-study", "mini")])
def test_a_study_size_is_its_model_with_more_tests(study: str, of: str) -> None:
    for seed in (0, 11):
        assert SIZES[study].counts(seed) == SIZES[of].counts(seed)
    assert (SIZES[study].test, SIZES[study].wording) == (200, "own")


def test_its_training_samples_and_first_tests_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("tiny", SIZES["tiny"]), ("tiny-study", SIZES["tiny-study"])):
        monkeypatch.setitem(SIZES, name, replace(size, samples=12, test=size.test // 40))
        assert write_mini_stream(tmp_path / name, name, workers=1)
    for chunk in range(1, 9):
        file = f"chunks/{chunk:03d}.jsonl"
        assert (tmp_path / "tiny" / file).read_bytes() == (
            tmp_path / "tiny-study" / file
        ).read_bytes()
    for task in SIZES["tiny"].tasks(0):
        few, more = (
            (tmp_path / n / "test" / f"{task}.jsonl").read_bytes() for n in ("tiny", "tiny-study")
        )
        assert more.startswith(few)
        assert (few.count(b"\n"), more.count(b"\n")) == (2, 5)


def test_orders_and_lengths() -> None:
    assert SIZES["tiny-reversed"].mixture(0) == tuple(reversed(TINY))
    assert SIZES["reversed"].counts(3) == SIZES["mini"].counts(3)[::-1]
    long = SIZES["long"]
    assert len(long.mixture(1)) == 100
    assert long.mixture(1)[:25] == SIZES["mini"].mixture(4), "the first lap"
    assert long.mixture(1)[25:50] == SIZES["mini"].mixture(5), "another drift"
    assert not set(map(str, long.mixture(0))) <= set(map(str, SIZES["mini"].mixture(0)))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_other_wordings_ask_the_same(name: str, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    plain = list(draw_samples(task, "train", 0, 60, 0))
    wordings = defaultdict(set)
    for (_, scene, asked), (_, same, other) in zip(
        plain, draw_samples(task, "train", 0, 60, 0, "several"), strict=True
    ):
        assert scene.image.tobytes() == same.image.tobytes()
        assert (asked.answer, asked.extra) == (other.answer, other.extra)
        wordings[asked.prompt].add(other.prompt)
    most = max(wordings.values(), key=len)
    assert len(most) >= 4, f"one instruction of {name} in {most}"


def test_every_line_of_every_instruction_is_reworded(tasks: dict[str, Task]) -> None:
    """Or is data: an option, or a question of easy-VQA."""
    left = set()
    for name in TASKS:
        for _, _, asked in draw_samples(tasks[name], "train", 0, 200, 0):
            lines = asked.prompt.split("\n")
            known = [any(p.fullmatch(line) for p, _ in WORDINGS) for line in lines]
            if name == "VQAv2":
                known[0] = True
            left |= {line for line, ok in zip(lines, known, strict=True) if not ok}
    assert left == {"A. It rises.", "B. It falls.", "C. It rises, then falls.",
                    "D. It falls, then rises."}  # fmt: skip


def test_groups_are_filled_in() -> None:
    prompt = (
        "Is the object above the ball purple?\nAnswer the question using a single word or phrase."
    )
    found = {reworded(prompt, Random(seed)).split("\n")[0] for seed in range(60)}
    assert found == {
        "Is the object above the ball purple?",
        "Is the thing above the ball coloured purple?",
        "Does the object above the ball have the colour purple?",
        "Is it true that what is above the ball is purple?",
    }
