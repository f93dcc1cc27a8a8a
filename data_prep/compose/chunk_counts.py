"""How many samples of which task each chunk holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.compose.pools import Counts
from data_prep.errors import shown
from data_prep.files import read_json
from data_prep.mini.mixtures import apportion, published
from data_prep.stream import StreamError

# A chunk of strcvit_mixture.json also has its number.
NOT_TASKS = ("chunk", "index")


def from_file(path: Path, size: int | None) -> Counts:
    """Return the counts that a mixture file states.

    The file is a list of chunks, or {"chunks": [...]}; a chunk is {task: samples} or {task: share}.

    Args:
        path: the file.
        size: samples of a chunk; None takes the numbers as counts.

    Raises:
        StreamError: the file is not a mixture; the message names the chunk and the key.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise StreamError(f"--mixture {path}: {error}; expected a JSON file") from error
    chunks = content.get("chunks") if isinstance(content, dict) else content
    if not isinstance(chunks, list) or not chunks:
        raise StreamError(f'--mixture {path}: expected [{{"task": samples}}, ...]')
    return [_chunk(path, number, chunk, size) for number, chunk in enumerate(chunks, start=1)]


def _chunk(path: Path, number: int, chunk: Any, size: int | None) -> dict[str, int]:
    where = f"--mixture {path}: chunk {number}"
    if not isinstance(chunk, dict):
        raise StreamError(f"{where}: found {shown(chunk)}, expected {{task: samples}}")
    share = {key: value for key, value in chunk.items() if key not in NOT_TASKS}
    for key, value in share.items():
        number_like = isinstance(value, int | float) and not isinstance(value, bool)
        if not number_like or not 0 <= value < float("inf"):
            raise StreamError(f"{where}: {key} is {shown(value)}, expected a number of samples")
    if not sum(share.values()):
        raise StreamError(f"{where}: holds nothing; leave it out")
    if size is not None:
        return _kept(apportion(share, size))
    if any(value != int(value) for value in share.values()):
        raise StreamError(f"{where}: shares need --size, the samples of a chunk")
    return _kept({key: int(value) for key, value in share.items()})


def from_strcvit(size: int, seed: int, tasks: list[str]) -> Counts:
    """Return the 25 published mixtures over the tasks at hand; the short group drifts by `seed`."""
    counts = []
    for share in published(seed):
        present = {task: part for task, part in share.items() if task in tasks}
        if present:
            counts.append(_kept(apportion(present, size)))
    return counts


def drawn(
    have: dict[str, int], chunks: int, size: int, alpha: float, seed: int, repeat: bool
) -> Counts:
    """Return chunks with shares drawn from a Dirichlet distribution; a task may come back.

    Args:
        have: samples at hand by task; none is used twice unless `repeat`.
        chunks, size: how many, of how many samples.
        alpha: concentration: small ones make chunks of few tasks, large ones equal shares.
        seed: of the draw.
        repeat: samples may be used again.
    """
    state, left = np.random.RandomState([seed, 1]), dict(have)
    counts = []
    for _ in range(chunks):
        weights = _shares(list(have), alpha, state)
        chunk = _kept(apportion(weights, size)) if repeat else _within(weights, size, left)
        for task, count in chunk.items():
            left[task] -= count
        counts.append(chunk)
    return counts


def _shares(tasks: list[str], alpha: float, state: np.random.RandomState) -> dict[str, float]:
    """Return shares drawn from a symmetric Dirichlet distribution of concentration `alpha`."""
    shares = state.dirichlet([alpha] * len(tasks))
    if np.isnan(shares).any():
        # Below about 0.002 all of its gamma variates may be 0 in float64: one task has everything.
        shares = np.eye(len(tasks))[state.randint(len(tasks))]
    return dict(zip(tasks, shares, strict=True))


def _within(weights: dict[str, float], size: int, left: dict[str, int]) -> dict[str, int]:
    """Return `size` samples in the given shares as far as they last, the rest from other tasks."""
    chunk = dict.fromkeys(weights, 0)
    while (need := size - sum(chunk.values())) > 0:
        # A small alpha draws shares of 0, and such a task may be the only one that is left.
        lasting = {t: max(w, 1e-9) for t, w in weights.items() if left[t] > chunk[t]}
        for task, count in apportion(lasting, need).items():
            chunk[task] += min(count, left[task] - chunk[task])
    return _kept(chunk)


def without_return(
    have: dict[str, int], chunks: int, size: int, alpha: float, seed: int, repeat: bool
) -> Counts:
    """Return chunks in which a task, once gone, never comes back: one task after the other.

    The lengths of the tasks' stretches are drawn from a Dirichlet distribution, their order too.
    """
    state = np.random.RandomState([seed, 2])
    order = [list(have)[at] for at in state.permutation(len(have))]
    weights = _shares(order, alpha, state)
    total = chunks * size
    quota = apportion(weights, total) if repeat else _within(weights, total, have)
    counts: Counts = [{} for _ in range(chunks)]
    at = 0
    for task in order:
        rest = quota.get(task, 0)
        while rest:
            take = min(rest, size - at % size)
            counts[at // size][task] = take
            at, rest = at + take, rest - take
    return counts


def check_enough(counts: Counts, have: dict[str, int]) -> None:
    """Raise StreamError unless every task has the samples that the chunks need."""
    need: Counter[str] = Counter()
    for chunk in counts:
        need.update(chunk)
    short = [f"{t} needs {n}, has {have[t]}" for t, n in need.items() if n > have[t]]
    if short:
        fits = min(have[task] / count for task, count in need.items())
        size = int(max(sum(chunk.values()) for chunk in counts) * fits)
        raise StreamError(
            f"too few samples: {'; '.join(short)}. Add data, make the chunks smaller (--size "
            f"{size} fits), or use samples again with --repeat."
        )


def _kept(chunk: dict[str, int]) -> dict[str, int]:
    return {task: count for task, count in chunk.items() if count}
