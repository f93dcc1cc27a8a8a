"""Whose tokens a forward pass of the model reads: a new prompt's, or a cache's that goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from strlora_tuner.core.instruction.segments import Pass
from strlora_tuner.core.instruction.sequence import (
    NO_IDS,
    Generation,
    Sequence,
    fitted,
    note_sequence,
    sequence_of,
    tokens_in,
)
from strlora_tuner.core.instruction.turns import GENERATED, openings

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


class EmbeddingHook:
    """The tuner's hook of its model's input embedding.

    PEFT copies an embedding that is to be trained in full (modules_to_save), hooks included: the
    copy calls the same tuner. A copy of the whole model calls the copy of the tuner.
    """

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        ids = args[0] if args else None
        # Ids that are not 2-d are models looking up a placeholder's embedding.
        if isinstance(ids, Tensor) and ids.dim() == 2:
            self.tuner.routing.on_prompt(ids, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingHook:
        whole = id(self.tuner) in memo or id(self.tuner.model) in memo
        return EmbeddingHook(copy.deepcopy(self.tuner, memo)) if whole else self


class PassReader:
    """Keeps what hooks tell of a forward pass, and finds the sequences that it reads."""

    def __init__(self) -> None:
        self.configs: dict[str, RoutedConfig] = {}
        self.embed: Callable[[Tensor], Tensor] | None = None
        self.training = False
        self.given: tuple[Tensor, Tensor] | None = None  # an instruction that was fixed
        self.generations: list[Generation] = []  # calls of generate, the innermost last
        # Whether the base model runs: a layer that runs outside is recomputed by checkpointing.
        self.in_forward = False
        self._looking_up = False
        self._embedded: tuple[Tensor, Tensor] | None = None  # ids and embeddings, not yet read
        self._inputs: Tensor | None = None
        self._pass: Pass | None = None
        self._cache: Any = None
        self._past = 0
        self._generation: Generation | None = None
        self._mask: Tensor | None = None
        self._starts: Tensor | None = None
        self._weights: dict[str, Tensor] = {}
        self._tokens: dict[str, Tensor] = {}

    def on_prompt(self, ids: Tensor, embeddings: Tensor) -> None:
        """Takes ids (B, L) and embeddings (B, L, H) that a pass reads, or is about to read."""
        if self._looking_up:
            return
        self._embedded, self._inputs = (ids, embeddings.detach()), None

    def look_up(self, ids: Tensor) -> Tensor:
        """Returns the embeddings (B, L, H) of ids (B, L), which are not read as a prompt."""
        assert self.embed is not None
        self._looking_up = True
        try:
            with torch.no_grad():
                # What was generated, or is unknown, has a negative id; no mask counts it.
                return self.embed(ids.clamp_min(0)).detach()
        finally:
            self._looking_up = False

    def begin_forward(
        self,
        attention_mask: Tensor | None,
        training: bool,
        cache: Any = None,
        ids: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> None:
        """Called before the base model runs.

        Args:
            attention_mask: a 2-d one (B, past + L) tells real tokens.
            training: whether statistics are counted and nothing is remembered.
            cache: the key-value cache.
            ids: (B, L), where the model is given them.
            starts: (B or 1, L) bool, where packed samples begin.
        """
        self.in_forward, self.training = True, training
        self._cache, self._starts, self._pass = cache, starts, None
        generation = self.generations[-1] if self.generations else None
        self._generation = generation if generation and generation.owns(cache, ids) else None
        is_mask = attention_mask is not None and attention_mask.dim() == 2
        self._mask = attention_mask if is_mask else None
        if self._mask is None and self._generation is not None:
            self._mask = self._generation.mask  # a static cache's mask is 4-d
        if cache is None:
            self._past = 0
        else:
            self._past = tokens_in(cache) if self._generation is None else self._generation.fed

    def end_forward(self, cache: Any = None) -> None:
        """Called after the base model ran, with the cache that it returned."""
        run, generation = self._pass, self._generation
        if run is not None and not self.training:
            run.sequence.embeddings = run.inputs = None
            cache = self._cache if cache is None else cache
            if cache is not None and sequence_of(cache) is not run.sequence:
                note_sequence(cache, run.sequence)
            if generation is not None:
                generation.sequence = run.sequence
                generation.fed += run.shape[1]
        self.in_forward, self._embedded, self._generation = False, None, None

    def _running(self, x: Tensor) -> Pass:
        """Returns the pass that x (B, L, d) is of; a layer that is recomputed finds the last one.

        Raises:
            RuntimeError: it is unknown whose tokens these are.
        """
        if self._pass is None:
            self._pass = self._open((x.shape[0], x.shape[1]))
        return self._pass

    def _open(self, shape: tuple[int, int]) -> Pass:
        generation, cache, past = self._generation, self._cache, self._past
        if generation is not None and generation.answering and generation.sequence is not None:
            sequence = generation.sequence.repeated(shape[0])
            return Pass(sequence, generation.fed, shape, answering=True)
        ids, embeddings = self._read(shape)
        if ids is None and self.given is not None:
            known = sequence_of(cache) if past else None
            return Pass(known or Sequence(shape[0]), past, shape, answering=past > 0)
        if generation is not None and past > generation.past:  # a further piece of the prompt
            assert generation.sequence is not None
            return Pass(generation.sequence.repeated(shape[0]), past, shape, inputs=embeddings)
        if generation is not None and generation.length is None:
            generation.length = past + shape[1]
        if past == 0:
            return Pass(self._opened(shape, ids, embeddings), 0, shape, inputs=embeddings)
        known = sequence_of(cache)
        if known is None or known.ids is None:
            raise RuntimeError(
                f"past_key_values holds {past} tokens that this adapter has not read, so their "
                "instruction is unknown: pass the whole conversation without the cache"
            )
        known = known.repeated(shape[0])
        # A loop of one's own feeds an answer token by token; a user's turn fed so is refused.
        if generation is None and shape[1] == 1 and past >= known.length:
            if ids is not None and not self.generations:
                self._refuse_single(known, ids)
            return Pass(known, past, shape, answering=True)
        if generation is not None and generation.ids is not None:
            ids = fitted(generation.ids, past + shape[1], GENERATED)[:, past:]
            ids = ids.repeat_interleave(shape[0] // len(ids), 0)
        if ids is None:
            raise RuntimeError(f"no token ids for what goes on from past_key_values: {NO_IDS}")
        sequence = known.followed_by(past, ids, self._mask)
        follows = generation is None or not generation.drafts
        return Pass(sequence, past, shape, follows=follows, inputs=embeddings)

    def embedded_ids(self, shape: tuple[int, int]) -> Tensor | None:
        """Returns the ids (B, L) that the embedding saw last, if they are of this shape."""
        return self._read(shape)[0]

    def _read(self, shape: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Returns ids (B, L) and embeddings (B, L, H) of a pass, if the embedding saw them."""
        if self._embedded is None or self._embedded[0].shape[1] != shape[1]:
            return None, None
        ids, embeddings = self._embedded
        if shape[0] % len(ids):
            return None, None
        if shape[0] != len(ids):  # beams and num_return_sequences repeat rows
            times = shape[0] // len(ids)
            ids, embeddings = (part.repeat_interleave(times, 0) for part in (ids, embeddings))
        return ids, embeddings

    def _opened(
        self, shape: tuple[int, int], ids: Tensor | None, embeddings: Tensor | None
    ) -> Sequence:
        """Returns the sequence that begins with this pass."""
        generation = self._generation
        known = None if generation is None else generation.ids
        if generation is not None and known is not None and shape[1] < known.shape[1]:
            real = None if generation.mask is None else generation.mask.bool()
            return Sequence(len(known), known, real).repeated(shape[0])  # read in pieces
        if ids is None:
            seen = "the embedding layer saw no prompt before a routed layer ran"
            raise RuntimeError(f"no instruction vector: {seen}: {NO_IDS}")
        if generation is not None and (generation.length or shape[1]) < shape[1]:
            ids = ids.clone()  # candidates, or answers that are in no cache
            ids[:, generation.length :] = GENERATED
        real = self._mask
        real = real.bool() if real is not None and real.shape == ids.shape else None
        # transformers looks for packed samples in passes without padding and cache only.
        starts = None if generation is not None or real is not None else self._starts
        if starts is not None:
            starts = starts.expand_as(ids)
        return Sequence(shape[0], ids, real, embeddings, starts)

    def _real(self, x: Tensor) -> Tensor:
        """Returns which tokens of x (B, L, d) are no padding, (B, L) bool."""
        start = 0 if self._pass is None else self._pass.start
        if self._mask is not None and self._mask.shape[0] == x.shape[0]:
            mask = self._mask[:, start : start + x.shape[1]]
            if mask.shape[1] == x.shape[1] and (start or self._mask.shape[1] == x.shape[1]):
                return mask.bool()
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

    def token_weights(self, x: Tensor, padding: str) -> Tensor:
        """Returns (B, L) float32 that sum to 1: each token's share in a mean over tokens."""
        weights = self._weights.get(padding)
        if weights is None or weights.shape != x.shape[:2]:
            real = torch.ones(x.shape[:2], device=x.device)
            if padding == "mask":
                real = self._real(x).to(torch.float32)
            tokens = real.sum().clamp_min(1)
            weights = self._weights[padding] = real / tokens
            self._tokens[padding] = tokens
        return weights

    def tokens(self, padding: str) -> Tensor:
        """Returns how many tokens :meth:`token_weights` averages over in this forward pass."""
        return self._tokens[padding]

    def _refuse_single(self, known: Sequence, ids: Tensor) -> None:
        """Raises RuntimeError when a user's turn is fed token by token."""
        # A marker of several tokens may come in as many passes.
        longest = max([1, *(len(config.turn_start) for config in self.configs.values())])
        tail = ids if known.tail is None else torch.cat([known.tail, ids], 1)
        known.tail = tail[:, -longest:]
        for config in self.configs.values():
            length = len(config.turn_start)
            if not length or known.tail.shape[1] < length:
                continue
            if bool(openings(known.tail[:, -length:], config)[:, 0].any()):
                raise RuntimeError(
                    "a user's turn begins token by token on past_key_values, where its words "
                    "cannot be known before they route: pass the whole turn in one call, or call "
                    "generate with the whole conversation"
                )
