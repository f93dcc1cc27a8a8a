"""Replay: the reservoir's probabilities, exact shares under the host's sampler, files, errors."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from recipes.baselines.replay import (
    MEMORY,
    STATE,
    Mixture,
    Reservoir,
    load_reservoir,
    mixed_lines,
    read_lines,
    save_reservoir,
)
from recipes.config.blocks import Replay
from recipes.run_folder.checkpoints import CheckpointError


def line(kind: str, number: int) -> str:
    return json.dumps({"id": f"{kind}-{number}"})


def kind(text: str) -> str:
    return json.loads(text)["id"].split("-")[0]


def test_each_item_is_kept_with_probability_m_over_n() -> None:
    size, items, trials = 5, 20, 4000
    kept: Counter[str] = Counter()
    for seed in range(trials):
        reservoir = Reservoir(size, seed)
        for number in range(items):
            reservoir.offer(str(number))
        assert len(set(reservoir.lines)) == size
        kept.update(reservoir.lines)
    # Five deviations of a binomial around M / n, the same for the first and for the last item.
    deviation = math.sqrt(size / items * (1 - size / items) / trials)
    for number in range(items):
        assert kept[str(number)] / trials == pytest.approx(size / items, abs=5 * deviation), number


def test_what_is_carried_through_files_is_what_would_have_been(tmp_path: Path) -> None:
    whole, carried = Reservoir(7, 3), Reservoir(7, 3)
    for chunk in range(4):
        lines = [line(f"c{chunk}", number) for number in range(11)]
        for text in lines:
            whole.offer(text)
            carried.offer(text)
        hashes = save_reservoir(tmp_path / f"{chunk}", carried)
        carried = load_reservoir(tmp_path / f"{chunk}", hashes)
    assert carried.lines == whole.lines
    assert carried.seen == whole.seen == 44
    assert carried.generator.getstate() == whole.generator.getstate()
    assert carried.size == 7


@pytest.mark.parametrize("name", [MEMORY, STATE])
def test_a_changed_or_missing_memory_is_refused(tmp_path: Path, name: str) -> None:
    reservoir = Reservoir(3, 0)
    for number in range(5):
        reservoir.offer(line("a", number))
    hashes = save_reservoir(tmp_path, reservoir)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-3] + b"1}\n")
    with pytest.raises(CheckpointError, match="was changed after"):
        load_reservoir(tmp_path, hashes)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_reservoir(tmp_path, hashes)


@pytest.mark.parametrize(
    ("batch", "share", "expected"),
    [(32, 0.5, 16), (32, 0.25, 8), (4, 0.75, 3), (30, 0.1, 3), (32, 0.3, None), (4, 0.1, None)],
)
def test_a_share_must_be_a_whole_number_of_samples(
    batch: int, share: float, expected: int | None
) -> None:
    assert Replay(share=share).replayed(batch) == expected


CASES = [  # samples, memory, global batch, replayed, a process's batch, processes, epochs
    (24, 10, 4, 2, 4, 1, 1),
    (23, 10, 4, 2, 2, 1, 1),
    (25, 3, 8, 6, 2, 1, 2),
    (25, 40, 8, 6, 1, 2, 1),
    (13, 5, 8, 4, 2, 2, 3),
    (7, 5, 16, 4, 4, 2, 1),
    (1, 1, 16, 8, 8, 2, 1),
]


@pytest.mark.parametrize(
    ("samples", "memory", "batch", "replayed", "each", "processes", "epochs"), CASES
)
def test_every_global_batch_of_the_hosts_sampler_holds_the_share(
    samples: int, memory: int, batch: int, replayed: int, each: int, processes: int, epochs: int
) -> None:
    shard = pytest.importorskip("swift.dataloader.shard")
    mixture = Mixture(batch, replayed, processes)
    current = [line("new", number) for number in range(samples)]
    old = [line("old", number) for number in range(memory)]
    lines = list(mixed_lines(current, old, mixture, epochs, seed=1))
    batches = list(mixture.batches(samples * epochs))
    assert len(lines) == sum(map(sum, batches))

    accumulation = batch // each // processes
    steps: list[list[str]] = [[] for _ in batches]
    for rank in range(processes):
        sampler = type(
            "Sampler",
            (shard.BatchSamplerShard,),
            {"rank": rank, "world_size": processes},
        )(len(lines), each, shuffle=False, drop_last=False, data_seed=5)
        micro = list(sampler)
        assert -(-len(micro) // accumulation) == len(steps)
        for number, places in enumerate(micro):
            steps[number // accumulation] += [lines[place] for place in places]

    for step in steps[:-1]:
        assert len(step) == batch
        assert [kind(text) for text in step].count("old") == replayed
        if memory >= replayed:
            assert len({text for text in step if kind(text) == "old"}) == replayed
    last = [kind(text) for text in steps[-1]]
    share = Fraction(last.count("old"), len(last))
    assert Fraction(replayed, batch) <= share
    least = math.ceil(last.count("new") * Fraction(replayed, batch - replayed))
    assert least <= last.count("old") < least + processes
    counts = Counter(text for step in steps for text in step if kind(text) == "new")
    assert counts == {text: epochs for text in current}


# Samples, global batch, replayed, epochs, and by hand: own and replayed of each batch.
EQUAL = [
    (12, 4, 2, 1, [(2, 2), (2, 2), (2, 2)]),
    (13, 4, 1, 1, [(3, 1), (3, 1), (3, 1), (0, 1)]),
    (10, 8, 6, 1, [(2, 6), (0, 2)]),
    (7, 4, 2, 2, [(2, 2), (2, 2), (2, 2), (1, 1)]),
    (3, 16, 8, 1, [(1, 2)]),
]


@pytest.mark.parametrize(("samples", "batch", "replayed", "epochs", "expected"), EQUAL)
def test_at_equal_samples_a_chunk_has_the_steps_that_it_has_without_replay(
    samples: int, batch: int, replayed: int, epochs: int, expected: list[tuple[int, int]]
) -> None:
    mixture = Mixture(batch, replayed, processes=2, equal=True)
    assert list(mixture.batches(samples * epochs)) == expected
    current = [line("new", number) for number in range(samples)]
    old = [line("old", number) for number in range(5)]
    lines = list(mixed_lines(current, old, mixture, epochs, seed=1))
    assert len(lines) == samples * epochs
    found = [
        Counter(map(kind, lines[start : start + batch])) for start in range(0, len(lines), batch)
    ]
    assert [(part["new"], part["old"]) for part in found] == expected
    counts = Counter(text for text in lines if kind(text) == "new")
    assert max(counts.values(), default=0) <= epochs


def test_at_equal_samples_every_sample_of_the_chunk_may_be_the_one_that_is_left_out() -> None:
    current = [line("new", number) for number in range(8)]
    old = [line("old", number) for number in range(4)]
    counts: Counter[str] = Counter()
    for seed in range(400):
        counts.update(mixed_lines(current, old, Mixture(4, 2, equal=True), 1, seed))
    # Half of the 8 a time: 200 of 400, within five deviations of a binomial.
    assert all(abs(counts[text] - 200) < 5 * math.sqrt(400 / 4) for text in current)


def test_replayed_samples_come_equally_often_and_in_another_order_each_seed() -> None:
    current = [line("new", number) for number in range(400)]
    old = [line("old", number) for number in range(20)]
    one = list(mixed_lines(current, old, Mixture(8, 4), 1, seed=1))
    counts = Counter(text for text in one if kind(text) == "old")
    deviation = math.sqrt(400 * (1 / 20) * (19 / 20))
    assert all(abs(count - 20) < 5 * deviation for count in counts.values())
    assert one == list(mixed_lines(current, old, Mixture(8, 4), 1, seed=1))
    assert one != list(mixed_lines(current, old, Mixture(8, 4), 1, seed=2))
    places = [place for place, text in enumerate(one[:80]) if kind(text) == "old"]
    assert len({place % 8 for place in places}) > 4, "replayed samples must not sit in fixed places"


def test_a_memory_smaller_than_its_part_of_a_batch_repeats() -> None:
    old = [line("old", 0), line("old", 1)]
    current = [line("new", number) for number in range(3)]
    batch = list(mixed_lines(current, old, Mixture(8, 5), 1, seed=0))
    counts = Counter(text for text in batch if kind(text) == "old")
    assert sorted(counts.values()) == [2, 3]


def test_the_file_is_the_same_again(tmp_path: Path) -> None:
    chunk = tmp_path / "chunk.jsonl"
    text = '{"id": "new-é\u2028"}\n\n{"id": "new-1"}'  # a blank line, no end, a Unicode separator
    chunk.write_text(text, encoding="utf-8")
    reservoir = Reservoir(2, 0)
    reservoir.offer(line("old", 0))
    first, again = (
        list(mixed_lines(read_lines(chunk), reservoir.lines, Mixture(2, 1), 1, seed=9))
        for _ in range(2)
    )
    assert first == again
    assert Counter(map(kind, first)) == {"new": 2, "old": 2}
