"""What a run needs of this machine and what of it is missing, each with the way to get it."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from data_prep.stream import StreamError
from recipes.config.schema import Recipe
from recipes.processes.machine import gpu_count
from recipes.processes.missing_requirements import lacking
from recipes.run.chunk_data import missing_text, open_recipe_stream
from recipes.run.commands import PLUGIN, REPO, is_local
from recipes.run.trackers import missing_trackers
from strlora_tuner.methods.smolora.embedder_files import embedder_problem

# The newest whose own requirements (torch==2.13.0, transformers>=5.16.1,<5.20) are what
# requirements.lock holds.
VLLM = "0.32.0"


def what_is_missing(recipe: Recipe) -> list[str]:
    """Names everything that this machine lacks for the run, each with the way to get it."""
    missing = []
    model = recipe.model
    if is_local(model) and not (Path(model.path) / "config.json").is_file():
        how = model.download or "set model.path to a folder with config.json"
        missing.append(f"model: {model.path} is not there. Get it: {how}")
    missing += _own_code(recipe)
    try:
        stream = open_recipe_stream(recipe)
        stream.verify_tests([])
        missing += [
            f"data: {stream.chunk_file(index)} is empty: there is nothing to train on in chunk "
            f"{index} of data.stream; prepare the stream again or set data.chunks below it"
            for index in range(1, recipe.data.chunks + 1)
            if stream.chunk(index).samples == 0
            or (stream.chunk_file(index).is_file() and not stream.chunk_file(index).stat().st_size)
        ]
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
            "vLLM: eval.backend asks for it and it is not installed. Get it: "
            f"pip install vllm=={VLLM} (it requires the torch and transformers of "
            "requirements.lock; its other requirements may move packages, so take an environment "
            "of its own), or set eval.backend: transformers"
        )
    if not recipe.launcher.slurm.container:
        missing += missing_packages()
        missing += missing_trackers(recipe)
        embedder = getattr(recipe.tuner_options, "embedder", None)
        problem = embedder_problem(embedder) if embedder else None
        missing += [f"embedder: {problem}"] if problem else []
    missing += _deepspeed_file(recipe.launcher.deepspeed) + _caches()
    if recipe.routed and not PLUGIN.is_file():
        missing.append(f"tuner: {PLUGIN} is not there; the checkout is incomplete")
    return missing


def missing_packages() -> list[str]:
    """Names what this environment lacks of requirements.txt, the lazily imported included."""
    found = lacking(REPO / "requirements.txt")
    if not found:
        return []
    return [
        f"packages: {', '.join(found)}. Get them: {sys.executable} -m pip install -r "
        "requirements.txt, or leave --no-setup out"
    ]


def _own_code(recipe: Recipe) -> list[str]:
    """Says when a local model brings Python files that would have to be run."""
    found, kind = [], None
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = Path(recipe.model.path) / name
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "auto_map" in content:
                found.append(str(path))
                kind = kind or content.get("model_type")
    if not found or recipe.model.remote_code:
        return []
    fix = "Use a model that transformers knows by itself"
    if kind == "internvl_chat":
        here = recipe.model.path
        fix = f"Rewrite it: {sys.executable} -m recipes.convert_internvl {here} --to {here}-HF"
    return [
        f"trust: {', '.join(found)} ask to run Python files that came with the model. {fix}, or "
        "set model.remote_code: true if you trust its source"
    ]


_DEEPSPEED = (
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero2_offload",
    "zero3_offload",
)  # the host's own


def _deepspeed_file(name: str | None) -> list[str]:
    """Says when launcher.deepspeed is no name of the host's, no JSON and no file."""
    if name is None or name in _DEEPSPEED or name.lstrip().startswith("{"):
        return []
    try:
        json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        names = ", ".join(_DEEPSPEED)
        text = f"launcher.deepspeed: {name} cannot be read ({error}). Set {names}, or a JSON file"
        return [f"{text}; relative paths start at the repository's root"]
    return []


def _caches() -> list[str]:
    """Names the variables to set where the host cannot write its caches (a read-only HOME)."""
    home = os.environ.get("HOME", "")
    asked = {"HF_HOME": ".cache/huggingface", "MODELSCOPE_CACHE": ".cache/modelscope"}
    closed = []
    for variable, usual in asked.items():
        folder = Path(os.environ.get(variable) or Path(home) / usual).absolute()
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not os.access(there, os.W_OK):
            closed.append(f"{variable} (now {folder})")
    if not closed:
        return []
    return [
        f"caches: the host cannot write into {', '.join(closed)}. Set these variables to folders "
        "on a disk that is writable, and with them TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR"
    ]
