"""Small adapters of every method of strlora_tuner/methods/, for the tests.

`python -m tests.strlora_tuner.methods` writes the golden file of their saved keys anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors import safe_open

from strlora_tuner.methods import classes_of, folders
from tests.strlora_tuner.models import END, IMAGE, LANGUAGE_LINEARS, MODELS, PAD, USER

METHODS = folders()
GOLDEN = Path(__file__).parents[1] / "fixtures" / "method_keys.json"
TOKENIZER = Path(__file__).parents[2] / "assets" / "tiny_base"
# What keeps a method's adapter small, over its defaults.
SMALL: dict[str, dict[str, Any]] = {}


def base_model(name: str) -> Any:
    """Returns a tiny model that knows where its tokenizer is."""
    model = MODELS[name]()
    model.config.name_or_path = str(TOKENIZER)
    return model


def method_config(method: str, **changes: Any) -> Any:
    """Returns a small configuration with turn markers; `changes` override it."""
    settings: dict[str, Any] = dict(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=LANGUAGE_LINEARS,
        exclude_modules=r".*(?:vision|visual).*",
        turn_start=[USER],
        turn_end=[END],
        ignored_ids=[PAD, USER, END, IMAGE, 93, 94, 95],
        pad_id=PAD,
    )
    return classes_of(method)[0](**{**settings, **SMALL.get(method, {}), **changes})


def adapted(base: torch.nn.Module, method: str, seed: int = 1, **changes: Any) -> Any:
    """Returns `base` with an adapter of the method whose tensors are random, as after training."""
    torch.manual_seed(seed)
    model = get_peft_model(base, method_config(method, **changes))
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: Any, adapter: str = "default") -> None:
    """Gives every floating-point tensor of the adapter's layers a random value."""
    for _, bank in model.base_model.mixtures(adapter):
        for tensor in bank.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.2)


def saved_keys(method: str) -> list[str]:
    """Returns name and shape of every tensor that an adapter of the method saves."""
    with tempfile.TemporaryDirectory() as folder:
        adapted(base_model("text"), method).save_pretrained(folder)
        with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
            return sorted(f"{key} {file.get_slice(key).get_shape()}" for key in file.keys())  # noqa: SIM118


if __name__ == "__main__":
    content = {method: saved_keys(method) for method in METHODS}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
