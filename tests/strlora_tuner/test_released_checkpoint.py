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
from strlora_tuner.convert import convert, main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "released_checkpoint"
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.pop(next(k for k in d if "lora_attn_wk" in k)),
            "lora_attn_wk.weight is missing",
        ),
        (lambda d: d.pop(next(k for k in d if "loraB.3" in k)), "lora_B holds experts [0, 1, 2]"),
        (lambda d: d.update({"base_model.model.x.lora_attn_new": torch.ones(1)}), "unknown tensor"),
        (dict.clear, "has a moving average but no layer in adapter_model.bin"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, capsys, change, message):
    source = tmp_path / "source"
    shutil.copytree(FIXTURE / "adapter", source)
    path = source / "adapter_model.bin"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    assert main(["--from", str(source), "--to", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    source = tmp_path / "source"
    shutil.copytree(FIXTURE / "adapter", source)
    torch.save({"a": Payload()}, source / "adapter_model.bin")
    assert main(["--from", str(source), "--to", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "weights-only loader cannot read it" in captured.err
    assert "executed" not in captured.out


def test_remote_code_names_become_native():
    from strlora_tuner.convert import hf_native

    native = hf_native("language_model.model.layers.3.self_attn.q_proj")
    assert native == "model.language_model.layers.3.self_attn.q_proj"
    assert hf_native("mlp1.1.weight") == "model.multi_modal_projector.linear_1.weight"
    assert hf_native("model.layers.0.mlp.up_proj") == "model.layers.0.mlp.up_proj"
