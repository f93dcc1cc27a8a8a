"""The PEFT model of MoELoRA."""

from __future__ import annotations

from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.moelora.layer import TokenGatedExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry MoELoRA's experts."""

    bank_class = TokenGatedExperts
