"""What a recipe leaves out of its stream: the embedded one's folder, and the count of chunks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from data_prep.mini.mixtures import SIZES
from data_prep.stream import MANIFEST, StreamError, open_stream
from recipes.config.blocks import Data
from recipes.config.problems import Places, Problem


def without_inherited_count(below: DictConfig, layer: DictConfig) -> DictConfig:
    """The recipe `below` without its count of chunks if `layer` names another stream alone.

    What a recipe extends counts the chunks of its own stream.
    """
    # Unresolved: a layer by itself may refer to what another one says.
    values, over = (
        cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
        for config in (below, layer)
    )
    data, named = values.get("data"), over.get("data")
    if not isinstance(data, dict) or not isinstance(named, dict):
        return below
    same = all(named.get(key, data.get(key)) == data.get(key) for key in ("stream", "size"))
    if same or named.get("chunks") is not None:
        return below
    data.pop("chunks", None)
    return OmegaConf.create(values)


def name_stream(values: dict[str, Any]) -> None:
    """Fills in `data.stream` of the embedded stream where it is left out: by size and seed."""
    data = values.get("data")
    if isinstance(data, dict) and data.get("source") == "mini" and data.get("stream") is None:
        size, seed = data.get("size", "tiny"), data.get("seed") or 0
        name = "data/mini" if size == "mini" else f"data/mini-{size}"
        data["stream"] = f"{name}-seed{seed}" if seed else name


def count_chunks(values: dict[str, Any], places: Places, problems: list[Problem]) -> None:
    """Fills in `data.chunks` where it is left out; what prevents that is a problem."""
    data = values.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("stream"), str):
        return  # the schema says so
    if data.get("chunks") is not None or data.keys() - Data.model_fields.keys():
        return  # the schema reports a misspelt key
    count = 1  # so that a mistake is reported once
    try:
        if (Path(data["stream"]) / MANIFEST).is_file():
            count = len(open_stream(Path(data["stream"])).chunks)
        elif not isinstance(data.get("size", "tiny"), str):
            pass  # the schema says so, too
        elif data.get("source") == "mini" and data.get("size", "tiny") in SIZES:
            with suppress(TypeError, ValueError):  # a seed that is no number: the schema says so
                seed = int(data.get("seed", 0))
                count = len(SIZES[data.get("size", "tiny")].mixture(seed))
        else:
            how = f"make the stream {data['stream']}, whose chunks count then, or set it"
            problems.append(Problem(places["data.chunks"], "data.chunks", "is not set", how))
    except StreamError as error:
        problems.append(Problem(places["data.stream"], "data.stream", str(error)))
    data["chunks"] = count
