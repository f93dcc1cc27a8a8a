"""`--dry-run`: every command of a run, printed, and what this machine lacks to run them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from recipes.baselines.mr_lora.pool import ROUTER_DATA, RouterLayout, has_router, router_recipe
from recipes.config.schema import Recipe
from recipes.processes.machine import gpu_count
from recipes.run.commands import PLUGIN, infer_command, is_local, train_command
from recipes.run.layout import RunLayout
from recipes.run.stream import (
    Stream,
    StreamError,
    missing_text,
    open_stream,
    own_samples,
    training_files,
)
from recipes.run.trackers import missing_trackers
from strlora_tuner.methods.smolora.embedder_files import embedder_problem


def preview(recipe: Recipe) -> Iterator[str]:
    """Yields the text of a dry run, piece by piece. Nothing is run, fetched or written."""
    layout = RunLayout(Path(recipe.folder))
    stream: Stream | None = None
    with suppress(StreamError):  # named at the end
        stream = open_stream(recipe)
    count = recipe.data.chunks
    yield f"# {recipe.name}: {recipe.method}, {count} chunks, into {layout.root}/"
    if recipe.unused_tuner_keys:
        yield f"# {unused_text(recipe)}"
    if recipe.model.remote_code:
        yield f"# model.remote_code: Python files of {recipe.model.path} WILL BE RUN"
    yield f"# chunk 0 of {count}: evaluate the base model"
    yield infer_command(recipe, layout, layout.prompts, 0).as_shell()
    for chunk in recipe.trained_chunks:
        files = training_files(recipe, layout, chunk, stream)
        yield f"\n# chunk {chunk} of {count}: {_what(recipe, chunk)}, then evaluate"
        own = own_samples(recipe, chunk, stream)
        yield train_command(recipe, layout, files, chunk, own=own).as_shell()
        if recipe.pool is not None and has_router(chunk):
            yield f"# chunk {chunk} of {count}: its router"
            router = RouterLayout(layout.root)
            file = layout.chunk(chunk) / ROUTER_DATA
            yield train_command(router_recipe(recipe), router, file, chunk).as_shell()
        if evaluated_after(recipe, chunk):
            yield infer_command(recipe, layout, layout.prompts, chunk).as_shell()
    yield f"\n# {len(recipe.trained_chunks)} chunk commands above; nothing was run."
    missing = what_is_missing(recipe)
    for text in missing:
        yield f"# MISSING  {text}"
    if not missing:
        yield "# Nothing is missing: leave --dry-run out to run them."


def _what(recipe: Recipe, chunk: int) -> str:
    if recipe.definition.protocol == "joint":
        return "train on all chunks shuffled together"
    if recipe.replay is not None and recipe.replays(chunk):
        return f"mix in {recipe.replay.share:g} of past samples, train"
    return "train"


def unused_text(recipe: Recipe) -> str:
    """Says which keys of the tuner block the recipe's method does not have."""
    keys = ", ".join(f"tuner.{key}" for key in recipe.unused_tuner_keys)
    return f"not used by method {recipe.method}: {keys}"


def evaluated_after(recipe: Recipe, chunk: int) -> bool:
    """Whether the recipe evaluates after `chunk`; always so after the last."""
    return chunk % recipe.eval.every == 0 or chunk == recipe.data.chunks


def _own_code(recipe: Recipe) -> list[str]:
    """Says when a local model brings Python files that would have to be run."""
    found = []
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = Path(recipe.model.path) / name
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "auto_map" in content:
                found.append(str(path))
    if not found or recipe.model.remote_code:
        return []
    return [
        f"trust: {', '.join(found)} ask to run Python files that came with the model. Use a model "
        "that transformers knows by itself, or set model.remote_code: true if you trust its source"
    ]


def what_is_missing(recipe: Recipe) -> list[str]:
    """Names everything that this machine lacks for the run, each with the way to get it."""
    missing = []
    model = recipe.model
    if is_local(model) and not (Path(model.path) / "config.json").is_file():
        how = model.download or "set model.path to a folder with config.json"
        missing.append(f"model: {model.path} is not there. Get it: {how}")
    missing += _own_code(recipe)
    try:
        stream = open_stream(recipe)
        stream.verify_tests([])
    except StreamError as error:
        absent = not (Path(recipe.data.stream) / "stream.json").is_file()
        made = recipe.data.source == "mini" and absent
        text = missing_text(recipe.data) if absent else str(error)
        missing.append(f"data: {text}{' (the run does so by itself)' if made else ''}")
    if not recipe.launcher.cpu and gpu_count() < recipe.launcher.nproc:
        missing.append(
            f"GPUs: launcher.nproc asks for {recipe.launcher.nproc}, here are {gpu_count()}. "
            "Run it on a machine with enough, or set launcher.nproc to a divisor that keeps "
            "schedule.global_batch (the accumulation is derived)"
        )
    if recipe.eval.backend == "vllm" and find_spec("vllm") is None:
        missing.append(
            "vLLM: eval.backend asks for it and it is not installed. Get it: pip install vllm "
            "(it brings its own torch: use an environment of its own), or set eval.backend: "
            "transformers"
        )
    if not recipe.launcher.slurm.container:
        missing += missing_trackers(recipe)
        embedder = getattr(recipe.tuner_options, "embedder", None)
        problem = embedder_problem(embedder) if embedder else None
        missing += [f"embedder: {problem}"] if problem else []
    if recipe.routed and not PLUGIN.is_file():
        missing.append(f"tuner: {PLUGIN} is not there; the checkout is incomplete")
    return missing
