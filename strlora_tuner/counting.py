"""How many parameters an adapter has: its own modules, made on the meta device and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods import LORA, config_class
from strlora_tuner.options import AdapterOptions, Size


def count_adapter(
    tuner_type: str,
    options: AdapterOptions,
    layers: Sequence[tuple[int, int]],
    hidden: int,
    chunk: int = 1,
) -> Size:
    """Counts an adapter as chunk `chunk` (from 1) trains and stores it; nothing takes memory.

    Args:
        layers: (d_in, d_out) of all adapted linear layers; those of one size are counted once.
        hidden: width of the instruction vector.
    """
    if tuner_type == LORA:  # PEFT's own: a pair of matrices a layer
        pairs = sum(options.rank * (d_in + d_out) for d_in, d_out in layers)
        return Size(pairs, pairs)
    config = config_class(tuner_type).from_options(options).at_chunk(chunk)
    model = cast(type[RoutedModel], config.model_class())
    with torch.device("meta"):
        banks = {
            (d_in, d_out): model.new_bank(d_in, d_out, hidden, config)
            for d_in, d_out in set(layers)
        }
        state = model.new_state(hidden, config)
    for bank in banks.values():
        bank.freeze_untrained()
    counts = [] if state is None else [_count(state)]
    of_size = {size: _count(bank) for size, bank in banks.items()}
    counts += [of_size[size] for size in layers]
    return Size(*map(sum, zip(*counts, strict=True)))


def _count(module: nn.Module) -> Size:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Size(trained, sum(tensor.numel() for tensor in module.state_dict().values()))
