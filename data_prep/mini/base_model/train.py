"""Pretraining on 2 CPU cores: images in memory-mapped files, AdamW with a cosine rate, bfloat16."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from data_prep.mini.base_model import network, texts
from data_prep.mini.base_model.corpus import Record
from data_prep.mini.base_model.sequences import Layout

BATCH, COPIES = 32, 4  # image conversations and text-only copying rows in a step
PEAK_RATE, WARM_UP = 1e-3, 150  # learning rate, steps


@dataclass
class Progress:
    """Where a pretraining run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0


def learning_rate(step: int, share: float) -> float:
    """Return the rate after a linear warm-up, then a cosine over the share of time (0..1) used."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)


def pick_rows(records: list[Record], by_task: dict[str, list[int]], rows: Any, rng: Random) -> list:
    """Return a conversation for each chosen row."""
    out = []
    for row in rows:
        record = records[row]
        other = records[rng.choice(by_task[record["task"]])]
        pairs = [tuple(pair) for pair in record["pairs"]]
        others = [tuple(pair) for pair in other["pairs"]]
        out.append(texts.about_image(record["head"], pairs, others, rng))
    return out


def run(
    model: Any, layout: Layout, images: np.ndarray, records: list[Record], words: list[str],
    minutes: float, checkpoint: Path, on_checkpoint: Any, seed: int = 0, every: float = 180.0,
) -> Progress:  # fmt: skip
    """Pretrain `model` in place for `minutes`, resuming from `checkpoint` when it exists.

    `on_checkpoint(model, progress)` is called after each checkpoint (every `every` seconds).
    """
    import torch

    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    progress = _resume(checkpoint, model, optimizer)
    rng = Random(f"{seed}/{progress.step}")
    by_task: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        by_task.setdefault(record["task"], []).append(row)
    order: list[int] = []
    last_save, losses = progress.seconds, []
    model.train()
    while progress.seconds < minutes * 60:
        started = time.monotonic()
        if len(order) < BATCH:
            order = rng.sample(range(len(records)), len(records))
        rows, order = sorted(order[:BATCH]), order[BATCH:]
        turns = pick_rows(records, by_task, rows, rng)
        encoded = [layout.conversation(conversation, True) for conversation in turns]
        encoded += [layout.conversation(texts.copying(words, rng), False) for _ in range(COPIES)]
        pixels = network.to_pixels(np.stack([images[row] for row in rows]))
        share = progress.seconds / (minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, share)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=pixels, **layout.batch(encoded)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress.step += 1
        progress.seconds += time.monotonic() - started
        if progress.step % 100 == 0:
            _say(progress, minutes, losses)
            losses = []
        if progress.seconds - last_save > every:
            last_save = progress.seconds
            _checkpoint(checkpoint, model, optimizer, progress)
            on_checkpoint(model, progress)
            model.train()
    _checkpoint(checkpoint, model, optimizer, progress)
    return progress


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
