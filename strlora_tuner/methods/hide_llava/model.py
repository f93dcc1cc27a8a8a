"""The PEFT model of HiDe-LLaVA, which finds the top layer and opens a LoRA for every chunk."""

from __future__ import annotations

from typing import Any

from torch import nn

from strlora_tuner.core.layer import RoutedLinear
from strlora_tuner.methods.branchlora.keyed_model import KeyedModel
from strlora_tuner.methods.hide_llava.layer import Anchors, ChunkExperts


class Model(KeyedModel):
    """A base model whose chosen linear layers carry a LoRA a chunk."""

    bank_class = ChunkExperts
    state_class = Anchors

    def _injected(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        banks: dict[int, list[ChunkExperts]] = {}
        # Not by the names of all layers: a vision tower has numbered layers of its own.
        for name, layer in model.get_decoder().named_modules():  # type: ignore[operator]
            if isinstance(layer, RoutedLinear) and adapter_name in layer.strlora_mixture:
                number = next(int(part) for part in name.split(".") if part.isdigit())
                banks.setdefault(number, []).append(layer.mixture(adapter_name))
        if not banks:
            raise ValueError(
                f"target_modules = {config.target_modules!r} wraps no decoder layer: hide_llava "
                "weighs its LoRAs in the last one; name linear layers of the language model"
            )
        for bank in banks[max(banks)]:  # the last decoder layer that carries the adapter
            bank.top = True
