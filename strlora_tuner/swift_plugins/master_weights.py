"""Float32 for everything that trains, in every mode of ms-swift: imported by our plug-ins.

A step at the published rates (2e-5 later, 1e-5 for the aligner) is smaller than half a unit in the
last place of most bfloat16 weights. The host stores what trains in bfloat16 in two cases: modules
trained in full (the aligner) always, and everything under DeepSpeed with `--bf16 true`, whose
float32 copies live inside one run only. Here what trains is float32 from the start, the base model
keeps its dtype, and products are bfloat16 through autocast, as they are without DeepSpeed. So one
process, DDP and ZeRO compute alike, and what is saved, carried and resumed is what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from swift.pipelines.train.tuner import TunerMixin
from swift.utils import get_logger
from torch import nn
from transformers.integrations.deepspeed import deepspeed_config

from strlora_tuner import host_api

host_api.check("master_weights")
logger = get_logger()
LOW = (torch.float16, torch.bfloat16)


@contextmanager
def _full_modules_in_float32() -> Iterator[None]:
    """Inside, modules that train in full are float32 before saved weights are read into them."""

    def update(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        before(self, adapter_name, *args, **kwargs)
        _to_float32(self.modules_to_save[adapter_name])

    before = host_api.replace("peft.utils:ModulesToSaveWrapper.update", update)
    try:
        yield
    finally:
        host_api.replace("peft.utils:ModulesToSaveWrapper.update", before)


def _to_float32(module: nn.Module) -> None:
    """Makes the module's weights float32; it computes, and answers, in the dtype they had."""
    dtype = next(module.parameters()).dtype
    if dtype not in LOW:
        return
    module.float()
    forward = module.forward

    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        # The host embeds pictures before the forward pass that autocast is on for.
        with torch.autocast(next(module.parameters()).device.type, dtype):
            result = forward(*args, **kwargs)
        return result.to(dtype) if isinstance(result, torch.Tensor) else result

    module.forward = autocast_forward  # type: ignore[method-assign]


def _deepspeed_keeps_float32(chosen: Any) -> None:
    """Lets DeepSpeed compute by autocast instead of casting what trains to bfloat16.

    Args:
        chosen: `--deepspeed` as the host read it. Where it says itself what bf16 shall be (a file
            of the user's), it is left alone.
    """
    config = deepspeed_config()
    if config is None or not config.get("bf16", {}).get("enabled"):
        return
    if chosen["bf16"]["enabled"] != "auto":
        logger.warning(
            "this DeepSpeed file sets bf16.enabled itself: what trains is stored and carried in "
            'bfloat16; "auto" keeps it in float32'
        )
        return
    # [] : no module's gradients are summed in bfloat16.
    config["torch_autocast"] = {
        "enabled": True,
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],
    }
    if config["zero_optimization"]["stage"] == 3:  # zero.Init loads the base model in this dtype
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    else:
        config["bf16"]["enabled"] = False


def _in_float32(prepare: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Returns the host's function that puts an adapter on the model, or loads one to train, in
    float32. It raises ValueError where something would train in less."""

    @wraps(prepare)
    def prepare_model(cls: type, args: Any, model: nn.Module, **kwargs: Any) -> nn.Module:
        _deepspeed_keeps_float32(args.deepspeed or {})
        with _full_modules_in_float32():
            prepared = prepare(cls, args, model, **kwargs)
        low = [n for n, p in prepared.named_parameters() if p.requires_grad and p.dtype in LOW]
        if low:
            raise ValueError(
                f"{len(low)} parameters would train in less than float32, where a small step "
                f"changes nothing, {low[0]} among them; leave out --lora_dtype"
            )
        return prepared

    return prepare_model


TunerMixin.prepare_model = classmethod(_in_float32(TunerMixin.prepare_model.__func__))
