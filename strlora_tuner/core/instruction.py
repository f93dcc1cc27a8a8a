"""The instruction vector: found in the prompt, averaged, centred, shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


def starts_of(ids: Tensor, pattern: list[int]) -> Tensor:
    """Returns (B, L) bool: True where `pattern` begins in a row of ids (B, L)."""
    found = torch.ones_like(ids, dtype=torch.bool)
    length = ids.shape[1]
    for offset, token in enumerate(pattern):
        here = torch.zeros_like(found)
        here[:, : length - offset] = ids[:, offset:] == token
        found = found & here
    return found


def turns_mask(ids: Tensor, config: RoutedConfig) -> Tensor:
    """Marks the user's turns, image placeholders included, without the turns' markers.

    Args:
        ids: (B, L) prompt or training ids, padded on either side.
        config: gives the turn markers; without them every token counts.

    Returns:
        (B, L) bool. No host synchronisation: a position is inside a turn when the last opening
        marker that ended before it comes after the last closing marker that began before it.
    """
    inside = torch.ones_like(ids, dtype=torch.bool)
    if config.turn_start:
        position = torch.arange(1, ids.shape[1] + 1, device=ids.device).expand_as(ids)
        opened = starts_of(ids, config.turn_start) * (position + len(config.turn_start) - 1)
        closed = starts_of(ids, config.turn_end) * position
        opened, closed = opened.cummax(1).values, closed.cummax(1).values
        # `opened` holds, once a marker has begun, the (1-based) position of its last token.
        inside = (opened > 0) & (position > opened) & (closed <= opened)
    return inside


def instruction_mask(ids: Tensor, config: RoutedConfig) -> Tensor:
    """Marks the tokens of the user's turns, (B, L) bool, without those of `ignored_ids`."""
    inside = turns_mask(ids, config)
    if config.ignored_ids:
        inside = inside & ~torch.isin(ids, torch.tensor(config.ignored_ids, device=ids.device))
    return inside


def mean_embedding(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over marked positions, (B, H) float32; zero for a row without any.

    Args:
        embeddings: (B, L, H).
        mask: (B, L) bool.
    """
    weights = mask.to(torch.float32)
    total = torch.einsum("blh,bl->bh", embeddings.float(), weights)
    return total / weights.sum(1, keepdim=True).clamp_min(1)


class RoutingContext:
    """What one forward pass of the model shares with its routed layers.

    A plain object, outside every state dict. The embedding hook stores ids and embeddings; the
    instruction vector is computed from them on first use.
    """

    def __init__(self) -> None:
        self.configs: dict[str, RoutedConfig] = {}
        self.statistics: Any = {}  # by adapter name; the model's ModuleDict
        self.num_layers = 0
        self.recording = False
        self.training = False
        self.embed: Callable[[Tensor], Tensor] | None = None
        # The embedding of an adapter's instruction from its token ids, for methods that want one.
        self.embed_sentence: Callable[[str, tuple[int, ...]], Tensor] | None = None
        # Set by a host before each optimizer step. step_tokens: the tokens of the global batch,
        # divided by the number of processes; None: the micro-batch's own mean is used.
        self.step_tokens: Tensor | None = None
        self.loss_scale = 1.0
        self.attention_mask: Tensor | None = None
        self.given: tuple[Tensor, Tensor] | None = None
        self._given_ids: Tensor | None = None
        self.empty_rows: Tensor | None = None
        # Whether the base model runs: a layer that runs outside is recomputed by checkpointing.
        self.in_forward = False
        self._fresh = False
        self._untaken = False
        self._ids: Tensor | None = None
        self._embeddings: Tensor | None = None
        self._inputs: Tensor | None = None
        self._vectors: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._tokens: dict[str, Tensor] = {}
        self._turns: dict[str, Tensor] = {}
        self._rows: dict[str, list[tuple[int, ...]]] = {}
        self._sentences: dict[str, Tensor] = {}

    def on_prompt(self, ids: Tensor, embeddings: Tensor) -> None:
        """Takes ids (B, L) and embeddings (B, L, H) of a new prompt."""
        self._ids, self._embeddings, self._inputs = ids, embeddings.detach(), None
        self._fresh = self._untaken = True
        self._forget()

    def _forget(self) -> None:
        self._vectors, self._weights, self._turns = {}, {}, {}
        self._rows, self._sentences = {}, {}

    def begin_forward(self, attention_mask: Tensor | None, training: bool) -> None:
        """Called before the base model runs; a 2-d attention mask (B, L) tells real tokens."""
        self.in_forward, self.training = True, training
        self._weights, self._turns = {}, {}
        is_mask = attention_mask is not None and attention_mask.dim() == 2
        self.attention_mask = attention_mask if is_mask else None

    def end_forward(self) -> None:
        """Called after the base model ran: a later forward pass needs a prompt of its own."""
        self.in_forward = self._fresh = False

    def set_instruction(
        self, embeddings: Tensor | None, mask: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Fixes the instruction to these embeddings (B, L, H), mask and ids; None ends it."""
        self.given = None if embeddings is None or mask is None else (embeddings.detach(), mask)
        self._given_ids = ids
        self._forget()

    def instruction(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the instruction vectors for the rows of x (B, L, d), (B, H) float32.

        Raises:
            RuntimeError: no prompt was seen, or x belongs to another prompt: routing would be
                silently wrong.
        """
        if x.dim() != 3:
            raise RuntimeError(
                f"a routed layer got an input of shape {tuple(x.shape)}, expected (batch, tokens, "
                "features): target only linear layers of the language model"
            )
        if adapter not in self._vectors:
            self._vectors[adapter] = self._compute(adapter)
        stale = self.in_forward and not self._fresh and self.given is None and x.shape[1] > 1
        vectors = self._vectors[adapter]
        if stale or x.shape[0] % vectors.shape[0]:
            raise RuntimeError(
                f"the adapter saw a prompt of {vectors.shape[0]} rows but routes an input of shape "
                f"{tuple(x.shape)}: inputs_embeds were passed without their token ids; pass "
                "input_ids, or wrap the call in strlora_tuner.instruction_ids(model, ids)"
            )
        if x.shape[0] != vectors.shape[0]:  # beams and num_return_sequences repeat rows
            expanded = vectors.repeat_interleave(x.shape[0] // vectors.shape[0], 0)
            self._vectors[adapter] = expanded
            return expanded
        return vectors

    @torch.no_grad()
    def _compute(self, adapter: str) -> Tensor:
        config = self.configs[adapter]
        if self.given is not None:
            embeddings, mask = self.given
            vectors = mean_embedding(embeddings, mask)
        elif self._ids is None or self._embeddings is None:
            raise RuntimeError(
                "no instruction vector: the embedding layer saw no prompt before a routed layer "
                "ran; pass input_ids, or wrap the call in strlora_tuner.instruction_ids(model, ids)"
            )
        else:
            vectors, mask = self._from_prompt(config)
        valid = mask.any(1)
        self.empty_rows = (~valid).sum()
        return self._normalise(adapter, vectors, valid)

    def instruction_tokens(self, adapter: str) -> list[tuple[int, ...]]:
        """Returns the ids of every row's instruction, fetched from the device once a prompt.

        Call it after :meth:`instruction`, which sees to it that there is a prompt.
        """
        if adapter not in self._rows:
            if self.given is not None and self._given_ids is not None:
                ids, mask = self._given_ids, self.given[1]
            else:
                assert self._ids is not None
                ids, mask = self._ids, instruction_mask(self._ids, self.configs[adapter])
                mask = self._real(mask)
            pairs = zip(ids.tolist(), mask.tolist(), strict=True)
            self._rows[adapter] = [
                tuple(token for token, marked in zip(row, marks, strict=True) if marked)
                for row, marks in pairs
            ]
        return self._rows[adapter]

    def sentences(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the sentence embedding of every row's instruction, (B, width), on x's device."""
        found = self._sentences.get(adapter)
        if found is None or found.shape[0] != x.shape[0]:
            assert self.embed_sentence is not None
            rows = self.instruction_tokens(adapter)
            found = torch.stack([self.embed_sentence(adapter, row) for row in rows]).to(x.device)
            found = found.repeat_interleave(x.shape[0] // len(rows), 0)
            self._sentences[adapter] = found
        return found

    def turns(self, adapter: str, x: Tensor) -> Tensor:
        """Returns (B, L) bool: the tokens of x (B, L, d) in the user's turns, images included.

        All real tokens for a row without a turn, or when x is not of the prompt that was seen.
        """
        mask = self._turns.get(adapter)
        if mask is not None and mask.shape == x.shape[:2]:
            return mask
        real = self._real(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        mask = real
        if self._ids is not None and self._ids.shape[1] == x.shape[1]:
            found = turns_mask(self._ids, self.configs[adapter])
            found = found.repeat_interleave(x.shape[0] // found.shape[0], 0) & real
            mask = torch.where(found.any(1, keepdim=True), found, real)
        self._turns[adapter] = mask
        return mask

    def on_inputs(self, embeddings: Tensor) -> None:
        """Takes what the language model reads of a prompt, (B, L, H), image features included."""
        self._inputs = embeddings.detach()

    @torch.no_grad()
    def image_vectors(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the mean input embedding of the image's tokens for the rows of x, (B, H) float32.

        They are what stands in the user's turns and is no instruction text; zero without an image.
        """
        ids, inputs = self._ids, self._inputs
        if ids is None or self._embeddings is None:
            return torch.zeros_like(self.instruction(adapter, x))
        if inputs is None or inputs.shape[1] != ids.shape[1]:
            inputs = self._embeddings
        config = self.configs[adapter]
        mask = turns_mask(ids, config) & ~instruction_mask(ids, config)
        mask = mask.repeat_interleave(inputs.shape[0] // ids.shape[0], 0)
        vectors = mean_embedding(inputs, self._real(mask))
        return vectors.repeat_interleave(x.shape[0] // vectors.shape[0], 0)

    def first_token(self, x: Tensor) -> Tensor:
        """Returns the first real token of every row of x (B, L, d), (B, d)."""
        mask = self.attention_mask
        if mask is None or mask.shape != x.shape[:2]:
            return x[:, 0]
        first = (mask.cumsum(1) == 1) & mask.bool()
        return x[torch.arange(x.shape[0], device=x.device), first.int().argmax(1)]

    def _real(self, mask: Tensor) -> Tensor:
        """Returns the mask (B, L) without padding, where the attention mask tells it."""
        if self.attention_mask is not None and self.attention_mask.shape == mask.shape:
            return mask & self.attention_mask.bool()
        return mask

    def _from_prompt(self, config: RoutedConfig) -> tuple[Tensor, Tensor]:
        assert self._ids is not None
        assert self._embeddings is not None
        mask = self._real(instruction_mask(self._ids, config))
        vectors = mean_embedding(self._embeddings, mask)
        released = config.padding == "include" and self.training
        if released and config.pad_id is not None and self.embed is not None:
            # As released: the texts of a batch are padded to the longest and padding counts. They
            # were evaluated one by one, without padding, whatever the size of the batch here.
            lengths = mask.sum(1, keepdim=True)
            longest = lengths.max()
            pad = self.embed(torch.full((1, 1), config.pad_id, device=mask.device))[0].float()
            vectors = (vectors * lengths + pad * (longest - lengths)) / longest.clamp_min(1)
        return vectors, mask

    def _normalise(self, adapter: str, vectors: Tensor, valid: Tensor) -> Tensor:
        norm = self.configs[adapter].instruction_norm
        if norm == "layernorm":
            vectors = F.layer_norm(vectors, vectors.shape[-1:])
        elif norm == "running":
            statistics = self.statistics[adapter]
            if self.training:
                statistics.observe(vectors, valid)
            vectors = statistics.normalise(vectors)
        # An empty instruction is the zero vector: uniform stage 1, ties broken by index.
        return vectors * valid[:, None]

    def token_weights(self, x: Tensor, padding: str) -> Tensor:
        """Returns (B, L) float32 that sum to 1: each token's share in a mean over tokens."""
        weights = self._weights.get(padding)
        if weights is None or weights.shape != x.shape[:2]:
            mask = self.attention_mask
            real = torch.ones(x.shape[:2], device=x.device)
            if padding == "mask" and mask is not None and mask.shape == x.shape[:2]:
                real = mask.to(torch.float32)
            tokens = real.sum().clamp_min(1)
            weights = self._weights[padding] = real / tokens
            self._tokens[padding] = tokens
        return weights

    def tokens(self, padding: str) -> Tensor:
        """Returns how many tokens :meth:`token_weights` averages over in this forward pass."""
        return self._tokens[padding]

    def backward_scale(self, padding: str) -> Tensor | float:
        """Factor that makes a micro-batch's mean its part of the step's mean, as for the main loss.

        Call it after :meth:`token_weights`.
        """
        if self.step_tokens is None:
            return self.loss_scale
        tokens = self.tokens(padding)
        return self.loss_scale * tokens / self.step_tokens.to(tokens.device)

    def has_routed(self, adapter: str) -> bool:
        """Whether a routed layer has asked for the prompt's instruction or its tokens."""
        return adapter in self._vectors or bool(self._weights)

    def rows(self, adapter: str) -> int:
        """Returns how many rows the current prompt has."""
        return int(self._vectors[adapter].shape[0])

    def keep_rows(self, keep: Tensor) -> dict[str, Tensor]:
        """Keeps only the rows `keep` (indices) of a batch that is being decoded: the others ended.

        Returns:
            The instruction vectors by adapter, (rows, H).
        """
        self._vectors = {name: vectors[keep] for name, vectors in self._vectors.items()}
        self._weights, self._turns, self._rows, self._sentences = {}, {}, {}, {}
        if self._ids is not None and self._embeddings is not None:
            self._ids, self._embeddings = self._ids[keep], self._embeddings[keep]
            self._inputs = None
        if self.given is not None:
            self.given = self.given[0][keep], self.given[1][keep]
        if self._given_ids is not None:
            self._given_ids = self._given_ids[keep]
        return self._vectors

    def take_prompt(self) -> Tensor | None:
        """Returns the ids (B, L) of a prompt once; None while its decoding steps run."""
        ids, self._untaken = (self._ids if self._untaken else None), False
        return ids
