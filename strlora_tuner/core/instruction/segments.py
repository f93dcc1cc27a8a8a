"""The tokens that one forward pass reads, and the segments of a conversation that they are of."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strlora_tuner.core.instruction.sequence import Sequence

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


@dataclass
class Pass:
    """The tokens that one forward pass of the model reads.

    Attributes:
        sequence: the rows that they are of.
        start: how many tokens were in the cache before.
        shape: (B, L).
        answering: whether all of them answer the last turn that is known.
        follows: whether they go on from a cache that another call has filled.
        inputs: (B, L, H), their embeddings; None where no layer will ask.
    """

    sequence: Sequence
    start: int
    shape: tuple[int, int]
    answering: bool = False
    follows: bool = False
    inputs: Tensor | None = None


@dataclass
class Segments:
    """Which segments the tokens of a pass are of: K a row, for which S = B * K vectors are made.

    Attributes:
        wanted: (B, K), their numbers in the row; rows of fewer repeat their last.
        index: (B, L), each token's among the S; None where each row has one.
        exist: (S) bool, False for repetitions; None: all are.
        continues: whether every token is of a segment that began in the cache.
    """

    wanted: Tensor
    index: Tensor | None = None
    exist: Tensor | None = None
    continues: bool = False


def segments_of(run: Pass, adapter: str, config: RoutedConfig, fixed: bool) -> Segments:
    """Returns the segments of a pass as an adapter reads them.

    Args:
        run: the pass.
        adapter: its name.
        config: its configuration.
        fixed: whether one instruction was given for whole rows.

    Raises:
        RuntimeError: a user's turn is cut in two: a part of it, or of what it routes, is in the
            cache already, and was routed without the rest.
    """
    sequence, start = run.sequence, run.start
    if sequence.ids is None:
        zeros = torch.zeros(run.shape[0], 1, dtype=torch.long)
        return Segments(zeros, continues=start > 0)
    turns = sequence.turns(adapter, config)
    numbers = turns.numbers
    if fixed:
        return Segments(numbers[:, -1:], continues=start > 0)
    if start and run.follows:
        new = sequence.counted(turns.inside)[:, start:]
        if bool((new & (numbers[:, start:] == numbers[:, start - 1 : start])).any()):
            raise RuntimeError(_cut_message(start, config))
    if turns.count == 1 or run.answering:
        return Segments(numbers[:, -1:], continues=start > 0)
    first = numbers[:, start - 1 : start] if start else torch.zeros_like(numbers[:, :1])
    here = numbers[:, start : start + run.shape[1]]
    count = int((here - first).max()) + 1
    wanted = first + torch.arange(count, device=first.device)
    exist = wanted <= here[:, -1:]
    wanted = wanted.minimum(here[:, -1:])
    if count == 1:
        return Segments(wanted, continues=start > 0)
    rows = torch.arange(len(here), device=here.device)[:, None]
    return Segments(wanted, here - first + rows * count, exist.flatten())


def _cut_message(start: int, config: RoutedConfig) -> str:
    if not config.turn_start:
        why = "this adapter knows no marks of a user's turn, so every token of a prompt counts"
    elif config.instruction_turns == "all":
        why = "instruction_turns = 'all' (as released) routes a conversation by all of its turns"
    else:
        why = "a user's turn begins in the cache and goes on after it"
    return (
        f"past_key_values holds {start} tokens that were routed without the words that follow: "
        f"{why}; pass the whole conversation without the cache, or cut the cache (crop) at the end "
        "of an answer; a long prompt is read in pieces by generate(prefill_chunk_size=...)"
    )


def recalled(run: Pass, segments: Segments, name: Hashable) -> tuple[Tensor, ...] | None:
    """Returns what :func:`keep` kept of the segment that a pass goes on with, for each of its S.

    None where it begins a sequence.

    Raises:
        RuntimeError: the cache was filled without what asks.
    """
    if run.start == 0:
        return None
    memory = run.sequence.memory.get(name)
    if memory is None:
        raise RuntimeError(
            f"past_key_values holds {run.start} tokens that this adapter has not routed, so what "
            "it would have read of them is unknown: pass the whole conversation without the cache"
        )
    times, first = segments.wanted.shape[1], segments.wanted[:, 0]
    rows = torch.arange(len(first), device=first.device)
    parts = (part[:, 0] if part.shape[1] == 1 else part[rows, first] for part in memory)
    return tuple(part.repeat_interleave(times, 0) for part in parts)


def keep(run: Pass, segments: Segments, name: Hashable, values: tuple[Tensor, ...]) -> None:
    """Keeps values (S, ...) of a pass's segments with its sequences."""
    parts = [value.unflatten(0, segments.wanted.shape) for value in values]
    if run.start:
        rows = torch.arange(len(parts[0]), device=segments.wanted.device)[:, None]
        more = int(segments.wanted.max()) + 1
        for place, before in enumerate(run.sequence.memory[name]):
            # Only room for new segments, which are written over it; its values are never read.
            missing = before[:, :1].expand(-1, max(0, more - before.shape[1]), *before.shape[2:])
            whole = torch.cat([before, missing], 1)
            whole[rows, segments.wanted] = parts[place]
            parts[place] = whole
    run.sequence.memory[name] = tuple(parts)
