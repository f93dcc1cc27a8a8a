"""Which layers are wrapped: those of the language model, unless others are named."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel

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
