"""What is known of a batch of token sequences: it belongs to their cache, and goes with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.instruction.turns import GENERATED, Turns, read_turns

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig

NO_IDS = (
    "inputs_embeds were passed without their token ids; pass input_ids, or wrap the call in "
    "strlora_tuner.instruction_ids(model, ids)"
)
_ATTRIBUTE = "_strlora_sequence"  # of a cache: a copy of the cache has it too


@dataclass
class Sequence:
    """B rows of token ids up to the end of their prompt; what follows are answers.

    Attributes:
        rows: B.
        ids: (B, F); None where instructions are given and no ids were seen.
        real: (B, F) bool, without padding; None: all of them.
        embeddings: (B, F, H); None once they were read.
        starts: (B, F) bool, where packed samples begin; None: a row is a sample.
        vectors: by adapter, the instruction vectors of all segments, (B, K, H).
        last: by adapter, those of the rows' last segments, (B, H); one object while rows stay.
        memory: what a layer keeps of every segment, (B, K, ...), by its name.
        tail: (B, n), the last tokens that were fed one by one.
    """

    rows: int
    ids: Tensor | None = None
    real: Tensor | None = None
    embeddings: Tensor | None = None
    starts: Tensor | None = None
    vectors: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)
    tail: Tensor | None = None
    _turns: dict[str, Turns] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """F, 0 without ids."""
        return 0 if self.ids is None else int(self.ids.shape[1])

    def turns(self, adapter: str, config: RoutedConfig) -> Turns:
        """Returns what stands where in `ids`, as an adapter reads them."""
        if adapter not in self._turns:
            assert self.ids is not None
            self._turns[adapter] = read_turns(self.ids, config, self.starts)
        return self._turns[adapter]

    def counted(self, mask: Tensor) -> Tensor:
        """Returns a mask (B, F) without padding."""
        return mask if self.real is None else mask & self.real

    def select(self, rows: Tensor) -> None:
        """Keeps the rows with these indices, in this order."""
        self.rows = len(rows)
        for name in ("ids", "real", "embeddings", "starts", "tail"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[rows])
        self.vectors = {name: value[rows] for name, value in self.vectors.items()}
        self.last = {name: value[rows] for name, value in self.last.items()}
        self.memory = {k: tuple(part[rows] for part in v) for k, v in self.memory.items()}
        self._turns = {}

    def repeated(self, rows: int) -> Sequence:
        """Returns the same with every row as often as makes `rows` of them (beams).

        Raises:
            RuntimeError: `rows` is no multiple.
        """
        if rows == self.rows:
            return self
        if rows % self.rows:
            raise RuntimeError(
                f"the adapter saw a prompt of {self.rows} rows but routes an input of {rows}: "
                f"{NO_IDS}"
            )
        result = Sequence(
            self.rows, self.ids, self.real, self.embeddings, self.starts, memory=self.memory
        )
        device = next((v.device for v in (self.ids, self.embeddings) if v is not None), None)
        result.select(torch.arange(self.rows, device=device).repeat_interleave(rows // self.rows))
        return result

    def followed_by(self, past: int, ids: Tensor, mask: Tensor | None) -> Sequence:
        """Returns the sequence whose first `past` tokens are these, then ids (B, L).

        A shorter past is a cache that was cut, a longer one has generated tokens.

        Args:
            past: tokens in the cache.
            ids: the new tokens.
            mask: (B, past + L), non-zero for real tokens; None: those of before, and all new ones.
        """
        assert self.ids is not None
        known = fitted(self.ids, past, GENERATED)
        real = None if mask is None or mask.shape[1] != past + ids.shape[1] else mask.bool()
        if real is None and self.real is not None:
            real = fitted(fitted(self.real, past, True), past + ids.shape[1], True)
        return Sequence(self.rows, torch.cat([known, ids], 1), real, memory=dict(self.memory))


def fitted(values: Tensor, length: int, filler: int | bool) -> Tensor:
    """Returns values (B, F) cut or filled up to (B, length)."""
    return F.pad(values[:, :length], (0, max(0, length - values.shape[1])), value=filler)


@dataclass
class Generation:
    """One call of `generate`: the prompt is known before the first forward pass reads any of it.

    Attributes:
        ids: (B, n) ids of the whole prompt, those in a kept cache included; None: unknown.
        length: n; None: the first forward pass tells.
        mask: (B, n), non-zero for real tokens; None: all of them.
        cache: its key-value cache, known from the first pass on.
        fed: how many tokens of the prompt are in the cache.
        past: how many were there before.
        drafts: whether it only drafts for another model.
        sequence: what the passes have found out.
    """

    ids: Tensor | None
    length: int | None
    mask: Tensor | None
    cache: Any = None
    fed: int = 0
    past: int = 0
    drafts: bool = False
    sequence: Sequence | None = None

    def owns(self, cache: Any, ids: Tensor | None) -> bool:
        """Whether a pass with this cache and these ids (B, L) is a step of this generation.

        Guidance by a negative prompt, for one, runs the model beside it, on a cache of its own.
        """
        if cache is not None:
            # generate makes its cache after the call began: the first pass brings it.
            self.cache = cache if self.cache is None else self.cache
            return self.cache is cache
        if self.cache is not None or self.sequence is None or ids is None or self.ids is None:
            return self.cache is None
        length, repeats = self.ids.shape[1], len(ids) // len(self.ids)
        # Without a cache every step reads all again: whose it is, its prompt tells.
        return ids.shape[1] > length and torch.equal(ids[:: max(1, repeats), :length], self.ids)

    @property
    def answering(self) -> bool:
        """Whether the prompt is in the cache, so that every further token is an answer's."""
        return self.cache is not None and self.length is not None and self.fed >= self.length


def tokens_in(cache: Any) -> int:
    """Returns how many tokens a key-value cache holds; 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())


def sequence_of(cache: Any) -> Sequence | None:
    """Returns what is known of the sequences in a cache."""
    return getattr(cache, _ATTRIBUTE, None)


def note_sequence(cache: Any, sequence: Sequence) -> None:
    """Keeps with a cache what is known of its sequences."""
    setattr(cache, _ATTRIBUTE, sequence)
