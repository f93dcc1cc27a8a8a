"""Is a local base model whole? Headers and sizes are read, no weights."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_prep.files import a_few
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import stored_tensors
from recipes.run.preflight.finding import Finding

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.(?:safetensors|bin)")
POINTER = b"version https://git-lfs"


def check_model(recipe: Recipe) -> Iterator[Finding]:
    """Whether every file of the model is there, whole, and asks to run nothing.

    Of a hub id nothing is known before it is fetched.
    """
    model, folder = recipe.model, Path(recipe.model.path)
    if not model.is_local:
        return
    if not (folder / "config.json").is_file():
        how = model.download or "set model.path to a folder with config.json"
        yield Finding("model", f"{model.path} is not there. Get it: {how}")
        return
    again = f"Get it again: {model.download or 'copy the whole folder'}"
    problems = [*_unreadable(folder), *_absent(folder), *weight_problems(folder)]
    yield from (Finding("model", f"{problem}. {again}") for problem in problems)
    if model.aligner is not None and not problems:
        yield from _no_aligner(folder, model.aligner)
    if not model.remote_code:
        yield from _own_code(folder)


def _no_aligner(folder: Path, aligner: str) -> Iterator[Finding]:
    """Says that no module has the name: the host would quietly train none, or another."""
    names = [name for name, _ in stored_tensors(folder)]
    if not names or any(f"{aligner}." in name for name in names):
        return
    modules = sorted({name.removeprefix("model.").partition(".")[0] for name in names})
    yield Finding(
        "aligner",
        f"model.aligner = {aligner}: no module of {folder} has that name; it has {a_few(modules)}. "
        "Set the name of the projector, or null to keep it frozen",
    )


def _unreadable(folder: Path) -> Iterator[str]:
    """JSON files that are cut short, empty, or Git LFS's word for a file that was not fetched."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            yield f"{path} cannot be read ({error.strerror or error})"
        except ValueError as error:
            yield f"{path} cannot be read ({_pointer(path) or error})"


def _absent(folder: Path) -> Iterator[str]:
    for names, what in ((TOKENIZERS, "tokenizer"), (PROCESSORS, "image processor")):
        if not any((folder / name).is_file() for name in names):
            yield f"{folder} has no {what}: expected {' or '.join(names)}"


def weight_problems(folder: Path) -> Iterator[str]:
    """Says of each weight file that the model's index names what is wrong with it."""
    for kind in WEIGHTS:
        index = folder / f"{kind}.index.json"
        if index.is_file():
            yield from _of_index(folder, index)
            return
    single = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if single is not None:
        yield from filter(None, [_damage(single, set())])
        return
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    if any(NUMBERED.fullmatch(name) for name in files):
        yield f"{folder} holds {a_few(files)} without their index model.safetensors.index.json"
    else:
        yield f"{folder} has no weights: expected {' or '.join(WEIGHTS)}, or an index of shards"


def _of_index(folder: Path, index: Path) -> Iterator[str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for tensor, shard in names.items():
            shards.setdefault(str(shard), set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield f"{index} is no index of weights: expected its weight_map"
        return
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        yield (
            f"{len(missing)} of {len(shards)} weight files are not in {folder}: {a_few(missing)}"
        )
    there = sorted(shards.keys() - set(missing))
    yield from filter(None, (_damage(folder / shard, shards[shard]) for shard in there))


def _damage(path: Path, tensors: set[str]) -> str | None:
    """What is wrong with a weight file, None if nothing; `tensors` must be in it."""
    size = path.stat().st_size
    if pointer := _pointer(path):
        return f"{path} is {pointer}"
    if path.suffix == ".bin":
        # torch writes zip archives, whose directory stands at the end; unpickling would run code.
        return None if zipfile.is_zipfile(path) else f"{path} ({size:,} bytes) is cut short"
    try:
        with safe_open(path, framework="numpy") as file:
            lacking = sorted(tensors - set(file.keys()))
    except SafetensorError as error:
        return f"{path} ({size:,} bytes) is cut short, too long or damaged: {error}"
    if lacking:
        return f"{path} lacks {len(lacking)} tensors that the index names in it: {a_few(lacking)}"
    return None


def _pointer(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(len(POINTER)) != POINTER:
            return None
    return "a Git LFS pointer, not the file itself (git lfs pull fetches it)"


def _own_code(folder: Path) -> Iterator[Finding]:
    """Says when the model brings Python files that would have to be run."""
    files, kind = [], None
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and "auto_map" in content:
            files.append(str(path))
            kind = kind or content.get("model_type")
    if not files:
        return
    fix = "Use a model that transformers knows by itself"
    if kind == "internvl_chat":
        fix = f"Rewrite it: {sys.executable} -m recipes.convert_internvl {folder} --to {folder}-HF"
    yield Finding(
        "trust",
        f"{', '.join(files)} ask to run Python files that came with the model. {fix}, or set "
        "model.remote_code: true if you trust its source",
    )
