"""Several turns, several samples in a row: what each token is routed by, against single samples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import strlora_tuner
from strlora_tuner.core.instruction.turns import GENERATED, read_turns, sample_starts
from strlora_tuner.core.routing_metrics import routing_metrics
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import (
    BY_ROW,
    END,
    IMAGE,
    PAD,
    STRLORA,
    USER,
    adapted,
    base_model,
    config,
    logits,
)

TUNERS = (STRLORA, *BY_ROW)
FIRST = [5, USER, 11, 12, END, 50, 51, END]
SECOND = [USER, 13, 14, 15, END, 52, END]
THIRD = [USER, 16, END, 53, 54, END]
CLOSE = dict(rtol=1e-4, atol=1e-5)


def numbers(row: list[int], **changes: Any) -> list[int]:
    return read_turns(torch.tensor([row]), config(**changes)).numbers[0].tolist()


@pytest.mark.parametrize(
    ("row", "segments"),
    [
        (FIRST + SECOND + THIRD, [0] * 8 + [1] * 7 + [2] * 6),
        ([PAD, PAD, *FIRST, *SECOND], [0] * 10 + [1] * 7),
        ([USER, 11, END, 50, USER, 12, END, 51], [0] * 4 + [1] * 4),  # an answer without an end
        ([USER, 11, END, USER, 12, END, 51], [0] * 7),  # no answer between two turns
        ([USER, 11, USER, 12, END, 51], [0] * 6),  # a turn that was never closed
        ([5, 6, USER, 11, END], [0] * 5),  # a system's text is no answer
        ([USER, 11, END, GENERATED, GENERATED, USER, 12, END], [0] * 5 + [1] * 3),
        ([50, 51, 52], [0] * 3),
    ],
)
def test_a_segment_begins_where_a_turn_follows_an_answer(row, segments):
    assert numbers(row) == segments
    assert numbers(row, instruction_turns="all") == [0] * len(row)
    assert numbers(row, turn_start=[], turn_end=[]) == [0] * len(row)


def test_marks_of_several_tokens():
    marks = dict(turn_start=[7, 8], turn_end=[9, 10])
    row = [7, 8, 1, 9, 10, 4, 9, 10, 7, 8, 2, 9, 10, 7, 8, 3, 9, 10, 4]
    assert numbers(row, **marks) == [0] * 8 + [1] * 11
    inside = read_turns(torch.tensor([row]), config(**marks)).inside[0]
    assert inside.nonzero().flatten().tolist() == [2, 10, 15]


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        (dict(position_ids=torch.tensor([[0, 1, 2, 0, 1, 0]])), [0, 3, 5]),
        (dict(cu_seq_lens_q=torch.tensor([0, 2, 6], dtype=torch.int32)), [0, 2]),
        # A Qwen-VL's: time, height and width; an image of two by two stands in the second sample.
        (
            dict(
                position_ids=torch.tensor(
                    [[[0, 1, 0, 1, 1, 1]], [[0, 1, 0, 1, 1, 2]], [[0, 1, 0, 1, 2, 1]]]
                )
            ),
            [0, 2],
        ),
        ({}, None),
    ],
)
def test_packed_samples_are_found_as_attention_finds_them(arguments, starts):
    found = sample_starts(arguments, 6)
    assert starts == (None if found is None else found[0].nonzero().flatten().tolist())


@pytest.mark.parametrize("method", TUNERS)
def test_a_later_turn_does_not_move_what_was_before(method):
    """In training as in a chat, in rows of other lengths, with padding on either side."""
    model = adapted(base_model("text"), method, chunk=3).eval()
    rows = [FIRST + SECOND + THIRD, FIRST, [USER, 21, 22, END, 60, END, *SECOND]]
    length = max(map(len, rows))
    for side in ("left", "right"):
        pads = [[PAD] * (length - len(row)) for row in rows]
        both = [p + r if side == "left" else r + p for r, p in zip(rows, pads, strict=True)]
        ids = torch.tensor(both)
        whole = logits(model, {"input_ids": ids, "attention_mask": (ids != PAD).long()})
        for index, row in enumerate(rows):
            start = length - len(row) if side == "left" else 0
            for end in (len(FIRST), len(FIRST + SECOND)):
                alone = torch.tensor([row[:end]])
                wanted = logits(model, {"input_ids": alone, "attention_mask": alone.ne(PAD).long()})
                found = whole[index, start : start + len(row[:end])]
                if row is rows[2] and end == len(FIRST):
                    continue  # that cuts the turn in two
                torch.testing.assert_close(found, wanted[0], **CLOSE)


def test_each_segment_is_routed_by_the_turns_up_to_it():
    model = adapted(base_model("text")).eval()
    ids = torch.tensor([FIRST + SECOND])
    tuner = tuner_of(model)
    logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    found = tuner.routing.instruction("default", torch.zeros(1, 15, 32))
    weight = model.get_input_embeddings().weight.detach()
    means = torch.stack([weight[[11, 12]].mean(0), weight[[11, 12, 13, 14, 15]].mean(0)])
    torch.testing.assert_close(found, tuner.statistics().normalise(means), **CLOSE)


SAMPLES = [FIRST + SECOND, [USER, 21, 22, 23, END, 60, END], THIRD, [5, 6, 7]]


def packed() -> dict[str, torch.Tensor]:
    ids = [token for sample in SAMPLES for token in sample]
    positions = [place for sample in SAMPLES for place in range(len(sample))]
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}


def unpacked() -> dict[str, torch.Tensor]:
    length = max(map(len, SAMPLES))
    ids = torch.tensor([sample + [PAD] * (length - len(sample)) for sample in SAMPLES])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def taught(ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Labels: every token but padding and each sample's first, which nothing precedes."""
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[:, 0] = True
    first = first if positions is None else positions == 0
    return ids.masked_fill((ids == PAD) | first, -100)


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("method", TUNERS)
def test_a_packed_row_trains_as_its_samples_do(method, checkpointing):
    """Loss, gradients, statistics and moving averages of a step; a padding-free batch is a row."""
    first = adapted(base_model("text"), method, chunk=3).train()

    def step(batch: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        model = copy.deepcopy(first)
        if checkpointing is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        labels = taught(batch["input_ids"], batch.get("position_ids"))
        tuner = tuner_of(model)
        tuner.routing.recording = True
        output = model(**batch, labels=labels, use_cache=False)
        output.loss.backward()
        metrics = routing_metrics(tuner)
        grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        # Without an instruction a row is what is averaged over.
        if method in ("moelora", "olora", "same"):
            del metrics["task_entropy"]
        losses = tuner.losses()
        strlora_tuner.after_optimizer_step(model)
        buffers = {k: v.clone() for k, v in model.named_buffers() if "strlora" in k}
        return output.loss.detach(), grads, losses, buffers, metrics

    found, wanted = step(packed()), step(unpacked())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-6)
    assert wanted[1], "nothing was trained"


@pytest.mark.parametrize("name", ["internvl", "gemma3", "qwen_vl"])
def test_packed_images_are_their_own_samples(name):
    """BranchLoRA reads images: each sample's keys come from its own."""
    samples = [[USER, 93, IMAGE, 94, 11, END, 50, END], [USER, 12, 13, END, 51, END]]
    model = adapted(base_model(name), "branchlora").eval()
    tuner = tuner_of(model)
    seen = {}
    for rows in (samples, [samples[0] + samples[1]]):
        length = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
        starts = None
        if len(rows) == 1:
            starts = torch.zeros_like(ids, dtype=torch.bool)
            starts[0, [0, len(samples[0])]] = True
        context = tuner.routing
        context.begin_forward(ids.ne(PAD).long() if starts is None else None, False, starts=starts)
        context.on_prompt(ids, context.look_up(ids))
        x = torch.zeros(*ids.shape, 32)
        context.instruction("default", x)
        seen[len(rows)] = context.image_vectors("default", x)
        context.end_forward()
    torch.testing.assert_close(seen[1], seen[2])
    assert seen[2][0].abs().sum() > 0
    assert seen[2][1].abs().sum() == 0


def refused(model: Any, **arguments: Any) -> str:
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as raised:
        model(**arguments)
    return str(raised.value)


@torch.no_grad()
def cache_of(model: Any, row: list[int]) -> Any:
    return model(input_ids=torch.tensor([row]), use_cache=True).past_key_values


@pytest.mark.parametrize("method", [STRLORA, "smolora", "branchlora"])
def test_what_cannot_be_right_is_refused(method):
    model = adapted(base_model("text"), method).eval()
    cut = cache_of(model, [USER, 11, 12])
    message = refused(model, input_ids=torch.tensor([[13, END]]), past_key_values=cut)
    assert "a user's turn begins in the cache and goes on after it" in message
    system = cache_of(model, [5, 6])
    message = refused(model, input_ids=torch.tensor([SECOND]), past_key_values=system)
    assert "routed without the words that follow" in message
    with model.disable_adapter():
        foreign = cache_of(model, FIRST)
    message = refused(model, input_ids=torch.tensor([SECOND]), past_key_values=foreign)
    assert "holds 8 tokens that this adapter has not read" in message
    told = cache_of(model, FIRST)
    message = refused(model, input_ids=torch.tensor([[USER]]), past_key_values=told)
    assert "a user's turn begins token by token" in message


def test_a_turn_fed_token_by_token_is_refused_however_long_its_mark_is():
    mark = list(range(20, 44))
    model = adapted(base_model("text"), turn_start=mark, turn_end=[END]).eval()
    told = cache_of(model, [*mark, 11, END, 50, END])
    for token in mark[:-1]:
        model(input_ids=torch.tensor([[token]]), past_key_values=told)
    message = refused(model, input_ids=torch.tensor([[mark[-1]]]), past_key_values=told)
    assert "a user's turn begins token by token" in message


def test_the_released_way_and_an_adapter_without_marks_are_refused_on_a_kept_cache():
    for changes, why in (
        (dict(instruction_turns="all"), "instruction_turns = 'all' \\(as released\\)"),
        (dict(turn_start=[], turn_end=[]), "this adapter knows no marks of a user's turn"),
    ):
        model = adapted(base_model("text"), **changes).eval()
        kept = cache_of(model, FIRST)
        whole = torch.tensor([FIRST + SECOND])
        with pytest.raises(RuntimeError, match=why):
            model.generate(input_ids=whole, past_key_values=kept, max_new_tokens=2)
        ids = torch.tensor([FIRST])
        way = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=PAD)
        found = model.generate(input_ids=ids, prompt_lookup_num_tokens=2, **way)
        assert torch.equal(found, model.generate(input_ids=ids, use_cache=False, **way))


def test_engines_with_paged_caches_are_refused():
    model = adapted(base_model("text")).eval()
    for name in ("generate_batch", "init_continuous_batching"):
        with pytest.raises(NotImplementedError, match="cannot run in continuous batching"):
            getattr(model, name)([[USER, 11, END]])
    base = model.unload()
    assert "generate" not in vars(base)
    assert "generate_batch" not in vars(base)


def test_a_deep_copy_of_the_model_generates_by_its_own_adapter():
    model = adapted(base_model("text")).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for _, bank in tuner_of(other).mixtures():
            bank.B.zero_()
    ids = torch.tensor([FIRST[:5]])
    way = dict(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=PAD)
    found = other.generate(input_ids=ids, **way)
    with model.disable_adapter():
        assert torch.equal(found, model.generate(input_ids=ids, **way))
