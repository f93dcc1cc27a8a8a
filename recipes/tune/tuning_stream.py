"""The stream that a tuning trains on and is judged by: never the one that is reported.

The embedded stream is rendered with another seed (`SEED_OFFSET` above the recipe's), and its
validation split takes the place of the test sets: other pictures and questions than those that any
report is made from.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_prep.files import read_json, sha256_file, write_json
from data_prep.mini.mixtures import SIZES
from data_prep.stream import MANIFEST, StreamError, open_stream
from recipes.config.blocks import Data
from recipes.config.schema import Recipe
from recipes.run.chunk_data import ensure_stream

SEED_OFFSET = 1000
FOLDER = Path("data/tuning")


def tuning_data(recipe: Recipe, stream: Path | None) -> dict[str, Any]:
    """The recipe's `data` block for a tuning, whether its stream exists yet or not.

    Args:
        stream: a stream folder that the user keeps for tuning; needed unless the stream is the
            embedded one.

    Raises:
        StreamError: there is no stream to tune on, or it is the one that is reported.
    """
    data = recipe.data
    if stream is not None:
        if stream.resolve() == Path(data.stream).resolve() or _same(stream, Path(data.stream)):
            raise StreamError(
                f"--stream {stream} is the recipe's own stream: its test sets would choose the "
                "settings that they report on; give one of other samples"
            )
        return {"source": "folder", "stream": str(stream)}
    if data.source != "mini":
        raise StreamError(
            f"the recipe's stream {data.stream} has no validation split that this program could "
            "make: cut a stream of other samples (data_prep.chunk --holdout) and give it with "
            "--stream FOLDER"
        )
    return {"source": "folder", "stream": str(FOLDER / f"{_name(data)}-validation")}


def _same(stream: Path, own: Path) -> bool:
    files = [stream / MANIFEST, own / MANIFEST]
    return all(f.is_file() for f in files) and sha256_file(files[0]) == sha256_file(files[1])


def ensure_tuning_stream(recipe: Recipe) -> None:
    """Renders the tuning stream of the embedded stream, and its view with validation as test sets.

    A whole one is left alone. Raises StreamError when it cannot be made.
    """
    data = recipe.data
    raw = FOLDER / _name(data)
    view = FOLDER / f"{_name(data)}-validation"
    if (view / MANIFEST).is_file():
        return
    wanted = {"stream": str(raw), "size": _size(data), "seed": data.seed + SEED_OFFSET}
    ensure_stream(recipe.model_copy(update={"data": data.model_copy(update=wanted)}))
    write_view(raw, view)


def write_view(raw: Path, view: Path) -> None:
    """Writes `view`: the chunks of `raw`, its images by a link, its validation files as tests.

    Raises:
        StreamError: a task of `raw` has no validation file.
    """
    manifest = read_json(raw / MANIFEST)
    view.mkdir(parents=True, exist_ok=True)
    link = view / "images"
    if not link.is_symlink():
        link.symlink_to((raw / "images").resolve(), target_is_directory=True)
    for task, entry in manifest["tasks"].items():
        if "validation" not in entry:
            raise StreamError(f"{raw / MANIFEST}: the task {task} has no validation split")
        part = entry["validation"]
        manifest["tasks"][task] = {
            "scorer": entry["scorer"],
            "test": part["file"],
            "samples": part["samples"],
            "sha256": part["sha256"],
        }
    manifest["name"] += "-validation"
    files = [entry["file"] for entry in manifest["chunks"]]
    for file in [*files, *(entry["test"] for entry in manifest["tasks"].values())]:
        (view / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(raw / file, view / file)
    write_json(view / MANIFEST, manifest)  # last: a view without it is not used


def _name(data: Data) -> str:
    return f"{_size(data)}-seed{data.seed + SEED_OFFSET}"


def _size(data: Data) -> str:
    """The size itself where it has a validation split, else the one made for tuning."""
    if data.size in SIZES and SIZES[data.size].validation:
        return data.size
    name = f"{data.size}-tuning"
    if name not in SIZES:
        raise StreamError(
            f"data.size = {data.size} has no validation split and there is no size {name} with one"
        )
    return name


def trained_tasks(recipe: Recipe, stream: Path) -> list[str]:
    """The test sets of what the recipe's chunks hold: scores of others say nothing of a setting.

    Of a test set of one period it is the chunk of that period.

    Raises:
        StreamError: there is no such test set, or the stream cannot be read.
    """
    found, last = open_stream(stream), recipe.data.chunks
    held = {task for chunk in found.chunks[:last] for task, count in chunk.tasks.items() if count}
    asked = recipe.eval.tasks or found.tasks
    tests = [found.tests[name] for name in asked if name in found.tests]
    tasks = [t.name for t in tests if t.trained_as in held and (t.chunk or 1) <= last]
    if not tasks:
        raise StreamError(
            f"{stream / MANIFEST}: no test set is of a task that chunks 1 to {last} hold; test "
            f"sets: {', '.join(asked) or 'none'}; tasks of the chunks: {', '.join(sorted(held))}. "
            "Give more chunks (data.chunks), or a stream with a hold-out (data_prep.chunk "
            "--holdout)"
        )
    return tasks
