"""The adapter for one instruction: its gates are numbers, so that it is a plain LoRA.

y = W x + s B (g * A x) = W x + s B A' x with A' = diag(g) A. Every tool that reads PEFT's LoRA
loads, merges and serves it. For prompts of another instruction it is another model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from strlora_tuner.methods.strlora_signed.layer import SignedExperts
from strlora_tuner.saved import INSIDE, LAYER, STATE, WEIGHTS
from strlora_tuner.training_loop import tuner_of


@torch.no_grad()
def lora_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Returns PEFT's LoRA for the instruction of the last prompt that `model` read, by file name.

    What trained in full beside the adapter (an aligner) is in it as it is.

    Raises:
        ValueError: no prompt was read, or its rows have instructions with different gates.
    """
    tensors = {}
    for name, bank in tuner_of(model).mixtures():
        assert isinstance(bank, SignedExperts)
        gates = bank.last_gates
        if gates is None:
            raise ValueError("the model has read no prompt, so there is no instruction to fold in")
        if not torch.equal(gates, gates[:1].expand_as(gates)):
            raise ValueError("the prompts that the model read last have different instructions")
        rows = gates[0].repeat_interleave(len(bank.A) // gates.shape[1])
        tensors[f"{INSIDE}{name}.lora_A.weight"] = rows[:, None].to(bank.A) * bank.A
        tensors[f"{INSIDE}{name}.lora_B.weight"] = bank.B.clone()
    whole = get_peft_model_state_dict(model)
    tensors |= {k: v for k, v in whole.items() if LAYER not in k and STATE not in k}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def lora_config(model: PeftModel) -> LoraConfig:
    """Returns the configuration of that LoRA: rank, scale and layers are the adapter's."""
    config: Any = model.peft_config["default"]
    shared = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        modules_to_save=config.modules_to_save,
        inference_mode=True,
        **{name: getattr(config, name) for name in shared},
    )


def write_lora(model: PeftModel, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, see :func:`lora_tensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora_tensors(model), folder / WEIGHTS, metadata={"format": "pt"})
    lora_config(model).save_pretrained(str(folder))


def write_after_prompt(model: PeftModel, folder: Path) -> None:
    """Has the LoRA of the first prompt that the model will read written into `folder`."""

    def write(*_: Any) -> None:
        handle.remove()
        write_lora(model, folder)

    inner: nn.Module = tuner_of(model).model
    handle = inner.register_forward_hook(write)
