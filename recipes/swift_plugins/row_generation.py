"""Greedy decoding of a batch from which a row leaves as soon as its answer ends.

`transformers` keeps every row of a batch until the longest answer has ended, so a batch of short
answers and one long one costs as if all were long. Here the rows that have ended are taken out of
the key-value cache, and each further step reads and computes only the rows still open. The loop is
that of `GenerationMixin._sample`, given to `generate(custom_generate=...)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerateDecoderOnlyOutput

# Taking rows out copies the cache of the others once, about what one step costs.
SMALLEST_DROP = 1 / 8


def applies_to(model: nn.Module, generation_config: Any) -> bool:
    """Whether rows can leave: greedy, one sequence a row, and no adapter that would not notice.

    A tuner of our own that remembers something about each row has a method `keep_rows(indices)`;
    those of PEFT remember nothing between two steps.
    """
    asked = generation_config
    greedy = not asked.do_sample and (asked.num_beams or 1) == 1
    plain = (asked.num_return_sequences or 1) == 1 and asked.use_cache is not False
    whole = not (asked.output_logits or asked.output_scores or asked.output_attentions)
    tuner = getattr(model, "base_model", None) if hasattr(model, "peft_config") else None
    of_peft = type(tuner).__module__.split(".", 1)[0] == "peft"
    known = tuner is None or hasattr(tuner, "keep_rows") or of_peft
    return bool(greedy and plain and whole and known and not asked.output_hidden_states)


class RowGeneration:
    """What `generate(custom_generate=...)` calls; `whole` is the model with its adapter."""

    def __init__(self, whole: nn.Module) -> None:
        self.whole = whole

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput:
        """Returns the sequences (B, L + new) of prompts `input_ids` (B, L), padded on the right.

        Args:
            model: the base model, as `generate` hands it over.
            input_ids: (B, L) prompts, or (B, 0) where `inputs_embeds` holds them.
            logits_processor: changes the scores (rows, vocabulary) of a step.
            stopping_criteria: which rows have ended, (rows,) bool.
            generation_config: as `generate` completed it.
            synced_gpus: refused: all ranks would have to step alike.
            streamer: refused, as by the caller.
            model_kwargs: the cache, masks and images.
        """
        if synced_gpus or streamer is not None:
            raise ValueError("rows of a batch cannot leave one by one with synced_gpus or a stream")
        pad = generation_config._pad_token_tensor
        rows = _Rows(self.whole, input_ids, stopping_criteria)
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        while True:
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            # A copy: a view would keep the logits of the whole prompt in memory.
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
            del outputs
            scores = logits_processor(rows.ids, logits.to(rows.ids.device))
            tokens = scores.argmax(-1)
            rows.add(tokens if pad is None else torch.where(rows.ended, pad, tokens))
            if rows.all_ended():
                found: Any = rows.sequences(pad)
                return GenerateDecoderOnlyOutput(sequences=found)
            model_kwargs = rows.drop_ended(model_kwargs)
            inputs = model.prepare_inputs_for_generation(
                rows.ids, next_sequence_length=1, **model_kwargs
            )
            outputs = model(**inputs, return_dict=True)


class _Rows:
    """The rows still in the batch, and the sequences of those that left.

    Attributes:
        ids: (rows, length so far).
        ended: (rows,) bool.
    """

    def __init__(self, whole: nn.Module, ids: Tensor, criteria: Any) -> None:
        self.whole, self.ids, self.criteria = whole, ids, criteria
        self.ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self._numbers = list(range(len(ids)))  # of the rows here, in the batch as it came
        self._left: dict[int, Tensor] = {}
        self._open = len(ids)

    def add(self, tokens: Tensor) -> None:
        """Appends a token to every row, (rows,), and asks which have ended."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        # What has ended stays so: filler tokens follow until the row leaves, and criteria look at
        # the newest token.
        self.ended = self.ended | self.criteria(self.ids, None)
        self._open = len(self.ended) - int(self.ended.sum())

    def all_ended(self) -> bool:
        """Whether nothing is left to generate."""
        return self._open == 0

    def drop_ended(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Takes the ended rows out, once they are enough to pay; returns the model's arguments."""
        count = len(self._numbers)
        if count - self._open < max(1, count * SMALLEST_DROP):
            return model_kwargs
        for place in self.ended.nonzero().flatten().tolist():
            self._left[self._numbers[place]] = self.ids[place]
        keep = (~self.ended).nonzero().flatten()
        self._numbers = [self._numbers[place] for place in keep.tolist()]
        self.ids, self.ended = self.ids[keep], self.ended[keep]
        for criterion in self.criteria:
            if isinstance(getattr(criterion, "is_done", None), Tensor):
                criterion.is_done = criterion.is_done[keep]
        for module in _remembering(self.whole):
            module.keep_rows(keep)
        return {name: _selected(name, value, keep, count) for name, value in model_kwargs.items()}

    def sequences(self, pad: Tensor | None) -> Tensor:
        """Returns all rows in their first order, (B, longest)."""
        rows = self._left | dict(zip(self._numbers, self.ids, strict=True))
        filler = 0 if pad is None else int(pad)
        sequences = [rows[number] for number in sorted(rows)]
        return nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=filler)


class _Positions:
    """The offset of a Qwen-VL's text positions, which the model keeps for every row."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def keep_rows(self, keep: Tensor) -> None:
        """Keeps only the rows `keep`, (rows,) indices."""
        self.module.rope_deltas = self.module.rope_deltas[keep]


def _remembering(whole: nn.Module) -> Iterator[Any]:
    """Yields what holds something about each row outside the model's arguments."""
    tuner = getattr(whole, "base_model", None)
    if hasattr(tuner, "keep_rows"):
        yield tuner
    for module in whole.modules():
        if isinstance(vars(module).get("rope_deltas"), Tensor):
            yield _Positions(module)


def _selected(name: str, value: Any, keep: Tensor, count: int) -> Any:
    """Returns the rows `keep` of one argument of the model; `count` rows were there."""
    # Made for beams, but takes any rows; `batch_select_indices` knows no recurrent states.
    if hasattr(value, "reorder_cache"):
        value.reorder_cache(keep)
        return value
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if name == "position_ids" and value.dim() == 3:  # (3 or 4, rows, tokens) in the Qwen-VLs
        return value[:, keep]
    return value[keep] if value.shape[0] == count else value
