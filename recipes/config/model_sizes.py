"""The sizes of a base model: from its own files where it lies here, else from a published table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.config.schema import Recipe
from strlora_tuner.options import AdapterOptions, Size

# Suffixes of the linear layers that carry an adapter, in every model this project knows.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of a multimodal model. `parameters` counts everything, `vision` tower and aligner."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    parameters: int
    vision: int
    aligner: int
    image_tokens: int
    source: str

    def linears(self) -> list[tuple[int, int]]:
        """(d_in, d_out) of the seven adapted linear layers of one decoder layer."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, query), (self.hidden, key), (self.hidden, key)]
        attention.append((query, self.hidden))
        up = (self.hidden, self.intermediate)
        return [*attention, up, up, (self.intermediate, self.hidden)]

    @property
    def language(self) -> int:
        """Parameters that work on every token: decoder layers and output head."""
        layer = sum(a * b for a, b in self.linears())
        return self.layers * layer + self.hidden * self.vocabulary


def _published(sizes: tuple[int, ...], total: float, vision: float, aligner: float) -> Shape:
    hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary, image_tokens = sizes
    counts = (int(total * 1e6), int(vision * 1e6), int(aligner * 1e6))
    text = (hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary)
    return Shape(
        *text, *counts, image_tokens, "table in recipes/config/model_sizes.py (published sizes)"
    )


# Language sizes as in the published config.json of each model; counts in millions, rounded, as the
# model cards give them (the vision tower and the aligner of Qwen are one module there). Tokens of
# an image, the last size, are assumed: InternVL takes 256 a tile, here five tiles; Qwen by pixels.
PUBLISHED: dict[str, Shape] = {
    "InternVL3_5-8B": _published((4096, 36, 32, 8, 128, 12288, 151936, 1280), 8528, 304, 33),
    "InternVL3_5-4B": _published((2560, 36, 32, 8, 128, 9728, 151936, 1280), 4732, 304, 17),
    "gemma-3-4b": _published((2560, 34, 8, 4, 256, 10240, 262208, 256), 4300, 417, 3),
    "Qwen3-VL-8B": _published((4096, 36, 32, 8, 128, 12288, 151936, 1024), 8767, 576, 0),
    "Qwen2.5-VL-7B": _published((3584, 28, 28, 4, 128, 18944, 152064, 1024), 8292, 677, 0),
}


def model_shape(recipe: Recipe) -> Shape | None:
    """The shape of the recipe's base model; None when it is neither here nor in the table."""
    folder = Path(recipe.model.path)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return _from_files(folder, recipe.model.aligner)
    for name, shape in PUBLISHED.items():
        if folder.name.startswith(name):
            return shape
    return None


def _from_files(folder: Path, aligner: str | None) -> Shape:
    """Reads config.json, and counts the tensors named in the headers of the weight files."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    tensors = dict(_tensors(folder))
    vision = sum(n for name, n in tensors.items() if "vision" in name or "visual" in name)
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    return Shape(
        hidden=hidden,
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        head_dim=text.get("head_dim") or hidden // heads,
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        parameters=sum(tensors.values()),
        vision=vision,
        aligner=sum(n for name, n in tensors.items() if aligner and aligner in name),
        image_tokens=config.get("image_seq_length") or config.get("mm_tokens_per_image") or 256,
        source=f"{folder}/config.json and the headers of its weight files",
    )


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, number of elements) of every tensor, from the safetensors headers alone."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, math.prod(entry["shape"])


def tuner_size(options: AdapterOptions, shape: Shape) -> Size:
    """Counts a tuner on the seven linear layers of every decoder layer.

    What a layer has is counted by the method's options (strlora_tuner).
    """
    layers = [options.layer_size(d_in, d_out, shape.hidden) for d_in, d_out in shape.linears()]
    once = options.model_size(shape.hidden)
    trained = shape.layers * sum(size.trained for size in layers) + once.trained
    stored = shape.layers * sum(size.stored for size in layers) + once.stored
    return Size(trained, stored)


def tuner_growth(options: AdapterOptions, shape: Shape) -> int:
    """Counts what every chunk after the first adds to a tuner's file."""
    layers = [options.layer_growth(d_in, d_out, shape.hidden) for d_in, d_out in shape.linears()]
    return shape.layers * sum(layers) + options.model_growth(shape.hidden)


def adapter_size(recipe: Recipe, shape: Shape) -> Size:
    """Counts what the recipe's method trains, and stores in the last chunk's file; aligner too.

    0 where nothing is trained.
    """
    if recipe.tuner_type is None:
        return Size(0, 0)
    size = tuner_size(recipe.tuner_options, shape)
    aligner = shape.aligner if recipe.model.aligner else 0
    grown = (recipe.data.chunks - 1) * tuner_growth(recipe.tuner_options, shape)
    return Size(size.trained + aligner, size.stored + grown + aligner)
