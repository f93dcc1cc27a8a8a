"""Converts an adapter that the published StrLoRA code saved: `python -m strlora_tuner.convert`.

Every tensor of the source is used or named in an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from strlora_tuner.methods.strlora.config import Config
from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.methods.strlora.published_checkpoint import (
    ALIGNER,
    hf_native,
    read_aligner,
    read_averages,
    read_config,
    read_pickle,
    tensors_of,
)
from strlora_tuner.saved import BESIDE, INSIDE, LAYER, STATE, WEIGHTS, replace_file

_EMA_NAMES = {
    "attn_wq_weight": "ema_query",
    "attn_wk_weight": "ema_key",
    "attn_expert_proto": "ema_prototypes",
}
_ROUTER_NAMES = {
    "lora_router.weight": "task",
    "lora_attn_wq.weight": "query",
    "lora_attn_wk.weight": "key",
    "lora_attn_expert_proto": "prototypes",
}
# Written by the published code but without effect when the routers have a width (router_dim > 0).
_UNUSED = ("lora_sub_router.weight",)
_EXPERT = re.compile(r"^lora_(A|B)\.lora\1\.(\d+)\.weight$")
_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>lora_(?:A|B|router|attn|sub).*)$"
)


def convert_tensors(
    published: dict[str, Tensor], ema: dict[str, dict[str, Tensor]] | None, options: Options
) -> dict[str, Tensor]:
    """Returns our adapter's tensors, keys as PEFT saves them.

    Args:
        published: the content of adapter_model.bin.
        ema: the moving averages by HF-native module name, or None.
        options: gives the shapes that the tensors must have.

    Raises:
        ValueError: a tensor that is unknown, missing or of an unexpected shape, all of them named.
    """
    layers: dict[str, dict[str, Any]] = {}
    problems = []
    for key, tensor in published.items():
        match = _KEY.match(key)
        part = match["part"] if match else ""
        expert = _EXPERT.match(part)
        layer = layers.setdefault(hf_native(match["module"]), {}) if match else {}
        if part in _UNUSED:
            continue
        group = layer.setdefault(expert[1], {}) if expert else layer
        name: Any = int(expert[2]) if expert else _ROUTER_NAMES.get(part)
        if name is None:
            problems.append(f"{key}: unknown tensor")
        elif name in group:
            problems.append(f"{key}: the same tensor was given under another name of its layer")
        else:
            group[name] = tensor
    for name, layer in layers.items():
        problems += _stack_experts(name, layer, options)
    problems += _add_teachers(layers, ema)
    for name, layer in layers.items():
        problems += _wrong_shapes(name, layer, options)
    if not layers and not problems:
        problems.append("no StrLoRA tensor found")
    if problems:
        raise ValueError("the adapter cannot be converted:\n  " + "\n  ".join(problems))
    return {
        f"{INSIDE}{name}{LAYER}{part}": tensor.float().contiguous()
        for name, layer in layers.items()
        for part, tensor in layer.items()
    }


def _stack_experts(name: str, layer: dict[str, Any], options: Options) -> list[str]:
    """Stacks a layer's experts in place; returns what is wrong with it."""
    problems = []
    for part, dim in (("A", 0), ("B", 1)):
        experts = layer.pop(part, {})
        if sorted(experts) != list(range(options.num_experts)):
            problems.append(
                f"{name}: lora_{part} holds experts {sorted(experts)}, expected 0 to "
                f"{options.num_experts - 1} (expert_num in adapter_config.json)"
            )
            continue
        shapes = {tuple(tensor.shape) for tensor in experts.values()}
        if len(shapes) > 1 or len(next(iter(shapes))) != 2:
            problems.append(f"{name}: experts of lora_{part} have shapes {sorted(shapes)}")
            continue
        layer[part] = torch.cat([experts[i] for i in range(options.num_experts)], dim=dim)
    missing = [k for k, ours in _ROUTER_NAMES.items() if ours not in layer]
    return problems + [f"{name}: {key} is missing" for key in missing]


def _wrong_shapes(name: str, layer: dict[str, Tensor], options: Options) -> list[str]:
    """Names the tensors of a layer that do not fit the configuration or one another."""
    d_in = layer["A"].shape[-1] if "A" in layer else None
    hidden = layer["key"].shape[-1] if "key" in layer else None
    width, experts = options.router_dim, options.num_experts
    expected = {
        "A": (options.rank, d_in),
        "B": (layer["B"].shape[0] if "B" in layer else None, options.rank),
        "query": (width, d_in),
        "key": (width, hidden),
        "prototypes": (experts, width),
        "task": (experts, hidden),
    }
    expected |= {ours: expected[ours.removeprefix("ema_")] for ours in _EMA_NAMES.values()}
    return [
        f"{name}: {part} has shape {tuple(tensor.shape)}, expected {expected[part]} "
        "(r, expert_num and attn_proj_dim in adapter_config.json)"
        for part, tensor in layer.items()
        if None not in expected[part] and tuple(tensor.shape) != expected[part]
    ]


def _add_teachers(
    layers: dict[str, dict[str, Any]], averages: dict[str, dict[str, Tensor]] | None
) -> list[str]:
    """Adds the moving averages, or copies of the routers when there are none, in place."""
    problems = []
    for module in sorted((averages or {}).keys() - layers.keys()):
        problems.append(f"{module}: has a moving average but no layer in adapter_model.bin")
    for name, layer in layers.items():
        if averages is None:
            routers = [ours for ours in _EMA_NAMES.values() if ours.removeprefix("ema_") in layer]
            layer |= {ours: layer[ours.removeprefix("ema_")].clone() for ours in routers}
            continue
        source = averages.get(name)
        if source is None:
            problems.append(f"{name}: its moving average is missing in router_distill_ema.bin")
            continue
        for theirs, ours in _EMA_NAMES.items():
            if theirs in source:
                layer[ours] = source[theirs]
            else:
                problems.append(f"{name}: {theirs} is missing in router_distill_ema.bin")
        for theirs in sorted(source.keys() - _EMA_NAMES.keys()):
            problems.append(f"{name}: unknown moving average {theirs}")
    return problems


def convert(source: Path, target: Path) -> None:
    """Writes the published adapter in `source` to `target` as one that PEFT loads with our tuner.

    Raises:
        ValueError: what is missing, unknown or damaged, with the file. Nothing is written then.
    """
    if target.resolve() == source.resolve():
        raise ValueError(f"{target}: --to is the published adapter itself; name another folder")
    options, raw = read_config(source)
    weights = source / "adapter_model.bin"
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; --from must name a published adapter's folder")
    ema = read_averages(source / "router_distill_ema.bin")
    published = tensors_of(read_pickle(weights), str(weights))
    tensors = convert_tensors(published, ema, options)
    hidden = {v.shape[1] for k, v in tensors.items() if k.endswith(".key")}
    if len(hidden) > 1:
        raise ValueError(f"{weights}: layers read instructions of sizes {sorted(hidden)}, not one")
    # The published code takes the instruction as it is (instruction_norm none) and counts nothing.
    statistics = InstructionStatistics(hidden.pop())
    statistics.teacher_steps.fill_(int(ema is not None))
    tensors |= {f"{BESIDE}{STATE}{key}": value for key, value in statistics.state_dict().items()}
    aligner = read_aligner(source / "non_lora_trainables.bin")
    tensors |= {INSIDE + key: tensor for key, tensor in aligner.items()}
    config = Config(
        **Config.as_config(options),
        target_modules=_targets(tensors),
        modules_to_save=[ALIGNER] if aligner else None,
        base_model_name_or_path=raw.get("base_model_name_or_path") or None,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    target.mkdir(parents=True, exist_ok=True)
    # The configuration comes last: a folder that has it is complete.
    replace_file(target / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}))
    config.save_pretrained(str(target))


def _targets(tensors: dict[str, Tensor]) -> str:
    """Returns one regex that matches exactly the converted layers."""
    suffix = f"{LAYER}A"
    names = [k.removeprefix(INSIDE)[: -len(suffix)] for k in tensors if k.endswith(suffix)]
    return "(?:" + "|".join(re.escape(name) for name in sorted(names)) + ")"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m strlora_tuner.convert", description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="published adapter")
    parser.add_argument("--to", dest="target", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.source, arguments.target)
    except (ValueError, OSError) as error:  # the second of a target that cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
