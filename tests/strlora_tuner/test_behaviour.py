"""What PEFT users expect of a method: every behaviour for every routed tuner.

StrLoRA on four architectures, each folder of strlora_tuner/methods/ on a text model and InternVL.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import strlora_tuner
from strlora_tuner.counting import count_adapter
from strlora_tuner.methods import options_class, tuner_types
from tests.strlora_tuner.models import (
    BY_ROW,
    END,
    GOLDEN,
    HIDDEN,
    LANGUAGE_LINEARS,
    METHODS,
    MODELS,
    PAD,
    SLOW,
    STRLORA,
    USER,
    adapted,
    adapted_linears,
    base_model,
    config,
    for_training,
    golden_rows,
    logits,
    saved_keys,
    with_an_empty_instruction,
)


def table(others, slow=(), methods=METHODS):
    """(method, name): StrLoRA with every architecture, the other methods with `others`."""
    rows = [
        pytest.param(STRLORA, name, marks=pytest.mark.slow if name in slow else ())
        for name in MODELS
    ]
    rows += [(method, name) for method in methods for name in others]
    return pytest.mark.parametrize(("method", "name"), rows)


TABLE = table(["text", "internvl"])
COSTLY_TABLE = table(["text", "internvl"], slow=SLOW)
# An adapter of another size beside the first.
OTHER = {STRLORA: dict(num_experts=2, top_k=1, token_top_k=1)}


@COSTLY_TABLE
def test_save_load_switch_delete_unload(method, name, tmp_path):
    first = adapted(base_model(name), method, seed=1, chunk=3).eval()
    second = adapted(base_model(name), method, seed=5, **OTHER.get(method, {"r": 16})).eval()
    wanted = logits(first), logits(second)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    base = base_model(name)
    plain = logits(base)
    model = PeftModel.from_pretrained(base, str(tmp_path / "a"), adapter_name="one")
    for key, tensor in first.state_dict().items():
        if "strlora_" in key:
            assert torch.equal(model.state_dict()[key.replace("default", "one")], tensor), key
    assert torch.equal(logits(model), wanted[0])
    model.load_adapter(str(tmp_path / "a"), adapter_name="again")
    model.load_adapter(str(tmp_path / "b"), adapter_name="two")
    for adapter, expected in (("two", wanted[1]), ("again", wanted[0]), ("one", wanted[0])):
        model.set_adapter(adapter)
        assert torch.equal(logits(model), expected), adapter
    model.set_adapter("two")
    model.delete_adapter("again")
    assert not any(".again." in key for key in model.state_dict())
    assert torch.equal(logits(model), wanted[1])
    assert torch.equal(logits(model.unload()), plain)
    assert not any("strlora_" in key for key in base.state_dict())


@TABLE
def test_disabled_adapter_is_the_base_bit_for_bit(method, name):
    base = base_model(name)
    wanted = logits(copy.deepcopy(base))
    model = adapted(base, method).eval()
    changed = logits(model)
    assert not torch.equal(changed, wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model), changed)


@TABLE
def test_only_adapter_parameters_train(method, name):
    model = adapted(base_model(name), method).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=100.0)
    model(**for_training(name)).loss.backward()
    optimizer.step()
    strlora_tuner.after_optimizer_step(model)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert all("strlora_" in key for key in moved)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained <= moved, "every trained parameter must move"
    if method == STRLORA:
        for part in ("A", "B", "query", "key", "prototypes", "task", "ema_query", "ema_key"):
            of_part = {key for key in moved if key.endswith(f".default.{part}")}
            assert len(of_part) == 14, f"{part} moved in {len(of_part)} of 14 layers"


@table(["text", "internvl"], slow=SLOW, methods=BY_ROW)
def test_generation_with_left_padding_beams_and_cache_equals_single_prompts(method, name):
    model = adapted(base_model(name), method, chunk=3).eval()
    rows = [[USER, 11, 12, 13, END], [USER, 40, 41, 42, 43, 44, 45, END]]
    settings = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=PAD)

    def generate(ids, **more):
        mask = (ids != PAD).long()
        return model.generate(input_ids=ids, attention_mask=mask, **{**settings, **more})

    single = [generate(torch.tensor([row]))[0, len(row) :].tolist() for row in rows]
    beams = [generate(torch.tensor([r]), num_beams=3)[0, len(r) :].tolist() for r in rows]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    assert generate(ids)[:, length:].tolist() == single
    assert generate(ids, use_cache=False)[:, length:].tolist() == single
    several = generate(ids, num_beams=3, num_return_sequences=2)[:, length:].tolist()
    assert [several[0], several[2]] == beams
    torch.manual_seed(0)
    sampled = generate(ids, do_sample=True, num_return_sequences=2, top_k=1)[:, length:].tolist()
    assert sampled == [single[0], single[0], single[1], single[1]]


@pytest.mark.parametrize("method", BY_ROW)
def test_rows_may_leave_a_batch_while_it_is_decoded(method):
    """What evaluation does with answers that have ended: the others go on unchanged."""
    model = adapted(base_model("text"), method, chunk=3).eval()
    rows = [[USER, 11, 12, 13, END], [USER, 40, 41, 42, END], [USER, 7, 8, 9, END]]
    ids, keep = torch.tensor(rows), torch.tensor([2, 1])
    following = torch.tensor([[21], [22], [23]])

    def step(cache, tokens):
        with torch.no_grad():
            return model(input_ids=tokens, past_key_values=cache, use_cache=True)

    whole = step(step(None, ids).past_key_values, following)
    wanted = step(whole.past_key_values, following).logits[keep]
    cache = step(step(None, ids).past_key_values, following).past_key_values
    cache.batch_select_indices(keep)
    model.base_model.keep_rows(keep)
    torch.testing.assert_close(step(cache, following[keep]).logits, wanted)


@table(["internvl"], slow=SLOW)
def test_low_cpu_mem_usage_loads_the_same(method, name, tmp_path):
    model = adapted(base_model(name), method).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model(name), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded), logits(model))


@table(["internvl"], slow=SLOW)
def test_checkpointing_gives_the_same_gradients(method, name):
    def gradients(reentrant: bool | None) -> tuple[dict, dict]:
        model = adapted(base_model(name), method).train()
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**for_training(name)).loss.backward()
        grads = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
        losses = model.base_model.losses()
        if method == STRLORA:
            counted = model.base_model.statistics()._pending[0]
            assert int(counted) == 3, "instructions must be counted once under checkpointing"
        strlora_tuner.after_optimizer_step(model)
        return grads, {**losses, **{k: v.clone() for k, v in model.named_buffers()}}

    plain, carried = gradients(None)
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    for reentrant in (True, False):
        checkpointed, buffers = gradients(reentrant)
        assert plain.keys() == checkpointed.keys()
        for key, gradient in plain.items():
            torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
        for key, buffer in carried.items():
            torch.testing.assert_close(buffers[key], buffer, msg=key)


@table(["text"], slow=SLOW)
def test_autocast_and_pure_bfloat16_stay_close(method, name):
    def run(model, autocast=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**for_training(name)).loss
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        side = model.base_model.losses() if method == STRLORA else {}
        return torch.stack([loss.detach().float(), *side.values()])

    exact = run(adapted(base_model(name), method).train())
    assert (exact > 0).all()
    near = dict(rtol=0.05, atol=0.02)
    mixed = run(adapted(base_model(name), method).train(), autocast=True)
    torch.testing.assert_close(mixed, exact, **near)
    low = adapted(base_model(name), method).to(torch.bfloat16).train()
    for _, bank in low.base_model.mixtures():
        assert {p.dtype for p in bank.parameters()} == {torch.bfloat16}
        kept = {b.dtype for b in bank.buffers() if b.is_floating_point()}
        assert kept <= {torch.float32}, "what is carried must not be rounded"
    torch.testing.assert_close(run(low), exact, **near)


# The released SAME has none.
@pytest.mark.parametrize("method", BY_ROW)
def test_dropout_acts_in_training_only(method):
    model = adapted(base_model("text"), method, lora_dropout=0.5).train()
    assert not torch.equal(logits(model), logits(model))
    model.eval()
    assert torch.equal(logits(model), logits(model))


@table(["text"], slow=SLOW)
def test_an_empty_instruction_is_no_error(method, name):
    model = adapted(base_model(name), method).train()
    _, loss = with_an_empty_instruction(model, name)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("method", "name"), golden_rows())
def test_saved_keys_and_shapes_are_those_of_the_golden_file(method, name):
    """A change here makes adapters of users unreadable: convert them, then renew the file."""
    assert saved_keys(method, name) == json.loads(GOLDEN.read_text())[f"{method}/{name}"]


@pytest.mark.parametrize("tuner", tuner_types())
def test_counted_sizes_are_the_real_ones(tuner, tmp_path):
    """What `plan` prints: parameters that train, and numbers in the adapter's file."""
    if tuner == "lora":
        model = get_peft_model(base_model("text"), LoraConfig(r=8, target_modules=LANGUAGE_LINEARS))
        options = options_class("lora")(rank=8)
    else:
        model = get_peft_model(base_model("text"), config(tuner))
        options = config(tuner).options()
    model.save_pretrained(tmp_path)
    linears = [(m.in_features, m.out_features) for m in adapted_linears()]
    size = count_adapter(tuner, options, linears, hidden=HIDDEN)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stored = sum(t.numel() for t in load_file(tmp_path / "adapter_model.safetensors").values())
    assert size == (trained, stored)
