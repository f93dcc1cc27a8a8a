"""The sizes of a base model: from its own files where it lies here, else from a published table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data_prep.files import read_json
from recipes import UserError
from recipes.config.schema import Recipe
from strlora_tuner.options import Size


class CountError(UserError):
    """A model or tuner cannot be counted; the message says what is missing."""


@dataclass(frozen=True)
class LinearAttention:
    """The layers of Qwen3.5's decoder that keep a recurrent state instead of keys and values."""

    layers: int
    keys: int
    values: int
    heads: int

    def linears(self, hidden: int) -> list[tuple[int, int]]:
        """(d_in, d_out) of in_proj_qkv, in_proj_z, in_proj_a, in_proj_b, out_proj of all layers."""
        read = [2 * self.keys + self.values, self.values, self.heads, self.heads]
        return [*((hidden, size) for size in read), (self.values, hidden)] * self.layers


@dataclass(frozen=True)
class Shape:
    """Sizes of a multimodal model that adapters depend on; `parameters` counts all of its own.

    gated: the projection of the queries makes a gate of the same size, too. linear: the layers of
    the decoder that have linear attention in place of the usual one.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    parameters: int
    aligner: int
    source: str
    gated: bool = False
    linear: LinearAttention | None = None

    def linears(self, targets: str = "all") -> list[tuple[int, int]]:
        """(d_in, d_out) of the linear layers of the whole decoder that `tuner.targets` names."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        asked = query * 2 if self.gated else query
        attention = [(self.hidden, asked), (self.hidden, key), (self.hidden, key)]
        attention.append((query, self.hidden))
        attention *= self.layers
        if self.linear is not None:
            attention = attention[4 * self.linear.layers :] + self.linear.linears(self.hidden)
        up = (self.hidden, self.intermediate)
        gate_up = [up, up] * self.layers
        mlp = gate_up + [(self.intermediate, self.hidden)] * self.layers
        kinds = {"all": attention + mlp, "attention": attention, "mlp": mlp, "gate_up": gate_up}
        return kinds[targets]


def _published(
    sizes: tuple[int, int, int, int, int, int], total: float, aligner: float, **more: Any
) -> Shape:
    """A shape from the sizes of its decoder; counts in millions, as model cards give them."""
    counts = round(total * 1e6), round(aligner * 1e6)
    return Shape(*sizes, *counts, "sizes as published with the model", **more)


# Decoder sizes from the published config.json of each model, for planning before it is here. (The
# vision tower and the aligner of Qwen are one module.)
PUBLISHED: dict[str, Shape] = {
    "InternVL3_5-8B": _published((4096, 36, 32, 8, 128, 12288), total=8528, aligner=33),
    "InternVL3_5-4B": _published((2560, 36, 32, 8, 128, 9728), total=4732, aligner=17),
    "gemma-3-4b": _published((2560, 34, 8, 4, 256, 10240), total=4300, aligner=3),
    "Qwen3-VL-8B": _published((4096, 36, 32, 8, 128, 12288), total=8767, aligner=0),
    "Qwen2.5-VL-7B": _published((3584, 28, 28, 4, 128, 18944), total=8292, aligner=0),
    "Qwen3.5-9B": _published(
        (4096, 32, 16, 4, 256, 12288),
        total=9410,
        aligner=0,
        gated=True,
        linear=LinearAttention(layers=24, keys=2048, values=4096, heads=32),
    ),
    "llava-1.5-7b": _published((4096, 32, 32, 32, 128, 11008), total=7063, aligner=21),
}


# What transformers takes where a config.json leaves it out: those of Gemma 3 and LLaVA-1.5 do.
LEFT_OUT: dict[str, dict[str, int]] = {
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
}


def model_shape(recipe: Recipe) -> Shape | None:
    """The shape of the recipe's base model; None when it is neither here nor in the table.

    Raises:
        CountError: a file of it is damaged, or its configuration names no sizes.
    """
    folder = Path(recipe.model.path)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return _from_files(folder, recipe.model.aligner)
    for name, shape in PUBLISHED.items():
        if folder.name.startswith(name):
            return shape
    return None


def _from_files(folder: Path, aligner: str | None) -> Shape:
    """Reads config.json, and counts the tensors named in the headers of the weight files."""
    try:
        return _read_shape(folder, aligner)
    except SafetensorError as error:
        raise CountError(f"{folder}: a weight file is damaged ({error}): get it again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CountError(
            f"{folder}/config.json is no configuration of a model ({error!r}): get it again"
        ) from error


def _read_shape(folder: Path, aligner: str | None) -> Shape:
    config = read_json(folder / "config.json")
    text = config.get("text_config", config)
    text = LEFT_OUT.get(text.get("model_type", ""), {}) | text
    tensors = dict(stored_tensors(folder))
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    return Shape(
        hidden=hidden,
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        head_dim=text.get("head_dim") or hidden // heads,
        intermediate=text["intermediate_size"],
        parameters=sum(tensors.values()),
        aligner=sum(n for name, n in tensors.items() if aligner and aligner in name),
        source=f"{folder}/config.json and the headers of its weight files",
        gated=bool(text.get("attn_output_gate")),
        linear=_linear_attention(text),
    )


def _linear_attention(text: dict[str, Any]) -> LinearAttention | None:
    """What a decoder's configuration says of linear attention; None: it has none."""
    if "linear_num_value_heads" not in text:
        return None
    count, every = text["num_hidden_layers"], text.get("full_attention_interval", 4)
    kinds = text.get("layer_types")
    full = count // every if kinds is None else kinds.count("full_attention")
    return LinearAttention(
        layers=count - full,
        keys=text["linear_num_key_heads"] * text["linear_key_head_dim"],
        values=text["linear_num_value_heads"] * text["linear_value_head_dim"],
        heads=text["linear_num_value_heads"],
    )


def stored_tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, number of elements) of every tensor, from the safetensors headers alone."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 -- it has no iterator
                yield name, math.prod(file.get_slice(name).get_shape())


def tuner_size(recipe: Recipe, shape: Shape, chunk: int = 1) -> Size:
    """Counts what the recipe's tuner trains and stores in chunk `chunk`, without the aligner.

    Its own modules are counted, on the chosen linear layers of every decoder layer; 0 where nothing
    is trained.

    Raises:
        CountError: torch or PEFT is not installed.
    """
    if recipe.tuner_type is None:
        return Size(0, 0)
    try:
        from strlora_tuner.counting import count_adapter
    except ModuleNotFoundError as error:
        raise CountError(
            f"counting an adapter's parameters needs {error.name}: run recipes/setup.sh"
        ) from error
    options = recipe.tuner_options
    linears = shape.linears(options.targets)
    return count_adapter(recipe.tuner_type, options, linears, shape.hidden, chunk)


def adapter_size(recipe: Recipe, shape: Shape) -> Size:
    """Counts what the first chunk trains, and what the last one's file stores; aligner too."""
    aligner = _trained_aligner(recipe, shape)
    trained = tuner_size(recipe, shape).trained
    stored = tuner_size(recipe, shape, recipe.data.chunks).stored
    return Size(trained + aligner, stored + aligner)


def _trained_aligner(recipe: Recipe, shape: Shape) -> int:
    return shape.aligner if recipe.model.aligner and recipe.tuner_type is not None else 0


def stored_by_chunk(recipe: Recipe, shape: Shape) -> dict[int, int]:
    """Counts what the file of each trained chunk stores; aligner too."""
    chunks, aligner = recipe.trained_chunks, _trained_aligner(recipe, shape)
    if not recipe.options_class.grows:
        return dict.fromkeys(chunks, adapter_size(recipe, shape).stored)
    return {chunk: tuner_size(recipe, shape, chunk).stored + aligner for chunk in chunks}
