"""The tensors of a published checkpoint: where they lie, and what they are called in transformers.

Names as in the makers' own code (vision_model, mlp1, language_model); the language model's are the
same on both sides, and the vision tower's fused query-key-value matrix becomes three.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data_prep.files import a_few, read_json

INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_IN_A_LAYER = {
    "attn.proj.": "attention.projection_layer.",
    "attn.q_norm.": "attention.q_norm.",
    "attn.k_norm.": "attention.k_norm.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.": "mlp.",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
}
_FIRST = "vision_model.embeddings."
_OUTSIDE = {
    f"{_FIRST}class_embedding": "vision_tower.embeddings.cls_token",
    f"{_FIRST}position_embedding": "vision_tower.embeddings.position_embeddings",
    f"{_FIRST}patch_embedding.": "vision_tower.embeddings.patch_embeddings.projection.",
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
    "language_model.": "language_model.",
}
_SHOWN = 8


class ConversionError(Exception):
    """The checkpoint cannot be rewritten; the message names the file or the keys, and the fix."""


@dataclass(frozen=True)
class Stored:
    """One tensor of the source: its file, its shape, and its dtype as safetensors writes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Returns every tensor of a checkpoint, from the headers of its files alone.

    Raises:
        ConversionError: a file is absent, cut short, or holds other tensors than the index says.
    """
    found: dict[str, Stored] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 -- it has no iterator
                    if name in found:
                        raise ConversionError(f"{name} is in {found[name].file} and in {file}")
                    part = tensors.get_slice(name)
                    found[name] = Stored(file, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise ConversionError(f"{file}: {error}; download this file again") from error
    if (folder / INDEX).is_file():
        listed = _index(folder)
        misplaced = {name for name in listed if name in found and found[name].file != listed[name]}
        wrong = misplaced | (set(listed) ^ set(found))
        if wrong:
            raise ConversionError(
                f"{folder / INDEX}: {a_few(sorted(wrong), _SHOWN)}: listed and not in that file, "
                "or in a file and not listed; download the checkpoint again"
            )
    return found


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        files = sorted(set(_index(folder).values()))
    else:
        files = [folder / "model.safetensors"]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise ConversionError(
            f"{', '.join(absent)}: not there; only safetensors are read. Download the whole folder"
        )
    return files


def _index(folder: Path) -> dict[str, Path]:
    try:
        names = read_json(folder / INDEX)["weight_map"]
        return {name: folder / file for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{folder / INDEX}: no weight_map ({error})") from error


def native_names(name: str) -> tuple[str, ...]:
    """Returns what a tensor is called in transformers: three names where it is split, or none."""
    in_layer = _LAYER.fullmatch(name)
    if not in_layer:
        start = next((start for start in _OUTSIDE if name.startswith(start)), None)
        return () if start is None else (_OUTSIDE[start] + name.removeprefix(start),)
    number, rest = in_layer.groups()
    layer = f"vision_tower.encoder.layer.{number}."
    if rest in ("attn.qkv.weight", "attn.qkv.bias"):
        kind = rest.rpartition(".")[2]
        return tuple(f"{layer}attention.{part}_proj.{kind}" for part in "qkv")
    start = next((start for start in _IN_A_LAYER if rest.startswith(start)), None)
    return () if start is None else (layer + _IN_A_LAYER[start] + rest.removeprefix(start),)


def check(stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Holds what the source would give against what the model asks for.

    Args:
        stored: the source's tensors.
        expected: shapes of all tensors of the model, by name in the file.

    Raises:
        ConversionError: a tensor of the source has no place, two have the same, a tensor of the
            model stays empty, or a shape is another.
    """
    given: dict[str, tuple[int, ...]] = {}
    unknown, twice, shapes = [], [], []
    for name, tensor in stored.items():
        names = native_names(name)
        rows, *rest = tensor.shape or (0,)
        if len(names) == 3 and rows % 3:
            shapes.append(f"{name} has {rows} rows, expected a multiple of 3")
        shape = tensor.shape if len(names) < 2 else (rows // len(names), *rest)
        if not names or any(each not in expected for each in names):
            unknown.append(name)
        for each in names:
            if each in given:
                twice.append(name)
            given[each] = shape
            if each in expected and expected[each] != shape:
                shapes.append(f"{name} gives {each} {list(shape)}, expected {list(expected[each])}")
    problems = [
        (unknown, "in the checkpoint and not in the model that config.json describes"),
        (twice, "the same tensor twice"),
        (sorted(set(expected) - set(given)), "asked for by config.json and not in the checkpoint"),
        (shapes, "shapes differ from config.json"),
    ]
    lines = [f"{text}: {a_few(sorted(keys), _SHOWN)}" for keys, text in problems if keys]
    if lines:
        raise ConversionError("; ".join(lines))


def converted(file: Path, wanted: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor) of one file, renamed and split, as stored; the names `wanted` only."""
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if name not in wanted:
                continue
            names, tensor = native_names(name), tensors.get_tensor(name)
            for each, part in zip(names, tensor.chunk(len(names)), strict=True):
                # A part of a tensor would be written with the memory of the whole.
                yield each, part.clone() if len(names) > 1 else part
