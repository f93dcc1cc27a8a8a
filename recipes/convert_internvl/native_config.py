"""config.json of a published checkpoint, in the words of transformers' own InternVL class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, InternVLConfig

from data_prep.files import read_json
from recipes.convert_internvl.published_weights import ConversionError

# What the class in transformers always does; the published code asks for it by a setting.
_ALWAYS: dict[str, tuple[Any, Any]] = {  # setting: (its only value here, the value when absent)
    "ps_version": ("v2", "v1"),
    "select_layer": (-1, -1),
    "use_backbone_lora": (0, 0),
    "use_llm_lora": (0, 0),
    "pad2square": (False, False),
}
_SAME = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size "
    "patch_size hidden_act norm_type layer_norm_eps attention_dropout"
)
_VISION = {  # published: transformers
    **{name: name for name in _SAME.split()},
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "projection_dropout",
}
_QK_NORM_EPS = 1e-6  # fixed in transformers' class
_NOT_OF_A_MODEL = (
    "auto_map",
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "transformers_version",
)


@dataclass(frozen=True)
class Published:
    """What of a published config.json is needed.

    Attributes:
        text, vision: its blocks for the language model and the vision tower.
        tile: side of a picture's tile in pixels.
        tokens: of one tile.
        least_tiles, most_tiles: a picture is cut into; whether it is cut at all: `cut`.
        downsample: share of patches that is left in each direction.
        drop_path: rate at which the tower skips its branches while training; not in transformers.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    tile: int
    tokens: int
    least_tiles: int
    most_tiles: int
    cut: bool
    downsample: float
    drop_path: float

    @property
    def tied(self) -> bool:
        """Whether the language model's output layer is its embedding."""
        return bool(self.text.get("tie_word_embeddings", False))


def read_published(folder: Path) -> Published:
    """Reads config.json.

    Raises:
        ConversionError: it is no such checkpoint, or asks for what transformers' class cannot do.
    """
    path = folder / "config.json"
    try:
        config = dict(read_json(path))
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: not there; give the folder of the checkpoint") from error
    except ValueError as error:
        raise ConversionError(str(error)) from error
    text, vision = config.get("llm_config"), config.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ConversionError(
            f"{path}: expected the blocks llm_config and vision_config of InternVL's own code, "
            f"found model_type {config.get('model_type')!r}"
        )
    problems = [
        f"{name} is {config.get(name, absent)!r}, only {value!r} can be expressed"
        for name, (value, absent) in _ALWAYS.items()
        if (config.get(name, absent) or 0) != (value or 0)
    ]
    problems += [f"vision_config.{name} is missing" for name in _VISION if name not in vision]
    problems += [] if problems else _vision_problems(vision)
    if config.get("dynamic_image_size") and not config.get("use_thumbnail"):
        problems.append("use_thumbnail is off: transformers always adds the whole picture")
    if text.get("model_type") not in CONFIG_MAPPING:
        problems.append(
            f"llm_config.model_type is {text.get('model_type')!r}, which transformers does not have"
        )
    if problems:
        raise ConversionError(f"{path}: {'; '.join(problems)}")
    tile = config.get("force_image_size") or vision["image_size"]
    downsample = config.get("downsample_ratio", 0.5)
    return Published(
        text,
        vision,
        tile,
        tokens=int((tile // vision["patch_size"]) ** 2 * downsample**2),
        least_tiles=config.get("min_dynamic_patch", 1),
        most_tiles=config.get("max_dynamic_patch", 6),
        cut=bool(config.get("dynamic_image_size")),
        downsample=downsample,
        drop_path=vision.get("drop_path_rate", 0.0),
    )


def _vision_problems(vision: Mapping[str, Any]) -> list[str]:
    problems = []
    if vision["norm_type"] not in ("layer_norm", "rms_norm"):
        problems.append(f"vision_config.norm_type is {vision['norm_type']!r}")
    if vision["qk_normalization"] and vision["layer_norm_eps"] != _QK_NORM_EPS:
        problems.append(
            f"vision_config.layer_norm_eps is {vision['layer_norm_eps']}: with qk_normalization "
            f"transformers computes with {_QK_NORM_EPS}"
        )
    return problems


def native_config(published: Published, image_token: int, dtype: str) -> InternVLConfig:
    """Returns the configuration for transformers.

    Args:
        published: what was read.
        image_token: id of <IMG_CONTEXT>.
        dtype: of the weights, such as bfloat16.
    """
    text = {
        name: value
        for name, value in published.text.items()
        if not name.startswith("_") and name not in _NOT_OF_A_MODEL
    }
    text |= {"use_cache": True, "tie_word_embeddings": published.tied}
    vision = {native: published.vision[name] for name, native in _VISION.items()}
    return InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image_token,
        image_seq_length=published.tokens,
        downsample_ratio=published.downsample,
        tie_word_embeddings=published.tied,
        architectures=["InternVLForConditionalGeneration"],
        dtype=dtype,
    )
