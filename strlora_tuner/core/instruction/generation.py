"""`generate` of a model with a routed adapter: it tells the prompt before any of it is read.

A prompt may be read in pieces, with drafted tokens behind it, or on a cache that an earlier turn
has filled; and what is generated is an answer, whatever its tokens are.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.instruction.sequence import Generation, fitted, sequence_of, tokens_in
from strlora_tuner.core.instruction.turns import GENERATED

# Engines inside transformers that read several requests in one row of a paged cache.
ENGINES = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


class RoutedGenerate:
    """Stands for a model's `generate`; `whole_turn` says whether the active adapter reads states.

    An object and not a function: a deep copy of the model gets one of its own.
    """

    def __init__(
        self, model: nn.Module, context: RoutingContext, whole_turn: Callable[[], bool]
    ) -> None:
        self.model, self.context, self.whole_turn = model, context, whole_turn
        self.own: Callable[..., Any] = model.generate  # type: ignore[assignment]
        self.__signature__ = inspect.signature(self.own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the model's own `generate` does."""
        model: Any = self.model
        bound = self.__signature__.bind_partial(*args, **kwargs).arguments
        settings = [bound.get("generation_config"), model.generation_config]

        def option(name: str) -> Any:
            values = [kwargs.get(name), *(getattr(part, name, None) for part in settings)]
            return next((value for value in values if value is not None), None)

        if option("prefill_chunk_size") is not None and self.whole_turn():
            warnings.warn(
                "prefill_chunk_size is not used: this adapter chooses its experts by the hidden "
                "states of the whole prompt, so that the prompt is read in one piece",
                stacklevel=2,
            )
            kwargs["prefill_chunk_size"] = None
        drafted = option("prompt_lookup_num_tokens") is not None or "assistant_model" in kwargs
        if drafted and tokens_in(kwargs.get("past_key_values")):
            self._drop_cache(kwargs)
        self.context.generations.append(self._generation(bound.get("inputs"), kwargs, option))
        try:
            return self.own(*args, **kwargs)
        finally:
            self.context.generations.pop()

    def _drop_cache(self, kwargs: dict[str, Any]) -> None:
        """Takes a kept cache away where transformers would read the conversation onto it again."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None or (mask is not None and mask.shape != ids.shape):
            raise ValueError(
                "assisted decoding and prompt lookup on past_key_values need input_ids of the "
                "whole conversation"
            )
        warnings.warn(
            "past_key_values is not used: transformers reads the whole conversation again when "
            "tokens are drafted (prompt lookup, assisted decoding)",
            stacklevel=3,
        )
        del kwargs["past_key_values"]

    def _generation(
        self, inputs: Any, kwargs: dict[str, Any], option: Callable[[str], Any]
    ) -> Generation:
        cache, embeds = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        ids = kwargs.get("input_ids", inputs)
        ids = ids if isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] else None
        if embeds is not None and (ids is None or ids.shape[1] != embeds.shape[1]):
            ids = self.context.embedded_ids((embeds.shape[0], embeds.shape[1]))
        mask, past = kwargs.get("attention_mask"), tokens_in(cache)
        drafts, known = bool(option("is_assistant")), sequence_of(cache)
        told = Generation(None, None, mask, cache, past, past, drafts)
        if ids is None or option("token_healing"):  # the first pass tells
            return told
        # As transformers infers it: padding is known by its id, unless that also ends an answer.
        if mask is None and (pad := option("pad_token_id")) is not None:
            ends = option("eos_token_id")
            ends = ends if isinstance(ends, (list, tuple)) else [ends]
            mask = None if pad in ends or not bool((ids == pad).any()) else (ids != pad).long()
        length = ids.shape[1]
        if past and mask is not None and mask.shape[1] != length:  # only what is new was given
            if known is None or known.ids is None:
                return told
            ids = torch.cat([fitted(known.ids, past, GENERATED), ids], 1)
        elif past and known is not None:
            ids = ids.clone()
            # Earlier answers come back as ids here; no marker in them opens a user's turn.
            ids[:, known.length : None if drafts else past] = GENERATED
        told.ids, told.length, told.mask = ids, ids.shape[1], mask
        return told


def refuse_engine(*_: Any, **__: Any) -> None:
    """Raises NotImplementedError: a paged engine mixes requests, whose instructions differ."""
    raise NotImplementedError(
        "a routed adapter cannot run in continuous batching on a paged cache: it mixes the tokens "
        "of several requests in one row and keeps no sequence together; call model.generate"
    )


def wrap_generate(
    model: nn.Module, context: RoutingContext, whole_turn: Callable[[], bool]
) -> None:
    """Makes `model.generate` tell the context what it reads, whoever calls it."""
    if not callable(getattr(model, "generate", None)):
        return
    model.generate = RoutedGenerate(model, context, whole_turn)  # type: ignore[assignment]
    for name in ENGINES:
        if hasattr(model, name):
            setattr(model, name, refuse_engine)


def unwrap_generate(model: nn.Module) -> None:
    """Gives the model its own `generate` back."""
    for name in ("generate", *ENGINES):
        vars(model).pop(name, None)
