"""The sizes of a base model: from its own files where it lies here, else from a published table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.files import read_json
from recipes.config.schema import Recipe
from strlora_tuner.options import Size


class CountError(Exception):
    """A model or tuner cannot be counted; the message says what is missing."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a multimodal model that adapters depend on; `parameters` counts all of its own."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    parameters: int
    aligner: int
    source: str

    def linears(self, targets: str = "all") -> list[tuple[int, int]]:
        """(d_in, d_out) of the linear layers of one decoder layer that `tuner.targets` names."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, query), (self.hidden, key), (self.hidden, key)]
        attention.append((query, self.hidden))
        up = (self.hidden, self.intermediate)
        mlp = [up, up, (self.intermediate, self.hidden)]
        kinds = {"all": attention + mlp, "attention": attention, "mlp": mlp, "gate_up": mlp[:2]}
        return kinds[targets]


def _published(*sizes: int, total: float, aligner: float) -> Shape:
    """A shape from the sizes of its decoder; counts in millions, as model cards give them."""
    hidden, layers, heads, kv_heads, head_dim, intermediate = sizes
    text = (hidden, layers, heads, kv_heads, head_dim, intermediate)
    return Shape(
        *text, round(total * 1e6), round(aligner * 1e6), "sizes as published with the model"
    )


# Decoder sizes from the published config.json of each model, for planning before it is here. (The
# vision tower and the aligner of Qwen are one module.)
PUBLISHED: dict[str, Shape] = {
    "InternVL3_5-8B": _published(4096, 36, 32, 8, 128, 12288, total=8528, aligner=33),
    "InternVL3_5-4B": _published(2560, 36, 32, 8, 128, 9728, total=4732, aligner=17),
    "gemma-3-4b": _published(2560, 34, 8, 4, 256, 10240, total=4300, aligner=3),
    "Qwen3-VL-8B": _published(4096, 36, 32, 8, 128, 12288, total=8767, aligner=0),
    "Qwen2.5-VL-7B": _published(3584, 28, 28, 4, 128, 18944, total=8292, aligner=0),
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
    return count_adapter(recipe.tuner_type, options, linears, shape.layers, shape.hidden, chunk)


def adapter_size(recipe: Recipe, shape: Shape) -> Size:
    """Counts what the first chunk trains, and what the last one's file stores; aligner too."""
    aligner = shape.aligner if recipe.model.aligner and recipe.tuner_type is not None else 0
    trained = tuner_size(recipe, shape).trained
    stored = tuner_size(recipe, shape, recipe.data.chunks).stored
    return Size(trained + aligner, stored + aligner)
