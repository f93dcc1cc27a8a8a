"""The teacher, the adapter of the chunk before in the same model, and what is learnt of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from strlora_tuner.methods.slow_weights.average import adapter_tensors
from strlora_tuner.saved import WEIGHTS, check_finite


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student), both softened by T, the mean over the labelled tokens.

    Args:
        student: logits (B, L, V).
        teacher: the same.
        labels: (B, L), -100 where nothing is learnt; position i - 1 says what stands at i.
    """
    labelled = labels[:, 1:] != -100
    said, wanted = (
        (logits[:, :-1][labelled].float() / temperature).log_softmax(-1)
        for logits in (student, teacher)
    )
    total = (wanted.exp() * (wanted - said)).sum()
    # T^2: softened by T, the gradients of both are T^2 times smaller (Hinton et al. 2015).
    return temperature**2 * total / labelled.sum().clamp_min(1)


class Teacher:
    """The model with the weights and buffers of a saved adapter, without a second model."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        """Reads the adapter in `folder`, of the tuner that `model` (a PeftModel) carries.

        Raises:
            ValueError: the file is missing or damaged, or lacks a tensor of the model's adapter.
        """
        self.model, path = model, folder / WEIGHTS
        if not path.is_file():
            raise ValueError(f"lwf: {path}: no such file, but this chunk learns from it")
        check_finite(path)
        saved, self.tensors = load_file(path), {}
        # By identity: PEFT gives an adapter's tensors other names in a file than in the model.
        names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        for key, own in adapter_tensors(model).items():
            if key not in saved or saved[key].shape != own.shape:
                raise ValueError(f"lwf: {path} holds no {key} of shape {tuple(own.shape)}")
            self.tensors[names[id(own)]] = saved[key].to(own)

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Returns its logits, without dropout; statistics and averages of the tuner stay."""
        self.model.eval()
        try:
            output = torch.func.functional_call(self.model, self.tensors, (), dict(inputs))
        finally:
            self.model.train()
        found: Tensor = output.logits
        return found
