"""Named settings of StrLoRA: what the paper says, and what the released code does."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults: stage 1 learns, held as stage 2 is; weights stay soft, padding never counts.
    "paper": {},
    # What the published checkpoints were trained with, defects included.
    "released": {
        "token_top_k": 1,
        "unused_expert_gradient": False,
        "task_router": "frozen",
        "instruction_norm": "none",
        "instruction_turns": "all",
        "instruction_statistics": "count",
        "padding": "include",
        "stability_on": "scores",
        "stability_reduction": "sum",
    },
}
