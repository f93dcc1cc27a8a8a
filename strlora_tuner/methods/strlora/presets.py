"""Named settings of the tuner: what the released code does, and what the paper says."""

from __future__ import annotations

import difflib
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The schema's defaults: stage 1 learns, weights stay soft, padding never counts.
    "paper": {},
    # What the published checkpoints were trained with, defects included.
    "released": {
        "token_top_k": 1,
        "unused_expert_gradient": False,
        "task_router": "frozen",
        "instruction_norm": "none",
        "padding": "include",
        "stability_reduction": "sum",
    },
}


def preset_options(name: str) -> dict[str, Any]:
    """Returns a copy of the options that preset `name` changes; ValueError for an unknown name."""
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"preset {name!r} is unknown, expected one of {sorted(PRESETS)}{hint}")
    return dict(PRESETS[name])
