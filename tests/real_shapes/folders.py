"""Writes a model folder as the hub has it, with random weights: files, values, weight names.

`publish` puts one of InternVL back into the layout in which its makers publish it.
"""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.real_shapes.vocabularies import Vocabulary

Json = dict[str, Any]
SHARD = "60MB"  # so that there are several, as on the hub
PUBLISHED = (  # transformers' name, the makers' own
    (r"vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"vision_tower\.embeddings\.position_embeddings",
     "vision_model.embeddings.position_embedding"),
    (r"vision_tower\.embeddings\.patch_embeddings\.projection",
     "vision_model.embeddings.patch_embedding"),
    (r"attention\.projection_layer", "attn.proj"), (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"), (r"lambda_([12])", r"ls\1"),
    (r"multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"multi_modal_projector\.linear_1", "mlp1.1"), (r"multi_modal_projector\.linear_2", "mlp1.3"),
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One folder of the hub.

    Attributes:
        name: of the folder, as on the hub.
        recipe: the shipped recipe that trains it.
        vocabulary: its tokenizer.
        config: config.json. small: what CI lays over it.
        files: further JSON files by name.
        prefixes: how the weights' names start in the checkpoint (not in transformers 5).
        tied: whether the output layer is the embedding, so that the checkpoint lacks it.
        tokenizer: what it has beside the package's files: `added` tokens, and settings.
        older: names' starts in transformers 5 and what they were when the checkpoint was saved.
    """

    name: str
    recipe: str
    vocabulary: Vocabulary
    config: Json
    small: Json
    files: dict[str, Json]
    prefixes: tuple[str, ...]
    tied: bool = False
    tokenizer: Json = field(default_factory=dict)
    older: dict[str, str] = field(default_factory=dict)

    def configured(self, full_width: bool = False, layers: int = 2) -> Json:
        """config.json of the folder: narrow, or as wide as published with `layers` layers."""
        config = _over(self.config, self.small)
        if not full_width:
            return config
        config = deepcopy(self.config)
        text = config.get("text_config", config)
        text["num_hidden_layers"] = layers
        text.pop("layer_types", None)
        return config


def _over(values: Json, changes: Json) -> Json:
    """`changes` laid over `values`, block by block."""
    result = deepcopy(values)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _over(result[key], value) if inner else value
    return result


def build(family: Family, folder: Path, seed: int = 0, full_width: bool = False) -> Path:
    """Writes the folder `folder`/NAME of the hub and returns it; one that is there is kept.

    Args:
        family: whose folder.
        folder: where to put it.
        seed: of the random weights.
        full_width: as wide as published, with two layers in the language model.

    Raises:
        Unreachable: its tokenizer cannot be had.
    """
    target = folder / family.name
    if (target / "config.json").is_file():
        return target
    vocabulary, settings = _tokenizer(family)
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "tokenizer.json", vocabulary)
    _write(target / "tokenizer_config.json", settings)
    for name, content in family.files.items():
        _write(target / name, content)
    config = family.configured(full_width)
    _save_weights(family, config, target, seed)
    _write(target / "config.json", config)  # last: a folder with it is whole
    return target


def _save_weights(family: Family, config: Json, target: Path, seed: int) -> None:
    """Saves random weights under the names of the published checkpoint, in shards."""
    _write(target / "config.json", config)
    known = AutoConfig.from_pretrained(target)
    (target / "config.json").unlink()
    known.tie_word_embeddings = family.tied
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(known, dtype=torch.bfloat16)
    kept = {path.name: path.read_bytes() for path in target.iterdir()}
    # Saving takes the names of transformers 5 back to those of the checkpoint.
    model.save_pretrained(target, max_shard_size=SHARD)
    for name, content in kept.items():
        (target / name).write_bytes(content)
    if family.older:
        _rename(target, family.older)


def _rename(target: Path, older: dict[str, str]) -> None:
    """Gives the weights the names that they had in an older transformers."""

    def old(name: str) -> str:
        start = next((start for start in older if name.startswith(start)), "")
        return older.get(start, "") + name.removeprefix(start)

    for shard in target.glob("*.safetensors"):
        save_file({old(k): v for k, v in load_file(shard).items()}, shard, {"format": "pt"})
    index = target / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        weights = {old(name): file for name, file in content["weight_map"].items()}
        _write(index, {**content, "weight_map": weights})


def _tokenizer(family: Family) -> tuple[Json, Json]:
    """tokenizer.json and tokenizer_config.json, with the tokens that the family adds."""
    vocabulary, settings = family.vocabulary.files()
    own = dict(family.tokenizer)
    added = vocabulary["added_tokens"]
    free = 1 + max([token["id"] for token in added] + list(vocabulary["model"]["vocab"].values()))
    for number, text in enumerate(own.pop("added", []), start=free):
        added.append(_added(number, text))
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"][str(number)] = _settings_of(text)
    return vocabulary, {**settings, **own}


def _added(number: int, text: str) -> dict[str, Any]:
    return {"id": number, **_settings_of(text)}


def _settings_of(text: str) -> dict[str, Any]:
    flags = ("lstrip", "normalized", "rstrip", "single_word")
    return {"content": text, **dict.fromkeys(flags, False), "special": True}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def publish(native: Path, target: Path) -> None:
    """Writes the folder as the makers of InternVL publish it: names, settings, tokenizer."""
    target.mkdir()
    tensors = weights(native)
    for name in [name for name in tensors if ".q_proj." in name and "vision_tower" in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    for pattern, name in PUBLISHED:
        tensors = {re.sub(pattern, name, key): tensor for key, tensor in tensors.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((native / "config.json").read_text(encoding="utf-8"))
    vision = config["vision_config"]
    config = {
        "model_type": "internvl_chat", "ps_version": "v2", "select_layer": -1,
        "downsample_ratio": 0.5, "force_image_size": 448, "dynamic_image_size": True,
        "use_thumbnail": True, "max_dynamic_patch": 12, "min_dynamic_patch": 1,
        "llm_config": config["text_config"],
        "vision_config": {
            **vision, "image_size": 448, "patch_size": 14, "qk_normalization": False,
            "qkv_bias": True, "dropout": 0.0,
        },
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(native / name, target / name)
