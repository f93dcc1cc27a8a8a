"""The PEFT model of O-LoRA, which opens a subspace for every chunk."""

from __future__ import annotations

from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.olora.layer import OrthogonalExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry O-LoRA's subspaces."""

    bank_class = OrthogonalExperts
