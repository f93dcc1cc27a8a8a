"""Named settings of StrLoRA: what the paper says, and what the released code does.

An option that some preset names belongs to the presets: naming a preset sets all of them. `paper`
is their defaults in options.py.
"""

from __future__ import annotations

from typing import Any

# What the published checkpoints were trained with, defects included.
_RELEASED: dict[str, Any] = {
    "token_top_k": 1,
    "unused_expert_gradient": False,
    "task_router": "frozen",
    "token_router": "on",
    "instruction_norm": "none",
    "instruction_turns": "all",
    "instruction_text": "joined",
    "instruction_statistics": "count",
    "dropout_masks": "expert",
    "gate_scale": "one",
    "padding": "include",
    "ema_decay": 0.999,
    "stability_on": "scores",
    "stability_temperature": 1.0,
    "stability_reduction": "sum",
}

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults: stage 1 learns, weights stay soft, padding never counts, routers never freeze.
    "paper": {},
    "released": _RELEASED,
    "released_gemma": _RELEASED,
}
# From which chunk on the routers rest; a preset that is not here never freezes them.
FREEZE_ROUTERS_FROM = {"released": 5, "released_gemma": 4}
