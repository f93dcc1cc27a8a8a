"""What a training step takes of a GPU's memory: the host's own step, over shapes alone.

What swift_plugins/step_memory.py predicts is one process without DeepSpeed; the share of a stage of
DeepSpeed is counted here, from the file that the host would use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.check.lengths import spread
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import zero_settings
from recipes.processes.machine import gpus
from recipes.tools.token_counts import ask_host

PROGRAM = "recipes.swift_plugins.step_memory"
GIB = 2**30
RESERVE = 2.0  # GiB for CUDA's context, NCCL and gaps between tensors: an allowance, not measured
HEAVY = 16  # rows of the longest texts and answers each that are candidates for the worst batch
SIZES = 64  # candidates of different sizes of their pictures
PHASES = ("pictures", "text", "update")


@dataclass(frozen=True)
class MemoryPlan:
    """GiB of one process at the peak of its training, part by part, and what follows.

    `parts` holds base, adapter, gradients, optimizer and activations, and what DeepSpeed, EWC and
    slow weights add. `room` is a GPU's memory; None: not known. `fits` is None without it.
    """

    parts: dict[str, float]
    room: float | None
    fits: bool | None
    verdict: str

    @property
    def total(self) -> float:
        """All parts, without the reserve."""
        return sum(self.parts.values())


def plan_memory(
    recipe: Recipe, rows: Sequence[dict[str, Any]], tokens: Sequence[int], root: Path
) -> MemoryPlan | None:
    """The memory of a training step on the worst batch of `rows`; None if none is short enough.

    Args:
        tokens: of each row, by the host's template.
        root: the folder that the images' paths start at.

    Raises:
        CountError: the host could not run the step; its message is passed on.
    """
    batches = worst_batches(recipe, rows, tokens)
    if not batches:
        return None
    # What EWC, LwF and slow weights keep is counted below: their files are not here.
    launcher = recipe.launcher.model_copy(update={"deepspeed": None})
    without = {"ewc": None, "lwf": None, "slow_weights": None, "launcher": launcher}
    plain = recipe.model_copy(update=without)
    parts = shared(recipe, ask_host(plain, PROGRAM, batches, root, step_words(recipe)))
    needed, here = sum(parts.values()) + RESERVE, gpu_here()
    room = None if recipe.launcher.cpu else recipe.launcher.gpu_gib or here
    fits = None if room is None else needed <= room
    return MemoryPlan(parts, room, fits, _verdict(recipe, needed, parts, here))


def heavy_rows(rows: Iterable[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Rows that may be the longest or have the longest answers, whatever a picture's tokens are.

    Those of the longest texts, and for sizes of pictures (all, where they are few) the one of the
    longest text. A picture that cannot be read has no size; `check` names it.
    """
    by_size: dict[tuple[tuple[int, int], ...], dict[str, Any]] = {}
    texts: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for row in rows:
        sizes = tuple(_sizes(row, root))
        if sizes not in by_size or text_length(by_size[sizes]) < text_length(row):
            by_size[sizes] = row
        texts.append(row)
        answers.append(row)
        # Pruned as it goes: a stream may have millions of rows.
        if len(texts) > 20 * HEAVY:
            texts = nlargest(HEAVY, texts, text_length)
            answers = nlargest(HEAVY, answers, answer_length)
    order = sorted(by_size, key=lambda sizes: (len(sizes), sum(w * h for w, h in sizes)))
    pictures = [by_size[order[-1 - number]] for number in spread(len(order), SIZES)]
    found = [*nlargest(HEAVY, texts, text_length), *nlargest(HEAVY, answers, answer_length)]
    return list({json.dumps(row): row for row in [*found, *pictures]}.values())


def _sizes(row: dict[str, Any], root: Path) -> Iterable[tuple[int, int]]:
    for path in row.get("images") or []:
        # Opening reads the header alone; no picture is decoded.
        with suppress(OSError), Image.open(root / path) as picture:
            yield picture.size


def text_length(row: dict[str, Any]) -> int:
    """Characters of all turns."""
    return sum(len(turn["content"]) for turn in row["messages"])


def worst_batches(
    recipe: Recipe, rows: Sequence[dict[str, Any]], tokens: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of two micro-batches that take the most: two mixed ones beside the longest; the longest.

    All rows of a batch are padded to its longest. Which rows add the most logits to that depends on
    the dtype: in half precision positions with a label are kept (swift_plugins/training.py), so the
    longest answers; in float32 all from the first answer on, so the shortest questions.
    """
    most, size = recipe.model.max_length, recipe.schedule.per_device_batch
    pairs = [
        (row, count)
        for row, count in zip(rows, tokens, strict=True)
        if count <= most or recipe.data.too_long == "cut"
    ]
    longest = [row for row, _ in sorted(pairs, key=lambda pair: -pair[1])]
    if not longest:
        return []
    if recipe.model.dtype == "float32":
        wordy = longest[::-1]
    else:
        wordy = sorted(longest, key=lambda row: -answer_length(row))
    mixed = [longest[0], *_first(wordy, size - 1)] if size > 1 else wordy[:1]
    return mixed + _first(longest, size)


def answer_length(row: dict[str, Any]) -> int:
    """Characters of the turns that are learned."""
    return sum(len(turn["content"]) for turn in row["messages"] if turn["role"] == "assistant")


def _first(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [rows[number % len(rows)] for number in range(count)]


def step_words(recipe: Recipe) -> list[str]:
    """What is said to the host besides the recipe: two micro-batches, on the CPU, nothing saved."""
    both = min(recipe.accumulation, 2)
    words = {"use_cpu": "true", "attn_impl": "sdpa", "gradient_accumulation_steps": str(both),
             "max_steps": str(2 // both), "save_strategy": "no", "report_to": "none",
             "dataloader_num_workers": "0", "train_dataloader_shuffle": "false"}  # fmt: skip
    return [word for key, value in words.items() for word in (f"--{key}", value)]


def shared(recipe: Recipe, sizes: dict[str, int]) -> dict[str, float]:
    """The parts in GiB as the recipe's DeepSpeed stage divides them among its processes.

    Stage 1 and up keeps a second float32 copy of what trains and the optimizer's states divided;
    stage 2 and up the gradients, stage 3 the weights, too. `buckets` are buffers of gradients.
    """
    zero = zero_settings(recipe.launcher.deepspeed)
    stage, share = zero.get("stage", 0), 1 / recipe.processes
    weights = share if stage == 3 else 1
    parts: dict[str, float] = {
        "base": sizes["base"] * weights,
        "adapter": sizes["adapter"] * weights,
        "gradients": sizes["gradients"] * (share if stage >= 2 else 1),
        "optimizer": sizes["optimizer"] * (share if stage else 1),
        "activations": max(sizes[phase] for phase in PHASES),
    }
    if stage:
        parts["masters"] = sizes["adapter"] * share
        bucket = zero.get("reduce_bucket_size", 5e8)
        elements = sizes["hidden"] ** 2 if bucket == "auto" else float(bucket)
        parts["buckets"] = 4 * elements * (2 if zero.get("overlap_comm") is True else 1)
    if stage == 3:  # gathered: a module in use, and the one fetched ahead
        parts["gathered"] = 2 * sizes["largest"]
    if zero.get("offload_optimizer", {}).get("device") == "cpu":
        parts |= {"optimizer": 0, "masters": 0, "gradients": 0}
    if zero.get("offload_param", {}).get("device") == "cpu":
        parts |= {"base": 0, "adapter": 0}
    if recipe.ewc is not None:
        parts["ewc"] = sizes["adapter"] * (1 + recipe.ewc.gradient + recipe.ewc.fisher)
    if recipe.lwf is not None:
        parts["lwf"] = sizes["adapter"]
    if recipe.slow_weights is not None:
        parts["slow"] = sizes["adapter"]
    return {name: size / GIB for name, size in parts.items()}


def gpu_here() -> float | None:
    """GiB of the smallest GPU of this machine; None: there is none, or none that says so."""
    said = (text.rsplit(", ", 1)[-1].split()[0] for text in gpus())
    # "[N/A]" where the memory is the machine's own.
    return min((float(mib) / 1024 for mib in said if mib.isdigit()), default=None)


def _verdict(recipe: Recipe, needed: float, parts: dict[str, float], here: float | None) -> str:
    asked = recipe.launcher.gpu_gib
    room = asked or here
    if recipe.launcher.cpu:
        return "on the CPU: compare it with the machine's memory"
    if room is None:
        return f"needs a GPU of {needed:.1f} GiB; launcher.gpu_gib says how much yours has"
    whose = "a GPU of this machine"
    if asked is not None:
        whose = "launcher.gpu_gib" if here is None else f"launcher.gpu_gib; here {here:.1f}"
    if needed <= room:
        return f"fits: {needed:.1f} of {room:.1f} GiB ({whose})"
    more = f"{needed:.1f} GiB are {needed - room:.1f} more than {room:.1f} ({whose})"
    return f"does not fit: {more}. {_changes(recipe, parts)}"


def _changes(recipe: Recipe, parts: dict[str, float]) -> str:
    """What the user can change, and about how many GiB that saves, the most first."""
    batch, active = recipe.schedule.per_device_batch, parts["activations"]
    saved = {}
    if batch > 1:
        saved[f"schedule.per_device_batch={batch // 2}"] = active * (1 - batch // 2 / batch)
    if not recipe.swift.get("gradient_checkpointing", True):
        saved["swift.gradient_checkpointing=true"] = active / 2
    if recipe.processes > 1 and "zero3" not in (recipe.launcher.deepspeed or ""):
        saved["launcher.deepspeed=zero3"] = parts["base"] * (1 - 1 / recipe.processes)
    if not saved:
        return "Take more processes under zero3, pictures of fewer pixels, or a smaller model"
    order = sorted(saved, key=lambda key: -saved[key])
    words = ", ".join(f"{key} saves about {saved[key]:.1f}" for key in order)
    return f"Change (the global batch stays): {words}"
