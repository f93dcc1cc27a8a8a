"""What `plan` counts for `tuner.targets` is what the layers of the real architectures take."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from recipes.config.loading import load_recipe
from recipes.config.sizes.base_model import LEFT_OUT, PUBLISHED, model_shape, tuner_size
from strlora_tuner import StrLoraConfig
from strlora_tuner.options import AdapterOptions
from tests.real_shapes.families import FAMILIES, LLAVA, QWEN3_5_9B
from tests.real_shapes.folders import Family

TARGETS = ("all", "attention", "mlp", "gate_up")
each_family = pytest.mark.parametrize("family", FAMILIES, ids=[each.name for each in FAMILIES])


def chosen(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The linear layers of the decoder that the host is told to wrap."""
    pattern = AdapterOptions(targets=targets).host_value("targets")  # type: ignore[arg-type]
    inside = {id(module) for module in model.get_decoder().modules()}  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) in inside
        and (pattern is None or re.fullmatch(pattern, name))
    }


def folder_of(family: Family, config: dict[str, Any], root: Path) -> Path:
    """A folder that says what the model is, without its weights."""
    folder = root / family.name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


@each_family
def test_the_layers_are_those_of_the_published_model(family: Family, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**family.config))
    path = folder_of(family, family.config, tmp_path)
    read = model_shape(load_recipe(family.recipe, [f"model.path={path}"]))
    known = next(shape for name, shape in PUBLISHED.items() if family.name.startswith(name))
    for targets in TARGETS:
        layers = chosen(model, targets).values()
        sizes = Counter((layer.in_features, layer.out_features) for layer in layers)
        for shape in (read, known):
            assert shape is not None
            assert Counter(shape.linears(targets)) == sizes, targets
    # To a tenth of a percent; InternVL's output layer is its own, which its config.json leaves out.
    own = sum(weight.numel() for weight in model.parameters())
    if family.recipe.startswith("internvl"):
        own += model.get_output_embeddings().weight.numel()
    assert known.parameters == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_sizes_that_a_folder_leaves_out_are_those_that_transformers_takes(kind: str) -> None:
    assert LEFT_OUT[kind].items() <= AutoConfig.for_model(kind).to_dict().items()


@pytest.mark.parametrize("family", [LLAVA, QWEN3_5_9B], ids=lambda family: family.name)
def test_what_is_trained_and_stored_is_what_the_adapter_has(family: Family, tmp_path: Path) -> None:
    config = family.configured()
    path = folder_of(family, config, tmp_path)
    base = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    for method, kind in (("lora", LoraConfig), ("strlora", StrLoraConfig)):
        for targets in TARGETS:
            words = [f"model.path={path}", f"method={method}", f"tuner.targets={targets}"]
            recipe = load_recipe(family.recipe, [*words, "tuner.rank=8", "tuner.router_dim=8"])
            options = {
                name: value
                for name, value in vars(recipe.tuner_options).items()
                if name in kind.__dataclass_fields__ and name not in ("rank", "alpha", "dropout")
            }
            names = list(chosen(base, targets))
            adapted = get_peft_model(base, kind(r=8, target_modules=names, **options))
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            stored = get_peft_model_state_dict(adapted, save_embedding_layers=False).values()
            shape = model_shape(recipe)
            assert shape is not None
            size = tuner_size(recipe, shape)
            assert tuple(size) == (trained, sum(tensor.numel() for tensor in stored))
            base = adapted.unload()
