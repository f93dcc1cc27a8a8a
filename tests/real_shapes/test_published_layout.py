"""A -HF folder of the hub, put back into the published layout, converts into itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from recipes.convert_internvl.native_folder import convert
from tests.real_shapes.conftest import Folder
from tests.real_shapes.families import FAMILIES

pytestmark = pytest.mark.slow
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


def test_a_converted_folder_is_the_hubs(folder: Folder, tmp_path: Path) -> None:
    native = folder(FAMILIES[1])
    publish(native, tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "again")
    before, after = weights(native), weights(tmp_path / "again")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (AutoConfig.from_pretrained(each) for each in (native, tmp_path / "again"))
    for block in ("text_config", "vision_config"):
        values, others = (getattr(each, block).to_dict() for each in (first, second))
        differing = {name for name in values if values[name] != others.get(name)}
        assert differing <= {"transformers_version", "dtype", "_name_or_path"}
    assert (first.image_token_id, first.image_seq_length) == (151671, 256)
    assert (second.image_token_id, second.image_seq_length) == (151671, 256)
    processors = [AutoProcessor.from_pretrained(each) for each in (native, tmp_path / "again")]
    assert processors[0].tokenizer.get_vocab() == processors[1].tokenizer.get_vocab()
    text = "<img><IMG_CONTEXT></img>\nWhat, 你好 <box>1</box>?<|im_end|>"
    assert processors[0].tokenizer(text) == processors[1].tokenizer(text)
    pictures = processors[1].image_processor
    assert (pictures.size.height, pictures.min_patches, pictures.max_patches) == (448, 1, 12)
