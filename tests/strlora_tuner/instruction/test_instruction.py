"""Finding the instruction in token ids, and its running statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strlora_tuner import StrLoraConfig
from strlora_tuner.core.instruction.turns import instruction_mask, mean_embedding
from strlora_tuner.methods.strlora.instruction_statistics import PRIOR_COUNT, InstructionStatistics

START, END, IMAGE, PAD = [7, 8], [9], 5, 0


def config(**changes):
    settings = dict(turn_start=START, turn_end=END, ignored_ids=[IMAGE, PAD], target_modules=["x"])
    return StrLoraConfig(**{**settings, **changes})


def inside_by_loop(row: list[int]) -> list[bool]:
    """Marks a user turn by walking through the row."""
    marks, position, within = [False] * len(row), 0, False
    while position < len(row):
        if row[position : position + len(START)] == START:
            within, position = True, position + len(START)
            continue
        if row[position : position + len(END)] == END:
            within = False
        marks[position] = within and row[position] not in (IMAGE, PAD)
        position += 1
    return marks


@pytest.mark.parametrize(
    ("row", "marked"),
    [
        ([7, 8, 1, 2, 9, 3, 9], [2, 3]),  # the answer stays out
        ([0, 0, 7, 8, 5, 5, 1, 9, 3], [6]),  # left padding, image placeholders
        ([7, 8, 1, 9, 4, 9, 7, 8, 2, 9, 4], [2, 8]),  # two user turns
        ([7, 8, 9, 3], []),  # an empty instruction
        ([1, 2, 7, 3], []),  # no user turn at all
        ([1, 9, 2, 7, 8, 3], [5]),  # a closing marker before, none after (cut prompt)
    ],
)
def test_user_turns_are_found(row, marked):
    mask = instruction_mask(torch.tensor([row]), config())
    assert mask[0].nonzero().flatten().tolist() == marked


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 7, 8, 9, IMAGE, PAD]), min_size=2, max_size=24))
def test_the_mask_equals_a_loop(row):
    found = instruction_mask(torch.tensor([row, row[::-1]]), config())
    assert found.tolist() == [inside_by_loop(row), inside_by_loop(row[::-1])]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_row_shorter_than_a_marker_holds_no_turn(length):
    longer = config(turn_start=[7, 8, 7, 8, 7, 8], turn_end=END)
    assert not instruction_mask(torch.tensor([[7, 8, 7, 8, 7][:length]]), longer).any()


def test_without_markers_every_real_token_counts():
    mask = instruction_mask(torch.tensor([[1, 0, 5, 2]]), config(turn_start=[], turn_end=[]))
    assert mask.tolist() == [[True, False, False, True]]


def test_mean_of_an_empty_row_is_zero():
    embeddings = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    mean = mean_embedding(embeddings, mask)
    torch.testing.assert_close(mean[0], (embeddings[0, 0] + embeddings[0, 2]) / 2)
    assert mean[1].tolist() == [0, 0, 0, 0]


def test_statistics_equal_those_of_all_vectors_at_once():
    torch.manual_seed(0)
    vectors = torch.randn(30, 6) * 0.1 + 3.0
    statistics = InstructionStatistics(6)
    for step in vectors.split(10):
        for micro_batch in step.split(5):
            statistics.observe(micro_batch, torch.ones(5, dtype=torch.bool))
        statistics.commit()
    wide = torch.cat([vectors.double(), torch.zeros(PRIOR_COUNT, 6, dtype=torch.float64)])
    mean = wide.mean(0)
    sigma = ((wide - mean) ** 2).mean().sqrt()
    assert int(statistics.count) == 30
    found = statistics.normalise(vectors)
    torch.testing.assert_close(
        found.double(), (vectors.double() - mean) / sigma, rtol=1e-4, atol=1e-4
    )


def test_rows_without_instruction_are_not_counted():
    statistics = InstructionStatistics(2)
    statistics.observe(torch.tensor([[1.0, 1.0], [9.0, 9.0]]), torch.tensor([True, False]))
    statistics.commit()
    assert int(statistics.count) == 1
    assert statistics.mean.tolist() == [1.0, 1.0]


def test_micro_batches_of_one_step_see_the_same_statistics():
    statistics = InstructionStatistics(3)
    probe = torch.randn(2, 3)
    before = statistics.normalise(probe)
    statistics.observe(torch.randn(4, 3), torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(statistics.normalise(probe), before, rtol=0, atol=0)
    statistics.commit()
    assert not torch.allclose(statistics.normalise(probe), before)


def test_one_single_instruction_still_gives_a_direction():
    statistics = InstructionStatistics(4)
    same = torch.tensor([[0.3, -0.2, 0.1, 0.4]])
    for _ in range(200):
        statistics.observe(same, torch.ones(1, dtype=torch.bool))
        statistics.commit()
    centred = statistics.normalise(same)
    assert torch.nn.functional.cosine_similarity(centred, same).item() > 0.999


def test_a_cast_model_keeps_float32_statistics():
    statistics = InstructionStatistics(4).to(torch.bfloat16)
    assert statistics.mean.dtype == statistics.spread.dtype == torch.float32
