"""What StrLoRA alone promises: its instruction, its statistics, its regulariser."""

from __future__ import annotations

import pytest
import torch

import strlora_tuner
from tests.strlora_tuner.models import (
    END,
    MODELS,
    PAD,
    SLOW,
    USER,
    adapted,
    base_model,
    for_training,
    logits,
    prompts,
    randomise,
    with_an_empty_instruction,
)

ALL = pytest.mark.parametrize("name", MODELS)
COSTLY = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS]
)


@ALL
def test_output_changes_when_the_instruction_does(name):
    model = adapted(base_model(name)).eval()
    plain = logits(model)
    other = torch.randint(2, 80, (3, 5), generator=torch.Generator().manual_seed(9))
    with strlora_tuner.instruction_ids(model, other):
        assert not torch.allclose(logits(model), plain)
    assert torch.equal(logits(model), plain)


@COSTLY
def test_eval_and_train_are_restored(name):
    model = adapted(base_model(name)).train()
    batch = for_training(name)
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
def test_as_released_padding_counts_in_training_and_no_answer_depends_on_its_batch(name):
    """Published checkpoints were evaluated one prompt at a time, where nothing is padded."""
    model = adapted(base_model(name), padding="include", instruction_norm="none").eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] = 1.0
    rows = [[USER, 11, 12, 13, END], [USER, 40, 41, 42, 43, 44, 45, END]]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])

    def last(ids):
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, -1]

    alone = torch.cat([last(torch.tensor([row])) for row in rows])
    torch.testing.assert_close(last(ids), alone, rtol=1e-4, atol=1e-4)
    model.train()
    assert not torch.allclose(last(ids)[0], alone[0], rtol=1e-3, atol=1e-3)


@COSTLY
def test_as_released_all_user_turns_of_a_conversation_count(name):
    """A later turn then moves the answer before it, which in a chat it cannot."""
    model = adapted(base_model(name), instruction_turns="all").eval()
    first = [USER, 11, 12, END, 50, 51, END]
    ids = torch.tensor([[*first, USER, 13, 14, 15, END, 52, END]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    conversation = logits(model, batch)
    with strlora_tuner.instruction_ids(model, torch.tensor([[11, 12, 13, 14, 15]])):
        torch.testing.assert_close(logits(model, batch), conversation)
    with strlora_tuner.instruction_ids(model, torch.tensor([[11, 12]])):
        assert not torch.allclose(logits(model, batch), conversation)
    alone = {name: value[:, : len(first)] for name, value in batch.items()}
    assert (logits(model, alone) - conversation[:, : len(first)]).abs().max() > 0.01


@COSTLY
def test_an_empty_instruction_is_the_zero_vector(name):
    model = adapted(base_model(name)).train()
    batch, _ = with_an_empty_instruction(model, name)
    routing = model.base_model.routing
    assert int(routing.empty_rows) == 1
    assert not routing.instruction("default", torch.zeros(2, 4, 32))[0].any()
    assert int(model.base_model.statistics()._pending[0]) == 1, "an empty one is not counted"
    routing.recording = True
    logits(model.eval(), batch)
    for _, mixture in model.base_model.mixtures():
        gates, kept, *_ = mixture.recorded
        assert kept[0].tolist() == [True, True, False, False]
        torch.testing.assert_close(gates[0], torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(4, 4))


@pytest.mark.parametrize("compared", ["scores", "gate", "gate_topk"])
def test_stability_gradient_is_injected_and_only_into_routers(compared):
    batch = prompts()
    held = ("query", "key", "prototypes") + (("task",) if compared != "scores" else ())

    def gradients(weight: float) -> dict[str, torch.Tensor]:
        options = {"stability_weight": weight, "stability_on": compared}
        model = adapted(base_model("text"), **options).train()
        model(**batch).loss.backward()
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    without, with_term = gradients(0.0), gradients(5.0)
    for key, gradient in without.items():
        same = torch.allclose(gradient, with_term[key], rtol=1e-5, atol=1e-8)
        assert same == (key.rsplit(".", 1)[-1] not in held), key


def test_inputs_embeds_without_ids_are_refused_not_routed_wrongly():
    model = adapted(base_model("text")).eval()
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

    few = adapted(base_model("text"), seed=3, target_modules=["q_proj"])
    few.save_pretrained(tmp_path)
    wanted = term(few)
    model = adapted(base_model("text"), seed=1)
    model.load_adapter(str(tmp_path), adapter_name="few", is_trainable=True)
    model.set_adapter("few")
    assert term(model) == pytest.approx(wanted, rel=1e-5)


def test_released_freezing_stops_both_stages():
    model = adapted(base_model("text"), freeze_routers=True).train()
    randomise(model)
    model(**prompts()).loss.backward()
    for _, mixture in model.base_model.mixtures():
        assert mixture.A.grad is not None
        assert mixture.query.grad is None
        assert mixture.task.grad is None
        assert mixture.divergence is None
