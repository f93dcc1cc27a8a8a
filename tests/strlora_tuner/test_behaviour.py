"""What PEFT users expect of a method: every behaviour on four architectures."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

import strlora_tuner
from tests.strlora_tuner.models import END, MODELS, PAD, USER, adapted, prompts, randomise

ALL = pytest.mark.parametrize("name", list(MODELS))
# The costly rows of the table: two of the architectures in CI's slow part only.
COSTLY = pytest.mark.parametrize(
    "name",
    ["text", "internvl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma3", "qwen_vl"))],
)
GOLDEN = Path(__file__).parents[1] / "fixtures" / "adapter_keys.json"


def logits(model, batch=None):
    batch = batch or prompts()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def training_batch(name):
    batch = prompts()
    if name == "gemma3":
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return batch


@COSTLY
def test_save_load_switch_delete_unload(name, tmp_path):
    first = adapted(MODELS[name](), seed=1).eval()
    second = adapted(MODELS[name](), seed=5, num_experts=2, top_k=1, token_top_k=1).eval()
    wanted = logits(first), logits(second)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    base = MODELS[name]()
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


@ALL
def test_disabled_adapter_is_the_base_bit_for_bit(name):
    base = MODELS[name]()
    wanted = logits(copy.deepcopy(base))
    model = adapted(base).eval()
    changed = logits(model)
    assert not torch.equal(changed, wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model), changed)


@ALL
def test_only_adapter_parameters_train(name):
    model = adapted(MODELS[name](), task_router="prior").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=100.0)
    model(**training_batch(name)).loss.backward()
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
    plain = logits(model)
    other = torch.randint(2, 80, (3, 5), generator=torch.Generator().manual_seed(9))
    with strlora_tuner.instruction_ids(model, other):
        assert not torch.allclose(logits(model), plain)
    assert torch.equal(logits(model), plain)


@COSTLY
def test_generation_with_left_padding_beams_and_cache_equals_single_prompts(name):
    model = adapted(MODELS[name]()).eval()
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


@COSTLY
def test_low_cpu_mem_usage_loads_the_same(name, tmp_path):
    model = adapted(MODELS[name]()).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS[name](), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded), logits(model))


@COSTLY
def test_checkpointing_gives_the_same_gradients(name):
    def gradients(reentrant: bool | None) -> dict[str, torch.Tensor]:
        model = adapted(MODELS[name](), task_router="prior").train()
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**training_batch(name)).loss.backward()
        counted = model.base_model.statistics()._pending[0]
        assert int(counted) == 3, "instructions must be counted once under checkpointing"
        return {k: p.grad for k, p in model.named_parameters() if p.requires_grad}

    plain = gradients(None)
    assert all(plain[key].abs().sum() > 0 for key in plain if key.endswith(".query"))
    for reentrant in (True, False):
        checkpointed = gradients(reentrant)
        assert plain.keys() == checkpointed.keys()
        for key, gradient in plain.items():
            torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-5, atol=1e-7, msg=key)


@COSTLY
def test_autocast_and_pure_bfloat16_stay_close(name):
    batch = training_batch(name)

    def run(model, autocast=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        return torch.stack([loss.detach().float(), strlora_tuner.stability_loss(model)])

    exact = run(adapted(MODELS[name]()).train())
    assert exact[1] > 0
    torch.testing.assert_close(
        run(adapted(MODELS[name]()).train(), autocast=True), exact, rtol=0.05, atol=0.02
    )
    low = adapted(MODELS[name]()).to(torch.bfloat16).train()
    assert {m.ema_query.dtype for _, m in low.base_model.mixtures()} == {torch.float32}
    assert {m.query.dtype for _, m in low.base_model.mixtures()} == {torch.bfloat16}
    torch.testing.assert_close(run(low), exact, rtol=0.05, atol=0.02)


@COSTLY
def test_eval_and_train_are_restored(name):
    model = adapted(MODELS[name]()).train()
    batch = training_batch(name)
    loss, term = model(**batch).loss.item(), strlora_tuner.stability_loss(model).item()
    pending = model.base_model.statistics()._pending[0].clone()
    model.eval()
    assert torch.equal(logits(model), logits(model))
    model.generate(input_ids=batch["input_ids"][:, :3], max_new_tokens=2, pad_token_id=PAD)
    with model.disable_adapter():
        logits(model)
    assert torch.equal(model.base_model.statistics()._pending[0], pending), "frozen in evaluation"
    model.train()
    assert model(**batch).loss.item() == loss
    assert strlora_tuner.stability_loss(model).item() == term
    assert all(module.training for module in model.modules())


@COSTLY
def test_all_user_turns_of_a_conversation_count(name):
    model = adapted(MODELS[name]()).eval()
    ids = torch.tensor([[USER, 11, 12, END, 50, 51, END, USER, 13, 14, 15, END, 52, END]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    conversation = logits(model, batch)
    with strlora_tuner.instruction_ids(model, torch.tensor([[11, 12, 13, 14, 15]])):
        torch.testing.assert_close(logits(model, batch), conversation)
    with strlora_tuner.instruction_ids(model, torch.tensor([[11, 12]])):
        assert not torch.allclose(logits(model, batch), conversation)


@COSTLY
def test_an_empty_instruction_is_the_zero_vector(name):
    model = adapted(MODELS[name]()).train()
    ids = torch.tensor([[USER, END, 5, 6], [USER, 9, END, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    more = {"token_type_ids": torch.zeros_like(ids)} if name == "gemma3" else {}
    loss = model(**batch, **more, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    routing = model.base_model.routing
    assert int(routing.empty_rows) == 1
    assert not routing.instruction("default", torch.zeros(2, 4, 32))[0].any()
    assert int(model.base_model.statistics()._pending[0]) == 1, "an empty one is not counted"
    routing.recording = True
    logits(model.eval(), batch)
    for _, mixture in model.base_model.mixtures():
        gates, kept, *_ = mixture.record
        assert kept[0].tolist() == [True, True, False, False]
        torch.testing.assert_close(gates[0], torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(4, 4))


def saved_keys(name, folder) -> list[str]:
    adapted(MODELS[name]()).save_pretrained(folder)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return sorted(f"{key} {list(file.get_slice(key).get_shape())}" for key in file.keys())  # noqa: SIM118


@ALL
def test_saved_keys_and_shapes_are_those_of_the_golden_file(name, tmp_path):
    """A change here makes adapters of users unreadable: convert them, then renew the file."""
    assert saved_keys(name, tmp_path) == json.loads(GOLDEN.read_text())[name]


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


def test_adapters_of_different_layers_weigh_the_term_by_their_own_number(tmp_path):
    """The term is a mean over the layers of the active adapter."""

    def term(model) -> float:
        model.train()(**prompts())
        return strlora_tuner.stability_loss(model).item()

    few = adapted(MODELS["text"](), seed=3, target_modules=["q_proj"])
    few.save_pretrained(tmp_path)
    wanted = term(few)
    model = adapted(MODELS["text"](), seed=1)
    model.load_adapter(str(tmp_path), adapter_name="few", is_trainable=True)
    model.set_adapter("few")
    assert term(model) == pytest.approx(wanted, rel=1e-5)


def test_released_freezing_stops_both_stages():
    model = adapted(MODELS["text"](), freeze_routers=True).train()
    randomise(model)
    model(**prompts()).loss.backward()
    for _, mixture in model.base_model.mixtures():
        assert mixture.A.grad is not None
        assert mixture.query.grad is None
        assert mixture.task.grad is None
        assert mixture.divergence is None
