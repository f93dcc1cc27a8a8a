"""A tiny checkpoint in the layout of InternVL's own code, and that code's forward pass by hand.

Nothing here uses transformers' InternVL: the vision tower and the aligner are computed in float64
from the makers' formulas, the language model is Qwen3 (or Qwen2) loaded from its own names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = ROOT / "assets" / "tiny_base"
VIDEO = "<video>"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """What a published config.json varies."""

    hidden: int = 24
    heads: int = 3
    layers: int = 2
    text: str = "qwen3"
    text_hidden: int = 32
    text_layers: int = 2
    image: int = 56
    patch: int = 14
    tile: int | None = None
    qk_norm: bool = False
    qkv_bias: bool = True
    norm: str = "layer_norm"
    eps: float = 1e-6
    tied: bool = False
    shards: int = 3
    head: str = "own"  # own | absent | copy: what the file holds of the output layer
    dtype: torch.dtype = torch.float32


def config_of(sizes: Sizes) -> dict[str, Any]:
    """config.json as published, with the fields that do not matter, too."""
    text = {
        "_name_or_path": "/some/where", "_attn_implementation_autoset": True, "auto_map": None,
        "architectures": [f"{sizes.text.capitalize()}ForCausalLM"], "attention_bias": False,
        "attn_implementation": "flash_attention_2", "bos_token_id": 151643, "eos_token_id": 1270,
        "hidden_act": "silu", "hidden_size": sizes.text_hidden, "intermediate_size": 40,
        "max_position_embeddings": 512, "max_window_layers": 28, "model_type": sizes.text,
        "moe_config": None, "num_attention_heads": 4, "num_hidden_layers": sizes.text_layers,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": sizes.tied,
        "torch_dtype": "bfloat16", "transformers_version": "4.52.1", "use_bfloat16": True,
        "use_cache": False, "use_sliding_window": False, "vocab_size": 1344,
    }  # fmt: skip
    if sizes.text == "qwen3":
        text["head_dim"] = 16  # not hidden_size / heads
    vision = {
        "architectures": ["InternVisionModel"], "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
        "drop_path_rate": 0.1, "dropout": 0.0, "hidden_act": "gelu", "hidden_size": sizes.hidden,
        "image_size": sizes.image, "initializer_factor": 0.1, "initializer_range": 1e-10,
        "intermediate_size": 2 * sizes.hidden, "layer_norm_eps": sizes.eps,
        "model_type": "intern_vit_6b", "norm_type": sizes.norm,
        "num_attention_heads": sizes.heads, "num_channels": 3, "num_hidden_layers": sizes.layers,
        "patch_size": sizes.patch, "qk_normalization": sizes.qk_norm, "qkv_bias": sizes.qkv_bias,
        "use_flash_attn": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": sizes.tile,
        "llm_config": text, "max_dynamic_patch": 12, "min_dynamic_patch": 1,
        "model_type": "internvl_chat", "pad2square": False, "ps_version": "v2",
        "select_layer": -1, "template": "internvl2_5", "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_backbone_lora": 0, "use_llm_lora": 0,
        "use_thumbnail": True, "vision_config": vision,
    }  # fmt: skip


def tensors_of(sizes: Sizes, seed: int = 0) -> Tensors:
    """Random tensors under the published names."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.2, around: float = 0.0) -> torch.Tensor:
        return (around + scale * torch.randn(*shape, generator=generator)).to(sizes.dtype)

    hidden, wide = sizes.hidden, 2 * sizes.hidden
    start = "vision_model.embeddings."
    patches = (sizes.image // sizes.patch) ** 2
    found = {
        f"{start}class_embedding": draw(1, 1, hidden),
        f"{start}position_embedding": draw(1, patches + 1, hidden),
        f"{start}patch_embedding.weight": draw(hidden, 3, sizes.patch, sizes.patch, scale=0.05),
        f"{start}patch_embedding.bias": draw(hidden),
    }

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = draw(rows, columns)
        if bias:
            found[f"{name}.bias"] = draw(rows)

    def norm(name: str, size: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = draw(size, around=1.0)
        if bias:
            found[f"{name}.bias"] = draw(size)

    for number in range(sizes.layers):
        layer = f"vision_model.encoder.layers.{number}"
        linear(f"{layer}.attn.qkv", 3 * hidden, hidden, sizes.qkv_bias)
        linear(f"{layer}.attn.proj", hidden, hidden)
        linear(f"{layer}.mlp.fc1", wide, hidden)
        linear(f"{layer}.mlp.fc2", hidden, wide)
        for each in ("norm1", "norm2"):
            norm(f"{layer}.{each}", hidden, sizes.norm == "layer_norm")
        if sizes.qk_norm:
            norm(f"{layer}.attn.q_norm", hidden, False)
            norm(f"{layer}.attn.k_norm", hidden, False)
        found[f"{layer}.ls1"] = draw(hidden, around=0.5)
        found[f"{layer}.ls2"] = draw(hidden, around=0.5)
    norm("mlp1.0", 4 * hidden)
    linear("mlp1.1", sizes.text_hidden, 4 * hidden)
    linear("mlp1.3", sizes.text_hidden, sizes.text_hidden)
    text = CONFIG_MAPPING[sizes.text](**_text_settings(sizes))
    torch.manual_seed(seed)
    language = AutoModelForCausalLM.from_config(text).to(sizes.dtype)
    for name, tensor in language.state_dict().items():
        found[f"language_model.{name}"] = tensor.detach().clone()
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    if sizes.head == "absent":
        del found[head]
    elif sizes.head == "copy":
        found[head] = found[embedding].clone()
    return found


def _text_settings(sizes: Sizes) -> dict[str, Any]:
    left_out = ("_name_or_path", "_attn_implementation_autoset", "auto_map", "attn_implementation")
    text = config_of(sizes)["llm_config"]
    return {name: value for name, value in text.items() if name not in left_out}


def write(folder: Path, sizes: Sizes, tensors: Mapping[str, torch.Tensor] | None = None) -> Tensors:
    """Writes the checkpoint's folder; returns its tensors."""
    folder.mkdir(parents=True)
    found = dict(tensors_of(sizes) if tensors is None else tensors)
    names = list(found)
    placed: dict[str, str] = {}
    for number in range(sizes.shards):
        file = f"model-{number + 1:05d}-of-{sizes.shards:05d}.safetensors"
        if sizes.shards == 1:
            file = "model.safetensors"
        mine = names[number :: sizes.shards]
        save_file({name: found[name] for name in mine}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(mine, file)
    if sizes.shards > 1:
        index = {"metadata": {}, "weight_map": placed}
        _json(folder / "model.safetensors.index.json", index)
    _json(folder / "config.json", config_of(sizes))
    _json(folder / "preprocessor_config.json", {"image_mean": [0.4] * 3, "image_std": [0.2] * 3})
    (folder / "modeling_internvl_chat.py").write_text("raise SystemExit('remote code was run')\n")
    write_tokenizer(folder)
    return found


def write_tokenizer(folder: Path) -> None:
    """The tokenizer as published: vocab.json, merges.txt, added tokens; none is <video>."""
    whole = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token for token in whole["added_tokens"] if token["content"] != VIDEO]
    first = min(token["id"] for token in added)
    added = [{**token, "id": number} for number, token in enumerate(added, start=first)]
    names = {token["content"] for token in whole["added_tokens"]}
    words = {t: n for t, n in whole["model"]["vocab"].items() if t not in names}
    _json(folder / "vocab.json", words)
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    _json(folder / "added_tokens.json", {token["content"]: token["id"] for token in added})
    settings = {
        "added_tokens_decoder": {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added
        },
        "additional_special_tokens": [token["content"] for token in added],
        "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]},
        "chat_template": "{{ 'a template for text alone' }}",
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 12288,
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None,
    }  # fmt: skip
    _json(folder / "tokenizer_config.json", settings)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def picture_features(tensors: Tensors, sizes: Sizes, pixels: torch.Tensor) -> torch.Tensor:
    """What the published code makes of tiles: (tiles, tokens, text_hidden), in float64."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    x = _tower(weights, sizes, pixels.double())[:, 1:]
    side = math.isqrt(x.shape[1])
    x = x.reshape(len(x), side, side, -1)
    tiles, high, wide, channels = x.shape
    # Four neighbours (2 x 2) become one token; in it they stand row after row.
    x = x.reshape(tiles, high // 2, 2, wide // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(tiles, -1, 4 * channels)
    first = weights["mlp1.0.weight"], weights["mlp1.0.bias"]
    x = functional.layer_norm(x, x.shape[-1:], *first)  # torch's usual eps, 1e-5
    x = functional.gelu(x @ weights["mlp1.1.weight"].T + weights["mlp1.1.bias"])
    return x @ weights["mlp1.3.weight"].T + weights["mlp1.3.bias"]


def _tower(weights: Tensors, sizes: Sizes, pixels: torch.Tensor) -> torch.Tensor:
    def normed(x: torch.Tensor, name: str, kind: str = sizes.norm) -> torch.Tensor:
        if kind == "layer_norm":
            bias = weights[f"{name}.bias"]
            return functional.layer_norm(
                x, x.shape[-1:], weights[f"{name}.weight"], bias, sizes.eps
            )
        return weights[f"{name}.weight"] * x / (x.pow(2).mean(-1, keepdim=True) + sizes.eps).sqrt()

    start = "vision_model.embeddings."
    kernel, bias = (weights[f"{start}patch_embedding.{each}"] for each in ("weight", "bias"))
    patches = functional.conv2d(pixels, kernel, bias, stride=sizes.patch)
    high, wide = patches.shape[2:]
    positions = weights[f"{start}position_embedding"]
    grid = sizes.image // sizes.patch
    inner = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    if (high, wide) != (grid, grid):
        inner = functional.interpolate(inner, (high, wide), mode="bicubic", align_corners=False)
    first = weights[f"{start}class_embedding"].expand(len(pixels), -1, -1) + positions[:, :1]
    x = torch.cat([first, (patches + inner).flatten(2).transpose(1, 2)], dim=1)
    for number in range(sizes.layers):
        layer = f"vision_model.encoder.layers.{number}"
        fused = normed(x, f"{layer}.norm1") @ weights[f"{layer}.attn.qkv.weight"].T
        if sizes.qkv_bias:
            fused = fused + weights[f"{layer}.attn.qkv.bias"]
        query, key, value = fused.split(sizes.hidden, dim=-1)
        if sizes.qk_norm:
            query = normed(query, f"{layer}.attn.q_norm", "rms_norm")
            key = normed(key, f"{layer}.attn.k_norm", "rms_norm")
        heads = [
            part.unflatten(-1, (sizes.heads, -1)).transpose(1, 2) for part in (query, key, value)
        ]
        scores = heads[0] @ heads[1].transpose(-1, -2) / (sizes.hidden // sizes.heads) ** 0.5
        seen = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
        seen = seen @ weights[f"{layer}.attn.proj.weight"].T + weights[f"{layer}.attn.proj.bias"]
        x = x + weights[f"{layer}.ls1"] * seen
        y = normed(x, f"{layer}.norm2") @ weights[f"{layer}.mlp.fc1.weight"].T
        y = functional.gelu(y + weights[f"{layer}.mlp.fc1.bias"])
        y = y @ weights[f"{layer}.mlp.fc2.weight"].T + weights[f"{layer}.mlp.fc2.bias"]
        x = x + weights[f"{layer}.ls2"] * y
    return x


def logits(
    tensors: Tensors, sizes: Sizes, ids: torch.Tensor, picture: int, pixels: torch.Tensor
) -> torch.Tensor:
    """The published model's logits for ids (1, n); `picture` tokens take the tiles' features."""
    language = AutoModelForCausalLM.from_config(CONFIG_MAPPING[sizes.text](**_text_settings(sizes)))
    start = "language_model."
    own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
    own.setdefault("lm_head.weight", own["model.embed_tokens.weight"])
    language.load_state_dict(own)
    language = language.double().eval()
    inputs = language.get_input_embeddings()(ids)
    inputs[ids == picture] = picture_features(tensors, sizes, pixels).flatten(0, 1)
    with torch.no_grad():
        found: torch.Tensor = language(inputs_embeds=inputs).logits
    return found
