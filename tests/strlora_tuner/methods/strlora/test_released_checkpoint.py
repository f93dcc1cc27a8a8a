"""An adapter that the published code wrote gives, converted, what the published code computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import strlora_tuner
from strlora_tuner.convert import convert

FIXTURE = Path(__file__).parents[3] / "fixtures" / "released_checkpoint"
LAYER = "base_model.model.model.layers.1.self_attn.q_proj."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    target = tmp_path_factory.mktemp("converted")
    convert(FIXTURE / "adapter", target)
    base = AutoModelForCausalLM.from_pretrained(FIXTURE / "base")
    return PeftModel.from_pretrained(base, str(target), is_trainable=True)


@pytest.fixture(scope="module")
def stored():
    return load_file(FIXTURE / "io.safetensors"), json.loads(
        (FIXTURE / "expected.json").read_text()
    )


def test_logits(model, stored):
    tensors, _ = stored
    model.eval()
    with torch.no_grad(), strlora_tuner.instruction_ids(model, tensors["text_ids"]):
        logits = model(tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    torch.testing.assert_close(logits, tensors["logits_eval"], rtol=0, atol=1e-5)


def test_losses_and_gradients(model, stored):
    tensors, expected = stored
    model.train()
    model.zero_grad()
    with strlora_tuner.instruction_ids(model, tensors["text_ids"]):
        names = ("input_ids", "attention_mask", "labels")
        loss = model(**{name: tensors[name] for name in names}).loss
        loss.backward()
    assert loss.item() == pytest.approx(expected["loss_lm"], abs=1e-5)
    found = strlora_tuner.stability_loss(model).item()
    assert found == pytest.approx(expected["loss_stability_times_lambda"], abs=1e-6)

    gradients = load_file(FIXTURE / "gradients_q_proj_layer1.safetensors")
    mixture = model.base_model.model.model.layers[1].self_attn.q_proj.strlora_mixture["default"]
    experts = range(expected["num_experts"])
    wanted = {
        "A": torch.cat([gradients[f"{LAYER}lora_A.loraA.{i}.weight"] for i in experts]),
        "B": torch.cat([gradients[f"{LAYER}lora_B.loraB.{i}.weight"] for i in experts], dim=1),
        "query": gradients[f"{LAYER}lora_attn_wq.weight"],
        "key": gradients[f"{LAYER}lora_attn_wk.weight"],
        "prototypes": gradients[f"{LAYER}lora_attn_expert_proto"],
    }
    for name, gradient in wanted.items():
        torch.testing.assert_close(getattr(mixture, name).grad, gradient, rtol=0, atol=1e-6)
    assert mixture.task.grad is None, "the released stage 1 never trains"


def test_without_moving_average_the_teacher_is_a_copy(tmp_path, stored):
    source = tmp_path / "source"
    shutil.copytree(FIXTURE / "adapter", source)
    (source / "router_distill_ema.bin").unlink()
    convert(source, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(FIXTURE / "base")
    model = PeftModel.from_pretrained(base, str(tmp_path / "out"), is_trainable=True).train()
    tensors, _ = stored
    with strlora_tuner.instruction_ids(model, tensors["text_ids"]):
        model(tensors["input_ids"], attention_mask=tensors["attention_mask"])
    assert strlora_tuner.stability_loss(model).item() == pytest.approx(0, abs=1e-7)
    assert int(model.base_model.statistics().teacher_steps) == 0
