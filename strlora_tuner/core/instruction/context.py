"""What the routed layers of one forward pass share: the instruction vectors and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.instruction.joined_text import JoinedText
from strlora_tuner.core.instruction.passes import PassReader
from strlora_tuner.core.instruction.segments import (
    Pass,
    Segments,
    keep,
    recalled,
    segments_of,
)
from strlora_tuner.core.instruction.sequence import NO_IDS, Sequence
from strlora_tuner.core.instruction.turns import (
    instruction_mask,
    marked_ids,
    mean_embedding,
    weighted_sums,
)


class RoutingContext(PassReader):
    """What one forward pass of the model shares with its routed layers.

    A plain object, outside every state dict. The embedding hook stores ids and embeddings; the
    instruction vectors are computed from them on first use, and what is known of the sequences
    stays with their cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics: Any = {}  # by adapter name; the model's ModuleDict
        self.num_layers = 0
        self.recording = False
        # The embedding of an adapter's instruction from its token ids, for methods that want one.
        self.embed_sentence: Callable[[str, tuple[int, ...]], Tensor] | None = None
        # What reads texts back for an adapter, where it asks for it (`instruction_text: joined`).
        self.text_reader: Callable[[str], JoinedText] | None = None
        # Set by a host before each optimizer step. step_tokens: the tokens of the global batch,
        # divided by the number of processes; None: the micro-batch's own mean is used.
        self.step_tokens: Tensor | None = None
        self.loss_scale = 1.0
        # How many instructions the last prompts had, and how many of them were empty.
        self.instructions: Tensor | int = 0
        self.empty_rows: Tensor | None = None
        self._given_ids: Tensor | None = None
        self._given_vectors: dict[str, Tensor] = {}
        self._taken: Sequence | None = None
        self._forget()

    def _forget(self) -> None:
        self._vectors: dict[str, Tensor] = {}
        self._segments: dict[str, Segments] = {}
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self._weights = {}
        self._sentences: dict[str, Tensor] = {}
        self._written: dict[Hashable, tuple[str, tuple[Tensor, ...]]] = {}

    def on_prompt(self, ids: Tensor, embeddings: Tensor) -> None:
        """Takes ids (B, L) and embeddings (B, L, H) that a pass reads, or is about to read."""
        super().on_prompt(ids, embeddings)
        # A decoding step keeps the vectors of its prompt, repeated for its beams.
        if ids.shape[1] > 1 and not self._looking_up:
            self._given_vectors = {}

    def begin_forward(self, *args: Any, **kwargs: Any) -> None:
        """Called before the base model runs; see :meth:`PassReader.begin_forward`."""
        self._forget()
        super().begin_forward(*args, **kwargs)

    def end_forward(self, cache: Any = None) -> None:
        """Called after the base model ran, with the cache that it returned."""
        # First of all: the reader then hands the sequence, with its memory, to the cache.
        if self._pass is not None and not self.training:
            for name, (adapter, values) in self._written.items():
                keep(self._pass, self._segmented(adapter), name, values)
        super().end_forward(cache)

    def set_instruction(
        self, embeddings: Tensor | None, mask: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Fixes the instruction to these embeddings (B, L, H), mask and ids; None ends it."""
        self.given = None if embeddings is None or mask is None else (embeddings.detach(), mask)
        self._given_ids, self._given_vectors = ids, {}
        self._forget()

    def instruction(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the instruction vectors for x (B, L, d), (S, H) float32.

        S is B where every row is one segment; else :meth:`index` says which one a token takes.

        Raises:
            RuntimeError: no prompt was seen, or x belongs to another prompt, or to a turn of which
                a part is in the cache: routing would be silently wrong.
        """
        if x.dim() != 3:
            raise RuntimeError(
                f"a routed layer got an input of shape {tuple(x.shape)}, expected (batch, tokens, "
                "features): target only linear layers of the language model"
            )
        if self.given is not None:
            return self._given(adapter, x)
        vectors = self._vectors.get(adapter)
        if vectors is None:
            vectors = self._vectors[adapter] = self._own(adapter, self._running(x))
        if x.shape[0] != vectors.shape[0] and self.index(adapter, x) is None:
            raise self._mismatch(vectors.shape[0], x)
        return vectors

    def _mismatch(self, rows: int, x: Tensor) -> RuntimeError:
        return RuntimeError(
            f"the adapter saw a prompt of {rows} rows but routes an input of shape "
            f"{tuple(x.shape)}: {NO_IDS}"
        )

    def index(self, adapter: str, x: Tensor) -> Tensor | None:
        """Returns which of the S vectors each token of x (B, L, d) takes, (B, L); None: its row's.

        Call it after :meth:`instruction`.
        """
        found = self._segments.get(adapter)
        if found is None or found.index is None:
            return None
        return found.index[:, found.index.shape[1] - x.shape[1] :]

    def exist(self, adapter: str) -> Tensor | None:
        """Returns which of the S segments there are, (S) bool; None: all."""
        return self._segments[adapter].exist if adapter in self._segments else None

    def last_of_rows(self, adapter: str, values: Tensor) -> Tensor:
        """Returns of values (S, ...) those of each row's last segment, (B, ...)."""
        found = self._segments.get(adapter)
        return values if found is None or found.index is None else values[found.index[:, -1]]

    @torch.no_grad()
    def _given(self, adapter: str, x: Tensor) -> Tensor:
        assert self.given is not None
        if adapter not in self._given_vectors:
            embeddings, mask = self.given
            if self.configs[adapter].sentence_vectors:
                assert self._given_ids is not None
                rows = marked_ids(self._given_ids, mask[:, None])
                vectors = self._embed_texts(adapter, rows).to(mask.device)
            else:
                vectors = mean_embedding(embeddings, mask)
            self._given_vectors[adapter] = self._normalise(adapter, vectors, mask.any(1))
            self.instructions, self.empty_rows = len(mask), (~mask.any(1)).sum()
        vectors = self._given_vectors[adapter]
        if x.shape[0] % vectors.shape[0]:
            raise self._mismatch(vectors.shape[0], x)
        if x.shape[0] != vectors.shape[0]:  # beams and num_return_sequences repeat rows
            vectors = vectors.repeat_interleave(x.shape[0] // vectors.shape[0], 0)
            self._given_vectors[adapter] = vectors
        self._vectors[adapter] = vectors
        return vectors

    @torch.no_grad()
    def _own(self, adapter: str, run: Pass) -> Tensor:
        """Returns the vectors of the segments that a pass reads, from the user's turns."""
        sequence = run.sequence
        # One object for a whole answer: layers see by its identity that the prompt is the same.
        if run.answering and adapter in sequence.last:
            return sequence.last[adapter]
        segments = self._segmented(adapter)
        if (vectors := sequence.vectors.get(adapter)) is None:
            vectors = sequence.vectors[adapter] = self._compute(adapter, sequence)
        if vectors.shape[1] > 1:
            rows = torch.arange(len(vectors), device=vectors.device)[:, None]
            vectors = vectors[rows, segments.wanted]
            if not run.answering:
                return vectors.flatten(0, 1)
        return sequence.last.setdefault(adapter, vectors[:, 0])

    def _segmented(self, adapter: str) -> Segments:
        if adapter not in self._segments:
            assert self._pass is not None
            fixed = self.given is not None
            found = segments_of(self._pass, adapter, self.configs[adapter], fixed)
            self._segments[adapter] = found
        return self._segments[adapter]

    @torch.no_grad()
    def _compute(self, adapter: str, sequence: Sequence) -> Tensor:
        """Returns the vectors of all segments of a sequence, (B, K, H)."""
        config, ids = self.configs[adapter], sequence.ids
        assert ids is not None
        turns = sequence.turns(adapter, config)
        numbers = torch.arange(turns.count, device=ids.device).expand(len(ids), -1)
        if config.instruction_text == "joined" and config.turn_start:
            assert self.text_reader is not None
            texts, real = self.text_reader(adapter)(ids, turns, sequence.counted(turns.inside))
            known, mask = None, real[:, None]
        else:
            texts, known = ids, sequence.embeddings
            counted = sequence.counted(instruction_mask(ids, config, turns.inside))
            mask = turns.up_to(counted, numbers)
        lengths = mask.sum(2).flatten()[:, None]
        if config.sentence_vectors:
            vectors = self._embed_texts(adapter, marked_ids(texts, mask)).to(ids.device)
        else:
            embeddings = self.look_up(texts) if known is None else known
            vectors = weighted_sums(embeddings, mask) / lengths.clamp_min(1)
        if config.padding == "include" and self.training and config.pad_id is not None:
            # As released: the texts of a batch are padded to the longest and padding counts. They
            # were evaluated one by one, without padding, whatever the size of the batch here.
            longest = lengths.max()
            pad = self.look_up(torch.full((1, 1), config.pad_id, device=ids.device))[0].float()
            vectors = (vectors * lengths + pad * (longest - lengths)) / longest.clamp_min(1)
        # Rows with fewer segments than others repeat their last; repetitions are not counted.
        valid, exist = lengths[:, 0] > 0, (numbers <= turns.numbers[:, -1:]).flatten()
        self.instructions = exist.sum()
        self.empty_rows = (exist & ~valid).sum()
        vectors = self._normalise(adapter, vectors, valid & exist)
        return vectors.view(len(ids), turns.count, -1)

    def instruction_tokens(self, adapter: str) -> list[tuple[int, ...]]:
        """Returns the ids of every segment's instruction (S), fetched from the device once a pass.

        Call it after :meth:`instruction`, which sees to it that there is a prompt.
        """
        if self.given is not None and self._given_ids is not None:
            ids, mask = self._given_ids, self.given[1][:, None]
        else:
            assert self._pass is not None
            assert self._pass.sequence.ids is not None
            sequence, config = self._pass.sequence, self.configs[adapter]
            turns, ids = sequence.turns(adapter, config), self._pass.sequence.ids
            found = sequence.counted(instruction_mask(ids, config, turns.inside))
            mask = turns.up_to(found, self._segmented(adapter).wanted)
        return marked_ids(ids, mask)

    def _embed_texts(self, adapter: str, rows: list[tuple[int, ...]]) -> Tensor:
        """Returns the sentence embeddings of rows of token ids, (rows, width)."""
        assert self.embed_sentence is not None
        return torch.stack([self.embed_sentence(adapter, row) for row in rows])

    def sentences(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the sentence embedding of every segment's text, (S, width), on x's device."""
        found = self._sentences.get(adapter)
        if found is None:
            rows = self.instruction_tokens(adapter)
            found = self._embed_texts(adapter, rows).to(x.device)
            if self.index(adapter, x) is None:
                found = found.repeat_interleave(x.shape[0] // len(rows), 0)
            self._sentences[adapter] = found
        return found

    def turn_tokens(self, adapter: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which tokens of x (B, L, d) are of the user's turns up to each segment.

        Images count; where no turn is marked, every real token does. Call it after
        :meth:`instruction`.

        Returns:
            (B, K, L) bool, and their number, (S, 1), with those that are in the cache.
        """
        run = self._running(x)
        if adapter not in self._turns:
            sequence, segments = run.sequence, self._segmented(adapter)
            if sequence.ids is None:
                mask = self._real(x)[:, None]
            else:
                turns = sequence.turns(adapter, self.configs[adapter])
                inside = turns.up_to(sequence.counted(turns.inside), segments.wanted)
                every = turns.up_to(sequence.counted(sequence.ids >= 0), segments.wanted)
                mask = torch.where(inside.any(2, keepdim=True), inside, every)
            here = mask if sequence.ids is None else mask[..., run.start : run.start + x.shape[1]]
            self._turns[adapter] = here, mask.sum(2).flatten()[:, None]
        return self._turns[adapter]

    def on_inputs(self, embeddings: Tensor) -> None:
        """Takes what the language model reads of a prompt, (B, L, H), image features included."""
        self._inputs = embeddings.detach()

    @torch.no_grad()
    def image_vectors(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the mean input embedding of the images up to each segment, (S, H) float32.

        They are what stands in the user's turns and is no instruction text; zero without an image.
        """
        run = self._running(x)
        sequence, inputs = run.sequence, self._inputs
        if inputs is None or inputs.shape[:2] != x.shape[:2]:
            inputs = run.inputs
        if sequence.ids is None or inputs is None:
            return torch.zeros_like(self.instruction(adapter, x))
        config = self.configs[adapter]
        turns = sequence.turns(adapter, config)
        images = turns.inside & ~instruction_mask(sequence.ids, config, turns.inside)
        mask = turns.up_to(sequence.counted(images), self._segmented(adapter).wanted)
        sums = weighted_sums(inputs, mask[..., run.start : run.start + x.shape[1]])
        before = self.recall(f"images of {adapter}", adapter, x)
        sums = sums if before is None else sums + before[0]
        self.remember(f"images of {adapter}", adapter, sums)
        return sums / mask.sum(2).flatten()[:, None].clamp_min(1)

    def first_token(self, adapter: str, x: Tensor) -> Tensor:
        """Returns the first real token of every segment's sample in x (B, L, d), (S, d)."""
        run, real = self._running(x), self._real(x)
        segments, rows = self._segmented(adapter), torch.arange(x.shape[0], device=x.device)
        if segments.index is None:
            return x[rows, real.int().argmax(1)]
        turns = run.sequence.turns(adapter, self.configs[adapter])
        mine = turns.same_sample(segments.wanted)[..., : x.shape[1]] & real[:, None]
        return x[rows[:, None], mine.int().argmax(2)].flatten(0, 1)

    def continues(self, adapter: str, x: Tensor) -> bool:
        """Whether all of x is of segments that began in the cache: nothing is chosen anew."""
        self._running(x)
        return self._segmented(adapter).continues

    def recall(self, name: Hashable, adapter: str, x: Tensor) -> tuple[Tensor, ...] | None:
        """Returns what was remembered of the segment that a pass goes on with, for each of its S.

        None where a pass begins a sequence.

        Raises:
            RuntimeError: the cache was filled without this adapter.
        """
        return recalled(self._running(x), self._segmented(adapter), name)

    def remember(self, name: Hashable, adapter: str, *values: Tensor) -> None:
        """Keeps values (S, ...) of this pass's segments with their sequences, outside training."""
        if not self.training:
            self._written[name] = adapter, tuple(value.detach() for value in values)

    def settle(
        self, name: Hashable, adapter: str, before: tuple[Tensor, ...] | None, *values: Tensor
    ) -> Tensor:
        """Returns a choice (S, n), the first of `values`, and remembers all of them.

        A segment that began in the cache keeps the choice it has, the first of `before`, which is
        what :meth:`recall` returned.
        """
        choice, *others = values
        if before is not None:
            wanted = self._segmented(adapter).wanted
            first = torch.arange(wanted.shape[1], device=wanted.device) == 0
            choice = torch.where(first.repeat(len(wanted))[:, None], before[0], choice)
        self.remember(name, adapter, choice, *others)
        return choice

    def _normalise(self, adapter: str, vectors: Tensor, valid: Tensor) -> Tensor:
        norm = self.configs[adapter].instruction_norm
        if norm == "layernorm":
            vectors = F.layer_norm(vectors, vectors.shape[-1:])
        elif norm == "running":
            # They move after the optimizer's step, so that all its micro-batches see the same.
            statistics = self.statistics[adapter]
            if self.training:
                statistics.observe(vectors, valid)
            vectors = statistics.normalise(vectors)
        # An empty instruction is the zero vector: uniform stage 1, ties broken by index.
        return vectors * valid[:, None]

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

    def keep_rows(self, keep: Tensor) -> None:
        """Keeps only the rows `keep` (indices) of a batch that is being decoded."""
        last = self.generations[-1] if self.generations else self._pass
        if last is not None and last.sequence is not None:
            last.sequence.select(keep)
        if self.given is not None and len(self.given[0]) > int(keep.max()):
            self.given = self.given[0][keep], self.given[1][keep]
            self._given_ids = None if self._given_ids is None else self._given_ids[keep]
            self._given_vectors = {}
        self._pass = None
        self._forget()

    def take_prompt(self, x: Tensor) -> Tensor | None:
        """Returns the ids (B, L) of a prompt once, of what x is of; None while it is answered."""
        if self._past and self._generation is None:
            return None
        run = self._running(x)
        if run.start or run.answering or run.sequence is self._taken:
            return None
        self._taken, ids = run.sequence, run.sequence.ids
        if ids is None or self._embedded is None:
            return ids
        return ids[:: max(1, len(ids) // len(self._embedded[0]))]  # once for all of its beams
