"""Which layers are wrapped: those of the language model, unless others are named."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from strlora_tuner.options import AdapterOptions
from tests.strlora_tuner.models import STRLORA, adapted, base_model, logits


def wrapped(model):
    return {name for name, _ in model.base_model.routed_layers()}


@pytest.mark.parametrize("name", ["internvl", "gemma3", "qwen_vl"])
@pytest.mark.parametrize("method", [STRLORA, "moelora"])
def test_all_linear_means_the_language_model(name, method, tmp_path):
    plain = dict(exclude_modules=None)
    model = adapted(base_model(name), method, target_modules="all-linear", **plain).eval()
    names = wrapped(model)
    assert len(names) == 14
    assert all(n.startswith("model.language_model.layers.") for n in names)
    model.save_pretrained(tmp_path)
    assert wrapped(PeftModel.from_pretrained(base_model(name), str(tmp_path))) == names
    capital = adapted(base_model(name), method, target_modules="ALL-Linear", **plain)
    assert wrapped(capital) == names
    some = adapted(
        base_model(name), method, target_modules="all-linear", layers_to_transform=[1], **plain
    )
    assert wrapped(some) == {n for n in names if ".layers.1." in n}


TARGETS = [["q_proj", "v_proj"], r".*\.(q_proj|v_proj)"]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("excluded", [None, ["o_proj"], r".*\.o_proj"])
def test_the_vision_tower_is_wrapped_only_where_it_is_named(targets, excluded, tmp_path):
    with pytest.warns(UserWarning, match=r"outside the language model \(2 in model.vision_tower\)"):
        model = adapted(
            base_model("internvl"), target_modules=targets, exclude_modules=excluded
        ).eval()
    assert len(wrapped(model)) == 4
    assert all("language_model" in n for n in wrapped(model))
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(base_model("internvl"), str(tmp_path))
    assert torch.equal(logits(loaded), wanted)
    asked = adapted(
        base_model("internvl"),
        target_modules=r".*(language_model|vision_tower)\..*\.(q_proj|v_proj)",
        exclude_modules=None,
    )
    assert sum("vision_tower" in n for n in wrapped(asked)) == 2


def llava_model():
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    vision = {"model_type": "clip_vision_model", **sizes, "image_size": 28, "patch_size": 14}
    text = LlamaConfig(**sizes, vocab_size=96)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))


CHOSEN = {
    "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj"},
    "gate_up": {"gate_proj", "up_proj"},
}


@pytest.mark.parametrize("targets", CHOSEN)
@pytest.mark.parametrize("name", ["text", "internvl", "gemma3", "qwen_vl", "llava"])
def test_targets_are_layers_of_the_language_model_for_every_tuner(name, targets):
    pattern = AdapterOptions(targets=targets).host_value("targets")
    base = llava_model() if name == "llava" else base_model(name)
    lora = get_peft_model(base, LoraConfig(r=2, target_modules=pattern))
    host = {n.removesuffix(".lora_A") for n, _ in lora.base_model.model.named_modules()
            if n.endswith(".lora_A")}  # fmt: skip
    base = llava_model() if name == "llava" else base_model(name)
    assert wrapped(adapted(base, target_modules=pattern, exclude_modules=None)) == host
    where = "model.layers." if name == "text" else "model.language_model.layers."
    assert all(n.startswith(where) for n in host)
    assert sorted(n.rsplit(".", 1)[1] for n in host) == sorted([*CHOSEN[targets]] * 2)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ("language_model.model.layers.3.self_attn.q_proj", True),  # InternVL's own code
        ("model.language_model.layers.0.linear_attn.in_proj_qkv", True),  # Qwen3.5
        ("model.language_model.layers.0.linear_attn.conv1d", False),
        ("model.language_model.layers.0.self_attn.q_norm", False),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", False),
        ("model.visual.blocks.0.attn.qkv", False),
    ],
)
def test_attention_by_name(layer, found):
    pattern = AdapterOptions(targets="attention").host_value("targets")
    assert bool(re.fullmatch(pattern, layer)) == found
