"""What methods do from chunk to chunk: loading an adapter, beginning a chunk, coming back to it."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import strlora_tuner
from strlora_tuner.api import tuner_of
from tests.strlora_tuner.methods import adapted, base_model
from tests.strlora_tuner.models import prompts
from tests.strlora_tuner.test_methods_behaviour import logits

GROWING = pytest.mark.parametrize("method", ["olora"])


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


@GROWING
def test_a_second_and_third_chunk_save_and_load(method, tmp_path):
    adapted(base_model("text"), method).save_pretrained(tmp_path / "1")
    for chunk in (2, 3):
        model = begin(tmp_path / str(chunk - 1))
        step(model, seed=chunk)
        model.save_pretrained(tmp_path / str(chunk))
        loaded = PeftModel.from_pretrained(base_model("text"), str(tmp_path / str(chunk)))
        for key, value in tensors(model).items():
            assert torch.equal(loaded.state_dict()[key], value), key
        assert torch.equal(logits(loaded.eval()), logits(model.eval()))


@GROWING
def test_an_interrupted_chunk_goes_on_exactly(method, tmp_path):
    """As the host resumes: the adapter of the chunk before, then the checkpoint's tensors."""
    adapted(base_model("text"), method).save_pretrained(tmp_path / "1")
    model = begin(tmp_path / "1")
    step(model, seed=3)
    model.save_pretrained(tmp_path / "checkpoint")
    resumed = begin(tmp_path / "1")
    resumed.load_adapter(str(tmp_path / "checkpoint"), "default", is_trainable=True)
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
