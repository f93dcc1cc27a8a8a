"""Is there room: on the disk for what the run leaves, in /dev/shm for the loaders' batches?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.files import read_json
from recipes import REPO
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import CountError, Shape, model_shape
from recipes.config.sizes.stored import BYTES, checkpoint_bytes, left_by_all, sizes_by_chunk
from recipes.run.preflight.finding import Finding
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import StateError, load_state
from strlora_tuner.options import Size

GIB = 2**30
# No adapter stores more than this many times the numbers of a plain LoRA of its rank (a test counts
# them all); one that grows does so in every chunk. Counting exactly takes torch, and seconds.
AT_MOST = 5
SHARED = Path("/dev/shm")
PREFETCHED = 2  # batches that torch's loader has ready for each worker


def done_chunks(recipe: Recipe) -> int:
    """Chunks that the run folder already holds."""
    # The run itself refuses a damaged state, and says how to go on.
    with suppress(StateError):
        return load_state(RunLayout(Path(recipe.folder)).state).done
    return 0


def check_disk(recipe: Recipe) -> Iterator[Finding]:
    """Whether what `plan` says will be stored fits where the run folder is, or will be."""
    folder = Path(recipe.folder).absolute()
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding("disk", f"{folder} cannot be written: correct its mode, or set run_dir")
        return
    try:
        shape = model_shape(recipe)
    except CountError:
        return  # a finding of its own
    if shape is None:
        return
    free = shutil.disk_usage(folder).free
    most = dict.fromkeys(recipe.trained_chunks, _at_most(recipe, shape))
    if bytes_to_come(recipe, most) <= free:
        return
    sizes = _counted(recipe, shape)
    if sizes is None or bytes_to_come(recipe, sizes) <= free:
        return
    to_come = bytes_to_come(recipe, sizes)
    yield Finding(
        "disk",
        f"the run will write {to_come / GIB:.3g} GiB into {folder} (adapters of "
        f"{len(recipe.trained_chunks)} chunks, checkpoints of one), and {free / GIB:.3g} are free: "
        "make room, or set run_dir to a larger disk",
    )


def bytes_to_come(recipe: Recipe, sizes: Mapping[int, Size]) -> int:
    """Bytes of adapters that are still to be written, and of the checkpoints of one chunk."""
    done = done_chunks(recipe)
    left = {chunk: size for chunk, size in sizes.items() if chunk > done}
    if not left:
        return 0
    return left_by_all(recipe, left) * BYTES + checkpoint_bytes(recipe, left[max(left)])


def _at_most(recipe: Recipe, shape: Shape) -> Size:
    if recipe.tuner_type is None:
        return Size(0, 0)
    options = recipe.tuner_options
    pairs = options.loras * options.rank * sum(map(sum, shape.linears(options.targets)))
    grown = recipe.data.chunks if recipe.options_class.grows else 1
    return Size(AT_MOST * pairs + shape.aligner, AT_MOST * pairs * grown + shape.aligner)


def _counted(recipe: Recipe, shape: Shape) -> dict[int, Size] | None:
    """The own parameters of each chunk's adapter; None where torch is not installed."""
    # Else in a process of its own: torch takes seconds and must not stay in the orchestrator.
    if "torch" in sys.modules:
        return sizes_by_chunk(recipe, shape)
    done = subprocess.run(
        [sys.executable, "-m", "recipes.config.sizes.stored"],
        input=recipe.model_dump_json(),
        capture_output=True,
        text=True,
        cwd=REPO,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode:
        return None
    lines = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    return {chunk: Size(trained, stored) for chunk, trained, stored in lines}


def check_shared_memory(recipe: Recipe) -> Iterator[Finding]:
    """Whether /dev/shm holds the batches that the loaders' workers hand over there."""
    workers = int(recipe.swift.get("dataloader_num_workers") or 0)
    if not workers or not SHARED.is_dir():
        return
    pixels = sample_bytes(Path(recipe.model.path), recipe.swift.get("max_pixels"))
    batches = recipe.launcher.nproc * workers * PREFETCHED
    needed = batches * recipe.schedule.per_device_batch * pixels
    free = shutil.disk_usage(SHARED).free
    if free < needed:
        yield Finding(
            "memory",
            f"/dev/shm has {free / GIB:.2f} GiB free, and {recipe.launcher.nproc} x {workers} "
            f"workers hand over up to {needed / GIB:.2f} there ({PREFETCHED} batches of "
            f"{recipe.schedule.per_device_batch} a worker, {pixels / 2**20:.0f} MiB a picture): "
            "start the container with a larger --shm-size (or --ipc=host), or set "
            "swift.dataloader_num_workers to 0",
        )


def sample_bytes(folder: Path, max_pixels: int | None) -> int:
    """Bytes of the largest picture as float32, from the processor's own file; 0: not known.

    InternVL cuts it into up to `max_patches` tiles and a thumbnail, which the host turns on; Qwen
    takes up to `max_pixels`, each frame twice; Gemma and LLaVA one square.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        with suppress(OSError, ValueError):
            settings = read_json(folder / name)
            settings = settings.get("image_processor", settings)
            if pixels := _pixels(settings, max_pixels):
                return pixels * 3 * 4
    return 0


def _pixels(settings: dict[str, Any], max_pixels: int | None) -> int:
    size = settings.get("size") or {}
    if "max_patches" in settings:
        side = size.get("height", 448)
        return (settings["max_patches"] + 1) * side * side
    if "merge_size" in settings:
        limit = max_pixels or settings.get("max_pixels") or size.get("longest_edge") or 0
        return int(limit) * int(settings.get("temporal_patch_size", 1))
    side = size.get("height") or size.get("shortest_edge") or 0
    return int(side) * int(side)
