"""manifest.json: what a second laboratory needs to know, and the check that it is the same run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from omegaconf import OmegaConf
from pydantic import ValidationError
from typing_extensions import NotRequired

from data_prep.files import sha256_file, write_json, write_text
from data_prep.stream import Stream
from recipes import REPO, UserError
from recipes.config.blocks import Slurm
from recipes.config.method import FREEZE
from recipes.config.problems import shown
from recipes.config.recorded import migrate
from recipes.config.schema import Recipe
from recipes.processes.machine import git, hardware, number_variables, versions
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.start import Start, read_start
from recipes.run_folder.state import RunState, read_record

# Keys that may change while a run continues: none of them changes a number in its matrix.
FREE_KEYS: tuple[str, ...] = ("run_dir", "model.download", "data.prepare", "eval.batch_size")
FREE_KEYS += ("eval.both_weights",)
FREE_KEYS += ("launcher.omp_threads", "launcher.gpu_gib")
FREE_KEYS += ("schedule.save_steps", "schedule.keep_checkpoints")
# Processes and machines: between chunks only (recipes.run.runner); the global batch is the same.
FREE_KEYS += ("launcher.kind", "launcher.nodes", "launcher.nproc", "launcher.resident")
FREE_KEYS += tuple(f"launcher.slurm.{key}" for key in Slurm.model_fields)
FREE_KEYS += ("swift.logging_steps", "swift.report_to", "swift.run_name")
FREE_KEYS += ("swift.swanlab_mode", "swift.swanlab_project", "swift.dataloader_num_workers")

# Keys that may change between chunks under a condition; a change is recorded with the start.
LOOSE_KEYS: tuple[str, ...] = ("model.max_length", "data.too_long")
LOOSE_KEYS += ("schedule.per_device_batch", "launcher.deepspeed")

HASHED_AGAIN_BELOW = 2**30  # bytes


class RunChanged(UserError):
    """The recipe or the data differ from those that the run was started with."""


class SessionEntry(TypedDict):
    """One start of the orchestrator: when, by which code, on what machine.

    `changes` holds what of LOOSE_KEYS differs from the recipe of the first start, "old -> new".
    """

    started: str
    git: dict[str, object]
    versions: dict[str, str | None]
    hardware: dict[str, object]
    processes: int
    changes: NotRequired[dict[str, str]]


class ChunkCosts(TypedDict):
    """Seconds of wall clock that a chunk took so far; chunk 0 is the evaluation of the base."""

    chunk: int
    wall_seconds: float
    train_seconds: float
    eval_seconds: float


class DataIdentity(TypedDict):
    """The stream of a run; `chunks` holds the sha256 of those it trains on.

    `grown` holds sha256 of stream.json, and the run's chunks, before each growth.
    """

    stream: str
    name: str | None
    sha256: str
    chunks: list[str]
    grown: NotRequired[list[tuple[str, int]]]


class ModelIdentity(TypedDict, total=False):
    """The base model: sizes and sha256 of a local one's files by name; a hub id is only named."""

    path: str
    hub_id: str
    bytes: dict[str, int]
    sha256: dict[str, str] | None


class Manifest(SessionEntry):
    """manifest.json: the run as it was first started, and a list of all starts."""

    format: int
    name: str
    recipe: dict[str, Any]
    protocol: str
    tuner: dict[str, Any] | None
    preset: str | None
    data: DataIdentity
    start_from: NotRequired[Start]
    model: ModelIdentity
    seed: int
    chunk_seeds: dict[str, int]
    environment: dict[str, str]
    scorers: NotRequired[dict[str, str]]
    threads: int
    global_batch: int
    sessions: list[SessionEntry]
    chunks: list[ChunkCosts]


def write_manifest(
    layout: RunLayout, recipe: Recipe, stream: Stream, state: RunState, threads: int
) -> None:
    """Writes manifest.json and recipe.yaml at the first start; later starts are only added.

    Args:
        threads: of a host process.
    """
    session: SessionEntry = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git": git(REPO),
        "versions": versions(),
        "hardware": hardware(),
        "processes": recipe.processes,
    }
    if layout.manifest.is_file():
        manifest = read_manifest(layout)
        changed = [each for each in _differences(layout, recipe) if each.key in LOOSE_KEYS]
        if changed:
            session["changes"] = {d.key: f"{shown(d.old)} -> {shown(d.new)}" for d in changed}
        if has_grown(layout, recipe):
            _grow(layout, manifest, recipe, stream)
    else:
        manifest = _new_manifest(recipe, stream, session, threads)
        if start := read_start(layout):
            manifest["start_from"] = start
        write_text(layout.recipe, OmegaConf.to_yaml(OmegaConf.create(resolved(recipe))))
    manifest["sessions"].append(session)
    _write(layout, manifest, state)


def write_costs(layout: RunLayout, state: RunState) -> None:
    """Brings the costs of the chunks in manifest.json to what `state` says."""
    _write(layout, read_manifest(layout), state)


def _write(layout: RunLayout, manifest: Manifest, state: RunState) -> None:
    """Writes manifest.json; the costs are for people and follow from state.json alone."""
    manifest["chunks"] = [
        {
            "chunk": record.index,
            "wall_seconds": round(record.train_seconds + record.eval_seconds, 1),
            "train_seconds": record.train_seconds,
            "eval_seconds": record.eval_seconds,
        }
        for record in state.chunks
    ]
    write_json(layout.manifest, manifest)


def _new_manifest(recipe: Recipe, stream: Stream, session: SessionEntry, threads: int) -> Manifest:
    return {
        "format": 1,
        "name": recipe.name,
        **session,
        "recipe": resolved(recipe),
        "protocol": recipe.protocol.name,
        "tuner": asdict(recipe.tuner_options) if recipe.routed else None,
        "preset": recipe.preset_label,
        "data": {
            "stream": recipe.data.stream,
            "name": stream.name or None,
            "sha256": stream.sha256,
            "chunks": _chunk_hashes(recipe, stream),
        },
        "model": model_identity(Path(recipe.model.path)),
        "seed": recipe.seed,
        "chunk_seeds": {str(i): recipe.chunk_seed(i) for i in recipe.trained_chunks},
        "environment": number_variables(),
        "threads": threads,
        "global_batch": recipe.schedule.global_batch,
        "sessions": [],
        "chunks": [],
    }


def model_identity(path: Path) -> ModelIdentity:
    """sha256 of every weight and configuration file of a local model; a hub id is only named."""
    if not path.is_dir():
        return {"hub_id": str(path), "sha256": None}
    hashes = {file.name: sha256_file(file) for file in _model_files(path)}
    return {"path": str(path), "bytes": _sizes(path), "sha256": hashes}


def _model_files(path: Path) -> list[Path]:
    return [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", ".json", ".jinja")]


def _sizes(path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in _model_files(path)}


def read_manifest(layout: RunLayout) -> Manifest:
    """Reads manifest.json; StateError when it is damaged."""
    return cast(Manifest, read_record(layout.manifest))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, defaults filled in."""
    values = recipe.model_dump(mode="json")
    # Written out: a preset of a later version may freeze at another chunk, and this run must not.
    values["schedule"]["later"][FREEZE] = recipe.routers_frozen_from
    return values


def check_same_run(layout: RunLayout, recipe: Recipe) -> None:
    """Raises RunChanged when `recipe` is not the one that the run folder was started with."""
    if not layout.manifest.is_file():
        return
    changed = [
        f"  {each.key}: {shown(each.old)} in the run, {shown(each.new)} now{why}"
        for each in _differences(layout, recipe)
        if (why := _why_refused(each, layout, recipe)) is not None
    ]
    if changed:
        raise RunChanged(
            f"{layout.root} was started with another recipe:\n" + "\n".join(changed) + "\n"
            "Its numbers would no longer mean one thing. Continue with the old values, or give "
            f"this recipe its own folder: {shlex.quote(f'run_dir={layout.root}-2')}"
        )


class _Difference(NamedTuple):
    key: str
    old: Any
    new: Any


def _differences(layout: RunLayout, recipe: Recipe) -> Iterator[_Difference]:
    """Yields every key that differs from the recipe that the run was started with."""
    old, new = dict(flat(_recorded(layout))), dict(flat(_normalized(recipe)))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield _Difference(key, old.get(key), new.get(key))


def _why_refused(change: _Difference, layout: RunLayout, recipe: Recipe) -> str | None:
    """None where a key may change; else the reason, empty where there is nothing to add."""
    # Another scorer judges all recorded answers again (recipes.run.scoring).
    if change.key in FREE_KEYS or change.key.startswith(("launcher.deepspeed", "eval.scorer")):
        return None
    if _has_grown(change.key, change.old, change.new):
        text = f" (method {recipe.method} shuffles all chunks into one training: it cannot grow)"
        return None if recipe.protocol.grows else text
    if change.key == "model.max_length":
        return None if change.new > change.old else " (it may only grow)"
    if change.key == "data.too_long":
        met = next(layout.root.glob("chunks/*/*too_long.jsonl"), None)
        return None if met is None else f" ({met} names samples that were dealt with otherwise)"
    if change.key == "schedule.per_device_batch":
        if getattr(recipe.tuner_options, "padding", "") != "include":
            return None
        return " (tuner.padding is include: averages over padding depend on the batch)"
    return ""


def _has_grown(key: str, before: Any, now: Any) -> bool:
    """Whether a key differs only by chunks that came behind those of the run."""
    if key == "data.chunks":
        return isinstance(before, int) and now > before
    if key == "pool.descriptions":  # one a chunk
        return isinstance(before, list) and isinstance(now, list) and now[: len(before)] == before
    return False


def has_grown(layout: RunLayout, recipe: Recipe) -> bool:
    """Whether `recipe` has more chunks than the run was started, or has gone on, with."""
    if not layout.manifest.is_file():
        return False
    return _has_grown("data.chunks", _recorded(layout)["data"]["chunks"], recipe.data.chunks)


def _grow(layout: RunLayout, manifest: Manifest, recipe: Recipe, stream: Stream) -> None:
    """Notes in the manifest and recipe.yaml which chunks the run has now."""
    data, trained = manifest["data"], len(manifest["data"]["chunks"])
    data.setdefault("grown", []).append((data["sha256"], trained))
    data["sha256"], data["chunks"] = stream.sha256, _chunk_hashes(recipe, stream)
    manifest["chunk_seeds"] = {str(i): recipe.chunk_seed(i) for i in recipe.trained_chunks}
    values = manifest["recipe"]
    values["data"]["chunks"] = recipe.data.chunks
    if recipe.pool is not None:
        values["pool"]["descriptions"] = list(recipe.pool.descriptions)
    write_text(layout.recipe, OmegaConf.to_yaml(OmegaConf.create(values)))


def _chunk_hashes(recipe: Recipe, stream: Stream) -> list[str]:
    return [stream.chunk(i + 1).sha256 for i in range(recipe.data.chunks)]


def _recorded(layout: RunLayout) -> dict[str, Any]:
    """The recipe that a run was started with, with the keys that came since at their defaults.

    One that today's schema no longer accepts stays as it is: every difference will be named.
    """
    # Through today's schema: a key that came since has its default on both sides and is no
    # difference.
    values = migrate(read_manifest(layout)["recipe"])
    with suppress(ValidationError):
        return _normalized(Recipe.model_validate(values))
    return values


def _normalized(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, its tuner's options over their preset and defaults."""
    values = resolved(recipe)
    with suppress(ValueError, TypeError):  # options that are refused are named when they are used
        values["tuner"] = asdict(recipe.tuner_options)
    return values


def check_same_environment(layout: RunLayout) -> None:
    """Raises RunChanged when variables that change numbers are not as at the run's start."""
    if not layout.manifest.is_file():
        return
    now = number_variables()
    before = read_manifest(layout).get("environment", now)  # earlier versions recorded none
    changed = [
        f"  {name}: {shown(before.get(name))} at its start, {shown(now.get(name))} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise RunChanged(
            f"{layout.root} was started in another environment:\n" + "\n".join(changed) + "\n"
            "These variables change its numbers (None: not set). Set them as they were (export, "
            "unset), or start again with another run_dir"
        )


def check_same_data(layout: RunLayout, stream: Stream) -> None:
    """Raises RunChanged when the stream is not the one of the run, or has not grown from it."""
    if not layout.manifest.is_file():
        return
    data = read_manifest(layout)["data"]
    known, batches = data["sha256"], stream.facts.get("batches") or []
    chunks = [chunk.sha256 for chunk in stream.chunks[: len(data["chunks"])]]
    grown = any(batch["before"] == known for batch in batches) and chunks == data["chunks"]
    if known != stream.sha256 and not grown:
        raise RunChanged(
            f"the stream {stream.root} changed since {layout.root} was started: "
            f"{stream.root / 'stream.json'} has sha256 {stream.sha256[:12]}..., the run recorded "
            f"{known[:12]}.... Bring the old stream back, or start again with another run_dir (a "
            "stream that grows under a run is made with data_prep.chunk --append)"
        )


def check_same_model(layout: RunLayout, recipe: Recipe) -> None:
    """Raises RunChanged when a local base model is not the one that the run was started with.

    Sizes are always compared, contents where that takes no longer than a second or two.
    """
    path = Path(recipe.model.path)
    if not layout.manifest.is_file() or not path.is_dir():
        return
    known = read_manifest(layout)["model"]
    small = sum(known.get("bytes", {}).values()) < HASHED_AGAIN_BELOW
    now: ModelIdentity = model_identity(path) if small else {"bytes": _sizes(path)}
    kinds = (known.get("bytes"), now.get("bytes")), (known.get("sha256"), now.get("sha256"))
    changed = {
        name
        for before, after in kinds
        if before is not None and after is not None  # else it was not taken
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }
    if changed:
        names = ", ".join(sorted(changed))
        raise RunChanged(
            f"the base model {path} changed since {layout.root} was started: {names}. "
            "Bring the old one back, or start again with another run_dir"
        )


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
