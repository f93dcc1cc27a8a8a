"""`start_from`: the adapter of another run becomes this run's chunk 0, with all that it carries.

It is copied into the run folder once, before the first chunk is trained: what happens to the source
later changes nothing. From then on chunk 1 goes on from chunk 0 as any chunk does from the one
before it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_prep.files import read_json, write_json
from recipes.baselines.replay import Reservoir, load_reservoir, replays_at, save_reservoir
from recipes.config.problems import shown
from recipes.config.schema import Recipe
from recipes.run_folder.checkpoints import (
    OPTIMIZER,
    CheckpointError,
    adapter_hashes,
    verify_adapter,
)
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import model_identity, read_manifest
from recipes.run_folder.start import FACTS, Start, read_start
from recipes.run_folder.state import RunState, StateError, load_state
from recipes.run_folder.whole_folder import whole_folder
from strlora_tuner.methods.ewc import state_file as ewc
from strlora_tuner.methods.ewc.state_file import check_state_file
from strlora_tuner.methods.slow_weights.both_sets import check_sets, inner_weights
from strlora_tuner.saved import CONFIG, WEIGHTS, AdapterError, check_adapter, check_finite


@dataclass(frozen=True)
class _Source:
    """An adapter, and the run and chunk that it is of; without a run, an adapter alone."""

    adapter: Path
    run: RunLayout | None = None
    state: RunState | None = None
    chunk: int = 0


def bring_start(recipe: Recipe, layout: RunLayout, state: RunState) -> None:
    """Copy the adapter that `recipe.start_from` names into the run folder, unless it is there.

    Raises:
        CheckpointError: there is none, it is damaged, or the recipe cannot go on from it.
    """
    if recipe.start_from is None:
        return
    target, record = layout.adapter(0), state.record(0)
    if not target.is_dir():
        source = _find(recipe.start_from)
        if problems := list(_problems(recipe, source)):
            raise CheckpointError("\n  ".join([f"start_from = {recipe.start_from}:", *problems]))
        _copy(recipe, source, layout)
    facts = read_start(layout)
    assert facts is not None, "copied with the adapter"
    record.adapter_sha256, record.replay_sha256 = facts["sha256"], facts["replay_sha256"]


def start_problems(recipe: Recipe) -> Iterator[str]:
    """What stands in the way of `start_from`, before anything of the run is there."""
    if recipe.start_from is None or RunLayout(Path(recipe.folder)).adapter(0).is_dir():
        return
    try:
        yield from _problems(recipe, _find(recipe.start_from))
    except (CheckpointError, StateError) as error:
        yield str(error)


def will_replay(recipe: Recipe, layout: RunLayout, chunk: int) -> bool:
    """`replays_at`, also where the run is only planned and has nothing of `start_from` yet."""
    if chunk > 1 or recipe.start_from is None or layout.adapter(0).is_dir():
        return replays_at(recipe, layout, chunk)
    try:
        return recipe.replays(chunk) and _memory(_find(recipe.start_from)) is not None
    except (CheckpointError, StateError):
        return False  # `start_problems` tells why


def _find(name: str) -> _Source:
    path = Path(name)
    if (path / CONFIG).is_file():
        run = RunLayout(path.resolve().parents[2])
        number = path.resolve().parent.name
        if not (number.isdigit() and run.state.is_file() and run.adapter(int(number)).is_dir()):
            return _Source(path)
        return _Source(path, run, load_state(run.state), int(number))
    run = RunLayout(path)
    if not run.manifest.is_file() or not run.state.is_file():
        raise CheckpointError(
            f"start_from = {name} is neither a run folder (with manifest.json and state.json) nor "
            f"an adapter's (with {CONFIG}): name one, such as runs/tiny or runs/tiny/chunks/003/"
            "adapter"
        )
    state = load_state(run.state)
    trained = [record.index for record in state.chunks if record.trained]
    if not trained:
        raise CheckpointError(
            f"start_from = {name}: no chunk of it is trained yet; train one first"
        )
    return _Source(run.adapter(max(trained)), run, state, max(trained))


def _problems(recipe: Recipe, source: _Source) -> Iterator[str]:
    """Why a recipe cannot go on from an adapter, each with the key and the fix."""
    config = _config(source)
    wanted, found = str(recipe.tuner_type).upper(), str(config.get("peft_type", "")).upper()
    try:
        check_adapter(source.adapter, recipe.options_class)
        check_finite(source.adapter / WEIGHTS)
        if source.state is not None:
            verify_adapter(source.adapter, source.state.record(source.chunk).adapter_sha256)
    except (AdapterError, CheckpointError) as error:
        # Of another type, its tensors must differ: that is said below, and says more.
        if found in ("", wanted):
            yield str(error)
            return
    if found != wanted:
        yield (
            f"method = {recipe.method} trains adapters of type {wanted}, this one is of type "
            f"{found or 'none'}: set the method that it was trained with"
        )
        return
    yield from _other_base(recipe, source, config)
    options = recipe.tuner_options
    for item in fields(options):
        name = item.metadata["peft"] or item.name
        value, saved = getattr(options, item.name), config.get(name)
        # A chunk may change what is scheduled; everything else stays as the adapter was saved.
        if name in config and item.name not in options.scheduled and saved != value:
            yield (
                f"tuner.{item.name} = {shown(value)}, but the adapter was trained with "
                f"{shown(saved)} and keeps it: set tuner.{item.name}={saved}"
            )
    replay = _replay_of(source)
    if recipe.replay and replay and replay["size"] != recipe.replay.memory:
        yield (
            f"replay.memory = {recipe.replay.memory}, but the memory that comes along holds "
            f"{replay['size']}: set replay.memory={replay['size']}"
        )
    if recipe.slow_weights and inner_weights(source.adapter):
        try:
            check_sets(source.adapter, recipe.slow_weights.answer)
        except AdapterError as error:
            yield f"slow_weights.answer = {recipe.slow_weights.answer}: {error}"
    if recipe.ewc and (source.adapter / ewc.FILE).is_file():
        try:
            check_state_file(source.adapter, recipe.ewc.fisher)
        except AdapterError as error:
            yield f"ewc.fisher = {recipe.ewc.fisher}: {error}"


def _config(source: _Source) -> dict[str, Any]:
    try:
        found = read_json(source.adapter / CONFIG)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _other_base(recipe: Recipe, source: _Source, config: dict[str, Any]) -> Iterator[str]:
    """Where the adapter's base model is another one: by the files' sha256, else by its name."""
    here = model_identity(Path(recipe.model.path))
    there = read_manifest(source.run)["model"] if source.run else {}
    if here.get("sha256") and there.get("sha256"):
        same = here["sha256"] == there["sha256"]
    else:
        base = str(config.get("base_model_name_or_path") or "")
        same = not base or Path(base).name == Path(recipe.model.path).name
    if not same:
        base = there.get("path") or there.get("hub_id") or config["base_model_name_or_path"]
        yield (
            f"model.path = {recipe.model.path} is another base model than that of the adapter "
            f"({base}): set model.path to that one"
        )


def _replay_of(source: _Source) -> dict[str, Any] | None:
    if source.run is None or not source.run.replay(source.chunk).is_dir():
        return None
    found: dict[str, Any] = read_json(source.run.replay(source.chunk) / "state.json")
    return found


def _copy(recipe: Recipe, source: _Source, layout: RunLayout) -> None:
    """Bring adapter and memory into the run folder, the adapter's folder, which counts, last."""
    carried, missing = [f"the adapter ({recipe.tuner_type})"], list[str]()
    if recipe.options_class.state_tensors:
        carried.append("its averages and statistics")
    if recipe.ewc:
        where = carried if (source.adapter / ewc.FILE).is_file() else missing
        where.append("the state of ewc")
    if recipe.slow_weights:
        (carried if inner_weights(source.adapter) else missing).append("slow weights")
    if recipe.keeps_optimizer:
        where = carried if (source.adapter / OPTIMIZER).is_file() else missing
        where.append("the optimizer's state")
    memory = _memory(source) if recipe.replay else None
    if recipe.replay:
        (missing if memory is None else carried).append("the memory of replay")
    # Of a start that was killed before the adapter was in its place.
    shutil.rmtree(layout.replay(0), ignore_errors=True)
    replay_sha256 = {} if memory is None else save_reservoir(layout.replay(0), memory)
    with whole_folder(layout.adapter(0)) as folder:
        shutil.copytree(source.adapter, folder, dirs_exist_ok=True)
        known = source.state.record(source.chunk).adapter_sha256 if source.state else {}
        verify_adapter(folder, known)  # it may have changed while it was copied
        facts: Start = {
            "source": str(source.adapter),
            "sha256": adapter_hashes(folder),
            "replay_sha256": replay_sha256,
            "carried": carried,
            "missing": missing,
        }
        write_json(folder / FACTS, facts)


def _memory(source: _Source) -> Reservoir | None:
    """The samples that the source kept, their pictures by whole paths: its stream is another one.

    None where it has none, or their pictures are gone.
    """
    if source.run is None or source.state is None or _replay_of(source) is None:
        return None
    known = source.state.record(source.chunk).replay_sha256
    memory = load_reservoir(source.run.replay(source.chunk), known)
    root = Path(read_manifest(source.run)["data"]["stream"]).resolve()
    samples = [json.loads(line) for line in memory.lines]
    for sample in samples:
        if images := sample.get("images"):
            sample["images"] = [str(root / image) for image in images]
            # The pictures are not copied: they lie in the stream of the source, which may be gone.
            if not all(map(os.path.isfile, sample["images"])):
                return None
    memory.lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    return memory
