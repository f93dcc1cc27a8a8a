"""Pretraining on 2 CPU cores: images in memory-mapped files, AdamW with a cosine rate, bfloat16."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from assets.tiny_base.make import network, texts
from assets.tiny_base.make.corpus import Record
from assets.tiny_base.make.sequences import Layout

BATCH = 32  # conversations in a step over all workers, each about one image
# Tokens of every row: one shape for all steps, since oneDNN builds its bfloat16 kernels anew for
# each new shape (three times slower). A description of two boxes just fits.
LENGTH = 76
COPYING = 0.4  # share of conversations that end in a copying turn, where it fits
WARM_UP = 150  # steps


@dataclass
class Progress:
    """Where a pretraining run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0


def learning_rate(peak: float, step: int, share: float) -> float:
    """Return the rate after a linear warm-up, then a cosine over the share of time (0..1) used."""
    # By time and not by steps: how many steps a machine takes in it is not known before.
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return peak * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)


def make_batch(
    layout: Layout, records: list[Record], by_task: dict[str, list[int]], words: list[str],
    rows: list[int], rng: Random,
) -> dict[str, Any]:  # fmt: skip
    """Return input_ids, labels, attention_mask (rows, LENGTH): a conversation for each row."""
    encoded = []
    for row in rows:
        record = records[row]
        other = records[rng.choice(by_task[record["task"]])]
        pairs = [tuple(pair) for pair in record["pairs"]]
        others = [tuple(pair) for pair in other["pairs"]]
        turns = texts.about_image(record["head"], pairs, others, rng)
        if rng.random() < COPYING:
            turns += texts.copying(words, rng)
        ids, labels = layout.conversation(turns, True)
        while len(ids) > LENGTH:
            turns = turns[:-1]
            ids, labels = layout.conversation(turns, True)
        encoded.append((ids, labels))
    return layout.batch(encoded, LENGTH)


class Workers:
    """Data-parallel workers, one thread each: two threads in one process lose most of their
    speed to waiting for each other as soon as anything else runs on the machine.
    """

    def __init__(self, rank: int, count: int, port: int) -> None:
        import torch.distributed as dist

        self.rank, self.count = rank, count
        if count > 1:
            address = f"tcp://127.0.0.1:{port}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)

    def average(self, parameters: list[Any], seconds: float) -> float:
        """Average the gradients over the workers in place; return worker 0's `seconds`."""
        import torch
        import torch.distributed as dist

        if self.count == 1:
            return seconds
        # Worker 0's clock travels with the gradients: all must stop at the same step, or some wait
        # for gradients that never come.
        clock = torch.tensor([seconds if self.rank == 0 else 0.0])
        flat = torch.cat([clock, *(p.grad.flatten() for p in parameters)])
        dist.all_reduce(flat)
        start = 1
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.grad.copy_(flat[start:stop].view_as(parameter)).div_(self.count)
            start = stop
        return flat[0].item()


def batches(
    layout: Layout, images: np.ndarray, records: list[Record], words: list[str],
    workers: Workers, seed: str,
) -> Iterator[tuple[Any, dict[str, Any]]]:  # fmt: skip
    """Yield this worker's (pixels, inputs) for ever, each of BATCH / workers rows."""
    rng = Random(f"{seed}/{workers.rank}")
    by_task: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        by_task.setdefault(record["task"], []).append(row)
    own, size = range(workers.rank, len(records), workers.count), BATCH // workers.count
    while True:
        order = rng.sample(own, len(own))
        for start in range(0, len(order) - size + 1, size):
            rows = sorted(order[start : start + size])
            inputs = make_batch(layout, records, by_task, words, rows, rng)
            yield network.to_pixels(np.stack([images[row] for row in rows])), inputs


def run(
    model: Any, batches: Iterator[tuple[Any, dict[str, Any]]], minutes: float, checkpoint: Path,
    on_checkpoint: Any, workers: Workers, rate: float, every: float = 480.0,
) -> Progress:  # fmt: skip
    """Pretrain `model` in place for `minutes`, resuming from `checkpoint` when it exists.

    `batches` yields (pixels (rows, 3, 112, 112), inputs). Worker 0 saves a checkpoint every
    `every` seconds and calls `on_checkpoint(model, progress)`.
    """
    import torch

    # A CPU takes many times longer for numbers that are denormal.
    torch.set_flush_denormal(True)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = _optimizer(parameters, rate)
    progress = _resume(checkpoint, model, optimizer)
    last_save, losses = progress.seconds, []
    model.train()
    while progress.seconds < minutes * 60:
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(rate, progress.step, progress.seconds / (minutes * 60))
        pixels, inputs = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=pixels, **inputs).loss
        loss.backward()
        seconds = progress.seconds + time.monotonic() - started
        progress.seconds = workers.average(parameters, seconds)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress.step += 1
        if workers.rank > 0:
            continue
        if progress.step % 100 == 0:
            _say(progress, minutes, losses)
            losses = []
        if progress.seconds - last_save > every:
            last_save = progress.seconds
            _checkpoint(checkpoint, model, optimizer, progress)
            on_checkpoint(model, progress)
            model.train()
    if workers.rank == 0:
        _checkpoint(checkpoint, model, optimizer, progress)
    return progress


def _optimizer(parameters: list[Any], rate: float) -> Any:
    """Return AdamW; vectors (norms, biases) are not decayed."""
    import torch

    decay = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def _say(progress: Progress, minutes: float, losses: list[float]) -> None:
    speed = progress.step * BATCH / progress.seconds
    print(
        f"step {progress.step}  {progress.seconds / 60:.1f} of {minutes:g} min  "
        f"loss {sum(losses) / len(losses):.3f}  {speed:.0f} images/s",
        flush=True,
    )


def _checkpoint(path: Path, model: Any, optimizer: Any, progress: Progress) -> None:
    import torch

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    partial = path.with_suffix(".tmp")
    torch.save({**state, "step": progress.step, "seconds": progress.seconds}, partial)
    os.replace(partial, path)


def _resume(path: Path, model: Any, optimizer: Any) -> Progress:
    import torch

    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resumed from {path} at step {state['step']}", flush=True)
    return Progress(state["step"], state["seconds"])
