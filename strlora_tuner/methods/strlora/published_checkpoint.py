"""Reading what the published StrLoRA code saved: names, configuration, pickles.

Pickles are read with torch's weights-only loader and nothing else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.options import preset_options

# Remote-code InternVL and Gemma 3 before transformers 4.52 name their parts otherwise than the
# HF-native model of today.
_RENAMES = [
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head$"), "lm_head"),
    (re.compile(r"^mlp1\.0\."), "model.multi_modal_projector.layer_norm."),
    (re.compile(r"^mlp1\.1\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^mlp1\.3\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^multi_modal_projector\."), "model.multi_modal_projector."),
]
ALIGNER = "model.multi_modal_projector"


def hf_native(name: str) -> str:
    """Returns the HF-native name of a module or tensor of the published model."""
    name = name.removeprefix("base_model.model.")
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def read_pickle(path: Path) -> dict[str, Any]:
    """Returns the dict in a pickle of tensors; ValueError when it is damaged or holds code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Damage shows as RuntimeError, UnpicklingError, EOFError and more.
    except Exception as error:
        raise ValueError(
            f"{path}: torch's weights-only loader cannot read it ({error}); take an undamaged copy "
            "of a file that holds tensors only"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    return content


def tensors_of(content: dict[str, Any], where: str) -> dict[str, Tensor]:
    """Returns `content` when it maps names to finite tensors; ValueError names what does not."""
    problems = []
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            problems.append(f"{key}: holds a {type(value).__name__}, expected a tensor")
        elif value.is_floating_point() and not bool(value.isfinite().all()):
            problems.append(f"{key}: holds values that are not finite")
    if problems:
        raise ValueError(f"{where} cannot be converted:\n  " + "\n  ".join(problems))
    return content


def read_averages(path: Path) -> dict[str, dict[str, Tensor]] | None:
    """Returns the moving averages by HF-native module, or None when the run kept none."""
    content = read_pickle(path) if path.is_file() else {}
    averages: dict[str, dict[str, Tensor]] = {}
    for module, values in content.items():
        if not isinstance(values, dict):
            found = type(values).__name__
            raise ValueError(f"{path}: {module} holds a {found}, expected a dict of tensors")
        averages[hf_native(module)] = tensors_of(values, f"{path}: {module}")
    return averages or None


def read_config(source: Path) -> tuple[Options, dict[str, Any]]:
    """Returns our options and the raw published configuration of the adapter in `source`.

    Raises:
        ValueError: the file is missing, no JSON object, lacks a key, or holds a wrong value.
    """
    path = source / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --from must name a published adapter's folder")
    try:
        raw = json.loads(path.read_text())
        keep = raw["topk"]
        values = {
            "rank": raw["r"],
            "alpha": raw["lora_alpha"],
            "dropout": raw.get("lora_dropout", 0.0),
            "num_experts": raw["expert_num"],
            "top_k": keep,
            # Without a second choice the token's weights stay soft inside the first one.
            "token_top_k": min(raw.get("subtopk") or keep, keep),
            "router_dim": raw["attn_proj_dim"],
            "ema_decay": raw.get("sample_router_distill_beta", 0.999),
            "stability_weight": raw.get("sample_router_distill_lambda", 0.1),
            "stability_temperature": raw.get("sample_router_distill_tau", 1.0),
            "freeze_routers": bool(raw.get("freeze_qk", False)),
        }
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not a published StrLoRA configuration ({error})") from error
    except KeyError as error:
        raise ValueError(
            f"{path}: key {error} is missing; expected a published StrLoRA adapter"
        ) from error
    if not values["router_dim"]:
        raise ValueError(
            f"{path}: attn_proj_dim is {values['router_dim']!r}: that variant routes tokens by "
            "lora_sub_router, which this tuner does not have; convert an adapter with a width"
        )
    try:
        return Options(**{**preset_options(Options, "released"), **values}), raw
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_aligner(path: Path) -> dict[str, Tensor]:
    """Returns what the published run trained in full, under HF-native names."""
    content = tensors_of(read_pickle(path), str(path)) if path.is_file() else {}
    native = {hf_native(key): tensor.contiguous() for key, tensor in content.items()}
    unknown = sorted(key for key in native if not key.startswith(f"{ALIGNER}."))
    if unknown:
        raise ValueError(
            f"{path}: {', '.join(unknown)}: only the aligner ({ALIGNER}, mlp1 in remote-code "
            "InternVL) can be carried beside the adapter; the published runs train nothing else"
        )
    return native
