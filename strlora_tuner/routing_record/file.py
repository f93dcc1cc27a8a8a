"""Writes routing.json, whose fields format.py describes, at the end of an inference run.

Every process leaves its sums beside the file; the last of them adds all up and writes the file.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import math
import operator
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strlora_tuner.options import ABLATION, PROBE_FILE, ROUTING_FILE
from strlora_tuner.routing_record.format import (
    FORMAT,
    GroupRecord,
    InstructionMap,
    RoutingContent,
)
from strlora_tuner.routing_record.probe import Probe, load_probe
from strlora_tuner.routing_record.recorder import (
    MIXED,
    LayerSums,
    RoutingRecorder,
    Sums,
    Text,
    subsample,
)
from strlora_tuner.saved import replace_file
from strlora_tuner.training_loop import tuner_of

# Principal components of the instruction vectors that are written.
COMPONENTS = 6


def record_routing(model: Any, environment: Mapping[str, str]) -> None:
    """Records from now on and writes the file that STRLORA_ROUTING_FILE names at the process's end.

    STRLORA_PROBE_FILE (optional) tells which instruction belongs to which task. Each process leaves
    its sums beside the file; the last of them adds all up and writes the file, whole or not at all.

    Raises:
        FileNotFoundError, ValueError: the probe file cannot be read.
    """
    path = Path(environment[ROUTING_FILE])
    probe = load_probe(Path(environment[PROBE_FILE]) if environment.get(PROBE_FILE) else None)
    recorder = RoutingRecorder(model, tuner_of(model).tokenizer, probe)
    rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    _part(path, rank).unlink(missing_ok=True)  # of a process that was killed
    ablation = environment.get(ABLATION) or None
    atexit.register(lambda: _finish(recorder, path, rank, world, ablation))


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f".{path.name}.{rank}.pt")


def _finish(
    recorder: RoutingRecorder, path: Path, rank: int, world: int, ablation: str | None
) -> None:
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        # Of two processes that end at once, one must see the other's sums, and only one may write.
        fcntl.flock(file, fcntl.LOCK_EX)
        recorder.sums().save(_part(path, rank))
        parts = [_part(path, r) for r in range(world)]
        if not all(part.is_file() for part in parts):
            return
        sums = reduce(operator.add, map(Sums.load, parts))
        content = routing_content(recorder, sums, ablation)
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for leftover in (*parts, lock):
            leftover.unlink()


def routing_content(
    recorder: RoutingRecorder, sums: Sums, ablation: str | None = None
) -> RoutingContent:
    """Returns the content of routing.json from the sums of all processes."""
    names = [name for name, _ in recorder.tuner.mixtures() if name in sums.layers]
    layers = [sums.layers[name] for name in names]
    present = [g for g, rows in enumerate(sums.rows.tolist()) if rows > 0]
    return {
        "format": FORMAT,
        "ablation": ablation,
        "layers": names,
        "num_experts": recorder.config.num_experts,
        "top_k": recorder.config.kept_experts,
        "rows": round(float(sums.rows.sum()), 6),
        "groups": [_group(recorder, sums.rows, layers, g) for g in present],
        "cka": [
            _rounded(activation_similarity(layer, sums.rows, present, output_gram(recorder, n)))
            for n, layer in zip(names, layers, strict=True)
        ],
        **_instructions(recorder.probe, sums, present),
    }


def _group(recorder: RoutingRecorder, rows: Tensor, layers: list[LayerSums], g: int) -> GroupRecord:
    """Returns how the rows of group number `g` were routed."""
    count = float(rows[g])
    return {
        "name": recorder.probe.groups[g],
        "rows": round(count, 6),
        "use": [_rounded(layer.use[g] / count) for layer in layers],
        "selected": [_rounded(layer.selected[g] / count) for layer in layers],
        "task_entropy": [_rounded(layer.task_entropy[g] / count) for layer in layers],
        "token_entropy": [_rounded(layer.token_entropy[g] / count) for layer in layers],
        "sets": [
            {
                str(mask): round(float(weights[g]) / count, 6)
                for mask, weights in sorted(layer.sets.items())
                if weights[g]
            }
            for layer in layers
        ],
    }


@torch.no_grad()
def output_gram(recorder: RoutingRecorder, layer: str) -> Tensor:
    """Returns B^T B of a layer's active adapter, (r, r) float64: it turns moments into outputs'."""
    mixture = dict(recorder.tuner.mixtures(recorder.adapter))[layer]
    b = mixture.output_weights().double().cpu()
    return b.T @ b


def activation_similarity(
    layer: LayerSums, rows: Tensor, groups: list[int], gram: Tensor
) -> Tensor:
    """Returns the linear CKA of every pair of groups' expert outputs, 0..1, pairs (i < j) in order.

    The outputs B (g * A x) of two tasks share features, not samples, so Gram matrices are taken
    over features: <C_a, C_b> / (|C_a| |C_b|) (Frobenius) with C the second moment of the outputs
    around the mean of all groups (Kornblith et al., 2019, equation 3, features in the place of
    samples). 1: both tasks drive the experts in the same directions. 0 where nothing is driven.

    Args:
        layer: sums of one layer.
        rows: (groups), rows behind the sums.
        groups: which to compare.
        gram: B^T B, (r, r).
    """
    mean = layer.mean[groups] / rows[groups, None]
    second = layer.second[groups] / rows[groups, None, None]
    centre = mean.mean(0)
    cross = mean[:, :, None] * centre
    moments = second - cross - cross.transpose(1, 2) + centre[:, None] * centre
    outputs = moments @ gram
    inner = torch.einsum("anm,bmn->ab", outputs, outputs)
    norm = inner.diagonal().clamp_min(0).sqrt()
    similarity = inner / (norm[:, None] * norm).clamp_min(1e-300)
    i, j = torch.triu_indices(len(groups), len(groups), 1)
    return similarity[i, j].clamp(0, 1)


def _instructions(probe: Probe, sums: Sums, present: list[int]) -> InstructionMap:
    """Returns the map of instruction vectors: principal components, every group weighing alike."""
    # Sorted: the order they were met in depends on the number of processes.
    texts = sorted(subsample(sums.texts).values(), key=lambda t: (int(t.groups.argmax()), t.text))
    if not texts:
        return {"vector_cosine": [], "vector_variance": [], "instructions": []}
    vectors = torch.stack([t.vector / t.rows for t in texts])  # (N, H)
    shares = torch.stack([t.groups / t.groups.sum() for t in texts])[:, present]
    balance = (shares / shares.sum(0).clamp_min(1e-30)).sum(1)
    balance = balance / balance.sum()
    centred = vectors - balance @ vectors
    _, values, basis = torch.linalg.svd(balance.sqrt()[:, None] * centred, full_matrices=False)
    points = centred @ basis[:COMPONENTS].T
    variance = values.square() / values.square().sum().clamp_min(1e-300)
    means = shares.T @ vectors / shares.sum(0)[:, None].clamp_min(1e-30)
    unit = torch.nn.functional.normalize(means, dim=-1)
    return {
        "vector_cosine": _rounded(unit @ unit.T),
        "vector_variance": _rounded(variance[:COMPONENTS]),
        "instructions": [
            {"text": t.text, "group": probe.groups[int(t.groups.argmax())], "rows": t.rows,
             "vector": _rounded(point), "kept": _kept(t)}
            for t, point in zip(texts, points, strict=True)
        ],
    }  # fmt: skip


def _kept(text: Text) -> list[int | None]:
    masks = [] if text.kept is None else text.kept.tolist()
    return [None if mask == MIXED else mask for mask in masks]


def _rounded(values: Any) -> Any:
    """Returns nested lists of numbers with five decimals; null where a number is not finite."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 5) if math.isfinite(values) else None
