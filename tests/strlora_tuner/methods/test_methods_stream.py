"""What methods do from chunk to chunk: loading an adapter, beginning a chunk, coming back to it."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import strlora_tuner
from strlora_tuner.counting import count_adapter
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import (
    END,
    HIDDEN,
    METHODS,
    USER,
    adapted,
    adapted_linears,
    base_model,
    config,
    logits,
    prompts,
)

ALL = pytest.mark.parametrize("method", METHODS)


def begin(folder):
    """Returns the adapter of `folder` as the host loads it for another chunk."""
    torch.manual_seed(7)
    model = PeftModel.from_pretrained(base_model("text"), str(folder), is_trainable=True)
    tuner_of(model).begin_chunk()
    return model.train()


def step(model, seed):
    """One optimizer step with weight decay, as a host takes it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.5)
    model(**prompts(seed=seed)).loss.backward()
    optimizer.step()
    model.zero_grad()
    strlora_tuner.after_optimizer_step(model)


def tensors(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "strlora_" in k}


def stored(folder):
    """Numbers in an adapter's file."""
    return sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())


@ALL
def test_a_second_and_third_chunk_save_and_load_and_grow_as_counted(method, tmp_path):
    adapted(base_model("text"), method).save_pretrained(tmp_path / "1")
    options = config(method).options()
    linears = [(layer.in_features, layer.out_features) for layer in adapted_linears()]
    sizes = [count_adapter(method, options, linears, HIDDEN, chunk) for chunk in (1, 2, 3)]
    assert options.grows == (sizes[0].stored < sizes[1].stored)
    for chunk in (2, 3):
        model = begin(tmp_path / str(chunk - 1))
        step(model, seed=chunk)
        model.save_pretrained(tmp_path / str(chunk))
        loaded = PeftModel.from_pretrained(base_model("text"), str(tmp_path / str(chunk)))
        for key, value in tensors(model).items():
            assert torch.equal(loaded.state_dict()[key], value), key
        assert torch.equal(logits(loaded.eval()), logits(model.eval()))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sizes[chunk - 1] == (trained, stored(tmp_path / str(chunk)))


@ALL
def test_an_interrupted_chunk_goes_on_exactly(method, tmp_path):
    """As the host resumes: it loads the checkpoint as an adapter, then its tensors once more."""
    adapted(base_model("text"), method).save_pretrained(tmp_path / "1")
    model = begin(tmp_path / "1")
    step(model, seed=3)
    model.save_pretrained(tmp_path / "checkpoint")
    checkpoint = str(tmp_path / "checkpoint")
    resumed = PeftModel.from_pretrained(base_model("text"), checkpoint, is_trainable=True)
    resumed.load_adapter(checkpoint, "default", is_trainable=True)
    for key, value in tensors(model).items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert {k for k, p in resumed.named_parameters() if p.requires_grad} == {
        k for k, p in model.named_parameters() if p.requires_grad
    }
    step(model, seed=4)
    step(resumed.train(), seed=4)
    for key, value in tensors(model).items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_olora_starts_a_chunk_where_the_last_one_ended(tmp_path):
    first = adapted(base_model("text"), "olora").eval()
    first.save_pretrained(tmp_path)
    second = begin(tmp_path)
    assert torch.equal(logits(second.eval()), logits(first))
    bank = dict(second.base_model.mixtures())["model.layers.0.mlp.up_proj"]
    old = dict(first.base_model.mixtures())["model.layers.0.mlp.up_proj"]
    assert torch.equal(bank.past_A, old.A)
    assert torch.equal(bank.past_B, old.B)
    step(second.train(), seed=3)
    assert torch.equal(bank.past_A, old.A), "earlier subspaces stay as they are"
    assert second.base_model.losses()["orthogonality_loss"] > 0


def test_olora_keeps_a_new_subspace_orthogonal(tmp_path):
    """With the penalty alone, A leaves the span of the earlier A."""
    adapted(base_model("text"), "olora").save_pretrained(tmp_path)
    model = begin(tmp_path)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    found = []
    for _ in range(40):
        loss = model(**prompts()).loss
        (loss * 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(model.base_model.losses()["orthogonality_loss"]))
    assert found[-1] < found[0] / 20


def used_branches(model, layer="model.layers.0.mlp.up_proj"):
    return dict(model.base_model.mixtures())[layer]


def branch(bank, number):
    return bank.output_weights()[:, number * bank.width : (number + 1) * bank.width].clone()


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_branchlora_freezes_what_a_chunk_used_most(tmp_path, checkpointing):
    model = adapted(base_model("text"), "branchlora").train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    for seed in (3, 4):
        step(model, seed)
    bank = used_branches(model)
    assert int(bank.uses.sum()) == 2 * 3 * 2, "two steps of three prompts, two branches each"
    most = int(bank.uses.argmax())
    kept = branch(bank, most)
    model.save_pretrained(tmp_path)
    second = begin(tmp_path)
    bank = used_branches(second)
    assert bank.frozen_B.shape[1] == bank.width
    assert int(bank.order[0]) == most
    assert int(bank.uses.sum()) == 0
    before = [branch(bank, number) for number in range(8)]
    for seed in (5, 6):
        step(second, seed)  # with weight decay
    assert torch.equal(branch(bank, most), kept), "a frozen branch never moves"
    others = [n for n in range(8) if n != most]
    assert all(not torch.equal(branch(bank, n), before[n]) for n in others)


def test_branchlora_always_leaves_branches_to_train(tmp_path):
    adapted(base_model("text"), "branchlora", frozen_per_chunk=5).save_pretrained(tmp_path)
    for _ in range(3):
        model = begin(tmp_path)
        model.save_pretrained(tmp_path)
    bank = used_branches(model)
    assert bank.frozen_B.shape[1] == 6 * bank.width
    assert bank.past_routers.shape[0] == 3
    step(model, seed=3)


def images(seed):
    """Returns a batch of an InternVL with one image a row, of a brightness of its own."""
    batch = prompts(image_tokens=4)
    torch.manual_seed(seed)
    batch["pixel_values"] = torch.randn(3, 3, 28, 28) + 3 * seed
    return batch


BY_KEYS = pytest.mark.parametrize("method", ["branchlora", "hide_llava"])


@BY_KEYS
def test_a_chunk_is_chosen_by_what_the_image_shows(method):
    """Two chunks with the same instructions and other images."""
    first, second = (images(seed) for seed in (0, 1))
    model = adapted(base_model("internvl"), method).train()
    model(**first).loss.backward()
    strlora_tuner.after_optimizer_step(model)
    tuner_of(model).begin_chunk()
    model(**second).loss.backward()
    strlora_tuner.after_optimizer_step(model)
    model.eval()
    keys = model.base_model.statistics()
    for chunk, batch in enumerate((first, second)):
        with torch.no_grad():
            model(**batch)
        assert keys.choices.tolist() == [chunk] * 3


@BY_KEYS
def test_every_row_of_a_prompt_tells_which_chunk_it_took(method):
    """Three prompts, of which the first two ask what chunk 1 taught."""
    model = adapted(base_model("text"), method).train()
    ids = torch.tensor([[USER, 11, 12, END], [USER, 11, 12, END], [USER, 40, 41, END]])
    for chunk, rows in enumerate((ids[:2], ids[2:])):
        if chunk:
            tuner_of(model).begin_chunk()
        model(input_ids=rows, attention_mask=torch.ones_like(rows), labels=rows).loss.backward()
        strlora_tuner.after_optimizer_step(model)
    with torch.no_grad():
        model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert tuner_of(model).chosen_chunks() == [1, 1, 2]
    assert tuner_of(adapted(base_model("text"), "moelora")).chosen_chunks() is None


def test_hide_llava_weighs_chunks_in_the_last_layer_alone():
    model = adapted(base_model("text"), "hide_llava")
    tops = {name for name, bank in model.base_model.mixtures() if bank.top}
    linears = {name for name, _ in model.base_model.mixtures()}
    assert tops == {name for name in linears if name.startswith("model.layers.1.")}
    assert len(tops) == 7 < len(linears)
    towers = dict(target_modules=r".*vision_tower.*fc1", exclude_modules=None)
    with pytest.raises(ValueError, match="wraps no decoder layer"):
        adapted(base_model("internvl"), "hide_llava", **towers)


def test_hide_llava_trains_every_chunk_from_the_base_and_keeps_the_ones_before(tmp_path):
    first = adapted(base_model("text"), "hide_llava").eval()
    first.save_pretrained(tmp_path)
    second = begin(tmp_path)
    assert torch.equal(logits(second), logits(base_model("text"))), "earlier LoRAs do not act"
    bank = dict(second.base_model.mixtures())["model.layers.0.mlp.up_proj"]
    old = dict(first.base_model.mixtures())["model.layers.0.mlp.up_proj"]
    step(second, seed=3)
    assert torch.equal(bank.past_A, old.A)
    assert torch.equal(bank.past_B, old.B)
    assert bank.B.any()
