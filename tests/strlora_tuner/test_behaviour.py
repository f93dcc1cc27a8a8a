"""What PEFT users expect of a method, on four architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

import strlora_tuner
from tests.strlora_tuner.models import END, IMAGE, MODELS, PAD, USER, adapted, prompts, randomise

ALL = pytest.mark.parametrize("name", list(MODELS))


def logits(model, batch=None):
    batch = batch or prompts()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@ALL
def test_save_and_load_give_every_tensor_and_the_same_output(name, tmp_path):
    model = adapted(MODELS[name]()).eval()
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS[name](), str(tmp_path))
    before, after = model.state_dict(), loaded.state_dict()
    ours = [key for key in before if "strlora_" in key]
    assert sum("ema_query" in key for key in ours) == 14
    assert sum("strlora_statistics" in key for key in ours) == 4
    for key in ours:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=0)


@ALL
def test_disabled_adapter_is_the_base_bit_for_bit(name):
    base = MODELS[name]()
    wanted = logits(copy.deepcopy(base))
    model = adapted(base).eval()
    assert not torch.equal(logits(model), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model.unload()), wanted)


@ALL
def test_only_adapter_parameters_train(name):
    model = adapted(MODELS[name](), task_router="prior").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=100.0)
    batch = prompts()
    if name == "gemma3":
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    model(**batch).loss.backward()
    optimizer.step()
    strlora_tuner.after_optimizer_step(model)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert all("strlora_" in key for key in moved)
    for part in ("A", "B", "query", "key", "prototypes", "task", "ema_query", "ema_key"):
        of_part = {key for key in moved if key.endswith(f".default.{part}")}
        assert len(of_part) == 14, f"{part} moved in {len(of_part)} of 14 layers"


@ALL
def test_output_changes_when_the_instruction_does(name):
    model = adapted(MODELS[name]()).eval()
    batch = prompts()
    plain = logits(model)
    other = torch.randint(2, 80, (3, 5), generator=torch.Generator().manual_seed(9))
    with strlora_tuner.instruction_ids(model, other):
        assert not torch.allclose(logits(model), plain)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    assert batch["input_ids"].shape[0] == 3


@ALL
def test_generation_with_left_padding_beams_and_cache_equals_single_prompts(name):
    model = adapted(MODELS[name]()).eval()
    rows = [[USER, 11, 12, 13, END], [USER, 40, 41, 42, 43, 44, 45, END]]
    settings = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=PAD)
    single = [
        model.generate(
            input_ids=torch.tensor([r]), attention_mask=torch.ones(1, len(r)).long(), **settings
        )[0, len(r) :]
        for r in rows
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(r)) + r for r in rows])
    inputs = dict(input_ids=ids, attention_mask=(ids != PAD).long())
    batched = model.generate(**inputs, **settings)[:, length:]
    assert batched.tolist() == [row.tolist() for row in single]
    uncached = model.generate(**inputs, use_cache=False, **settings)[:, length:]
    assert uncached.tolist() == batched.tolist()
    beams = model.generate(**inputs, num_beams=3, num_return_sequences=2, **settings)
    assert beams.shape[0] == 4


def test_two_adapters_switch_and_one_is_deleted(tmp_path):
    first = adapted(MODELS["text"](), seed=1).eval()
    second = adapted(MODELS["text"](), seed=5, num_experts=2, top_k=1, token_top_k=1).eval()
    wanted = logits(first), logits(second)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    model = PeftModel.from_pretrained(MODELS["text"](), str(tmp_path / "a"), adapter_name="one")
    model.load_adapter(str(tmp_path / "b"), adapter_name="two")
    torch.testing.assert_close(logits(model), wanted[0], rtol=0, atol=0)
    model.set_adapter("two")
    torch.testing.assert_close(logits(model), wanted[1], rtol=0, atol=0)
    model.set_adapter("one")
    torch.testing.assert_close(logits(model), wanted[0], rtol=0, atol=0)
    model.delete_adapter("two")
    assert not any(".two." in key for key in model.state_dict())
    torch.testing.assert_close(logits(model), wanted[0], rtol=0, atol=0)


def test_low_cpu_mem_usage_loads_the_same(tmp_path):
    model = adapted(MODELS["text"]()).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS["text"](), str(tmp_path), low_cpu_mem_usage=True)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_router_gradients(reentrant):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = adapted(MODELS["internvl"](), task_router="prior").train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**prompts()).loss.backward()
        counted = model.base_model.statistics()._pending[0]
        assert int(counted) == 3, "instructions must be counted once under checkpointing"
        return {k: p.grad for k, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    routers = [key for key in plain if key.endswith(".query")]
    assert all(plain[key].abs().sum() > 0 for key in routers)


def test_stability_gradient_is_injected_and_only_into_routers():
    batch = prompts()

    def gradients(weight: float) -> dict[str, torch.Tensor]:
        model = adapted(MODELS["text"](), stability_weight=weight).train()
        model(**batch).loss.backward()
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    without, with_term = gradients(0.0), gradients(5.0)
    for key, gradient in without.items():
        same = torch.allclose(gradient, with_term[key], rtol=1e-5, atol=1e-8)
        assert same == (key.rsplit(".", 1)[-1] not in ("query", "key", "prototypes")), key


def test_inputs_embeds_without_ids_are_refused_not_routed_wrongly():
    model = adapted(MODELS["text"]()).eval()
    logits(model)  # an earlier prompt must not serve
    embeddings = torch.randn(3, 6, 32)
    with pytest.raises(RuntimeError, match="without their token ids"):
        model(inputs_embeds=embeddings)
    with strlora_tuner.instruction_ids(model, torch.tensor([[3, 4], [5, 6], [7, 8]])):
        assert model(inputs_embeds=embeddings).logits.shape[:2] == (3, 6)


def test_an_empty_instruction_gives_no_nan():
    model = adapted(MODELS["text"]()).train()
    ids = torch.tensor([[USER, END, 5, 6], [USER, 9, END, 7]])
    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_several_images_and_text_only_rows_in_one_batch():
    model = adapted(MODELS["internvl"]()).eval()
    rows = [
        [USER, *[IMAGE] * 4, 20, 21, *[IMAGE] * 4, 22, END],
        [USER, 30, 31, 32, END, 33, *[PAD] * 7],
    ]
    ids = torch.tensor(rows)
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            pixel_values=torch.randn(2, 3, 28, 28),
        )
    assert output.logits.isfinite().all()


def test_autocast_and_pure_bfloat16_run():
    model = adapted(MODELS["text"]()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**prompts()).loss
    loss.backward()
    assert torch.isfinite(loss)
    low = adapted(MODELS["text"]()).to(torch.bfloat16).train()
    assert {m.ema_query.dtype for _, m in low.base_model.mixtures()} == {torch.float32}
    low(**prompts()).loss.backward()
    assert all(m.query.grad.isfinite().all() for _, m in low.base_model.mixtures())


def test_merging_is_refused():
    model = adapted(MODELS["text"]())
    for call in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged"):
            call()


def test_state_dict_keys_are_stable():
    keys = {
        k.split(".")[-1] for k in adapted(MODELS["text"]()).state_dict() if "strlora_mixture" in k
    }
    assert keys == {
        "A", "B", "query", "key", "prototypes", "task", "ema_query", "ema_key", "ema_prototypes",
    }  # fmt: skip


def test_released_freezing_stops_both_stages():
    model = adapted(MODELS["text"](), freeze_routers=True).train()
    randomise(model)
    model(**prompts()).loss.backward()
    for _, mixture in model.base_model.mixtures():
        assert mixture.A.grad is not None
        assert mixture.query.grad is None
        assert mixture.task.grad is None
        assert mixture.divergence is None
