"""What methods are called: in files and on the command line, and in print; what they keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from eval.report.data import RunData

# Names in print, as their papers write them.
PRINTED = {
    "base model": "Base model",
    "branchlora": "BranchLoRA",
    "er": "Replay (ER)",
    "er_equal": "Replay (ER), equal samples",
    "ewc": "EWC",
    "ewc_released": "EWC (released)",
    "hide_llava": "HiDe-LLaVA",
    "joint": "Joint",
    "l2": "L2",
    "lora": "LoRA",
    "lora_attention": "LoRA (attention only)",
    "lora_fifth": "LoRA (a fifth of the rate)",
    "lora_tenth": "LoRA (a tenth of the rate)",
    "lwf": "LwF",
    "moelora": "MoELoRA",
    "mr_lora": "MR-LoRA",
    "olora": "O-LoRA",
    "oracle": "Oracle (task given)",
    "oracle (given the task: upper bound of routing)": "Oracle (task given: upper bound)",
    "same": "SAME",
    "same_released": "SAME (released)",
    "smolora": "SMoLoRA",
    "strlora": "StrLoRA",
    "strlora_ewc": "StrLoRA with EWC",
    "strlora_released": "StrLoRA (released)",
    "strlora_signed": "StrLoRA (signed)",
    "zero_shot": "Zero-shot",
}
# Blocks of a recipe that combine with any method, and the methods that are made of them.
BLOCKS = {
    "replay": ("replay", {"er", "er_equal"}),
    "ewc": ("EWC", {"ewc", "ewc_released", "l2", "strlora_ewc"}),
    "lwf": ("LwF", {"lwf"}),
    "slow_weights": ("slow weights", {"strlora_signed"}),
}


def told_apart(folders: Sequence[Path]) -> list[str]:
    """Return the end of each path, as long as all of them need it to differ: "a/run", "b/run"."""
    paths = [folder.resolve().parts for folder in folders]
    length = next(n for n in count(1) if len({path[-n:] for path in paths}) == len(set(paths)))
    return ["/".join(path[-length:]) for path in paths]


def method_name(run: RunData, preset: bool) -> str:
    """Return a run's method with the blocks added to it: "lora + slow weights".

    Args:
        run: the run.
        preset: whether its preset, and what changed it, is part of the name.
    """
    recipe, method = run.manifest.recipe, run.manifest.method
    # `slow_weights: {}` is the block with its defaults: only null is none.
    added = [
        word
        for key, (word, inherent) in BLOCKS.items()
        if recipe.get(key) is not None and method not in inherent
    ]
    return " + ".join([run.manifest.method_name(preset) or run.name, *added])


def kept_data(protocol: str | None, recipe: Mapping[str, Any]) -> str:
    """Return what past data a run of a recipe keeps, in words; empty: none."""
    if protocol == "joint":
        return "all data"
    if memory := (recipe.get("replay") or {}).get("memory"):
        return f"{memory} samples"
    if kept := (recipe.get("pool") or {}).get("samples"):
        return f"{kept} samples a chunk"
    return ""


def printed(name: str) -> str:
    """Return a method's name as print has it: "lora + slow weights" is "LoRA + slow weights"."""
    # Longest first: "oracle (given the task: ...)" begins with "oracle".
    for known in sorted(PRINTED, key=len, reverse=True):
        if name == known or name.startswith((f"{known} ", f"{known}, ")):
            return PRINTED[known] + name[len(known) :]
    return name
