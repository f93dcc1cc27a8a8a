"""StrLoRA for PEFT: a mixture of LoRA experts routed by the instruction and by each token.

Importing this package registers it and the methods it is compared with, so that
`PeftModel.from_pretrained` loads our adapters.
The names below are resolved on first use: `import strlora_tuner.options` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from strlora_tuner.register import register_when_peft_is_loaded

_PUBLIC = {
    "StrLoraConfig": ("strlora_tuner.methods.strlora.config", "Config"),
    "StrLoraModel": ("strlora_tuner.methods.strlora.model", "Model"),
    "after_optimizer_step": ("strlora_tuner.training_loop", "after_optimizer_step"),
    "instruction_ids": ("strlora_tuner.training_loop", "instruction_ids"),
    "stability_loss": ("strlora_tuner.training_loop", "stability_loss"),
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


register_when_peft_is_loaded()
