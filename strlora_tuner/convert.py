"""Converts an adapter that the published StrLoRA code saved: `python -m strlora_tuner.convert`.

Pickles are read with torch's weights-only loader and nothing else. Every tensor of the source is
used or named in an error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from strlora_tuner.config import StrLoraConfig, options_as_config
from strlora_tuner.presets import preset_options
from strlora_tuner.schema import TunerOptions

# Remote-code InternVL names its parts otherwise than the HF-native model.
_RENAMES = [
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^mlp1\.0\."), "model.multi_modal_projector.layer_norm."),
    (re.compile(r"^mlp1\.1\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^mlp1\.3\."), "model.multi_modal_projector.linear_2."),
]
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


def hf_native(module: str) -> str:
    """Returns the HF-native name of a module of the published model; native names stay."""
    for pattern, replacement in _RENAMES:
        module = pattern.sub(replacement, module)
    return module


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: torch's weights-only loader cannot read it ({error}); take an undamaged copy "
            "of a file that holds tensors only"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    return content


def read_config(source: Path) -> tuple[TunerOptions, dict[str, Any]]:
    """Returns our options and the raw published configuration of the adapter in `source`."""
    path = source / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --from must name a published adapter's folder")
    raw = json.loads(path.read_text())
    try:
        values = {
            "rank": raw["r"],
            "alpha": raw["lora_alpha"],
            "dropout": raw.get("lora_dropout", 0.0),
            "num_experts": raw["expert_num"],
            "top_k": raw["topk"],
            "token_top_k": min(raw.get("subtopk", raw["topk"]), raw["topk"]),
            "router_dim": raw["attn_proj_dim"],
            "ema_decay": raw.get("sample_router_distill_beta", 0.999),
            "stability_weight": raw.get("sample_router_distill_lambda", 0.1),
            "stability_temperature": raw.get("sample_router_distill_tau", 1.0),
            "freeze_routers": bool(raw.get("freeze_qk", False)),
        }
    except KeyError as error:
        raise ValueError(
            f"{path}: key {error} is missing; expected a published StrLoRA adapter"
        ) from error
    return TunerOptions(**{**preset_options("released"), **values}), raw


def convert_tensors(
    published: dict[str, Tensor], ema: dict[str, dict[str, Tensor]] | None, options: TunerOptions
) -> dict[str, Tensor]:
    """Returns our adapter's tensors, keys as PEFT saves them.

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
        if expert:
            layer.setdefault(expert[1], {})[int(expert[2])] = tensor
        elif part in _ROUTER_NAMES:
            layer[_ROUTER_NAMES[part]] = tensor
        elif part not in _UNUSED:
            problems.append(f"{key}: unknown tensor")
    for name, layer in layers.items():
        problems += _finish_layer(name, layer, options)
    problems += _add_teachers(layers, ema)
    if not layers and not problems:
        problems.append("no StrLoRA tensor found")
    if problems:
        raise ValueError("the adapter cannot be converted:\n  " + "\n  ".join(problems))
    return {
        f"base_model.model.{name}.strlora_mixture.{part}": tensor.contiguous().float()
        for name, layer in layers.items()
        for part, tensor in layer.items()
    }


def _finish_layer(name: str, layer: dict[str, Any], options: TunerOptions) -> list[str]:
    """Stacks a layer's experts in place; returns what is wrong with it."""
    problems = []
    for part, dim in (("A", 0), ("B", 1)):
        experts = layer.get(part, {})
        if sorted(experts) != list(range(options.num_experts)):
            problems.append(
                f"{name}: lora_{part} holds experts {sorted(experts)}, expected 0 to "
                f"{options.num_experts - 1} (expert_num in adapter_config.json)"
            )
            continue
        layer[part] = torch.cat([experts[i] for i in range(options.num_experts)], dim=dim)
        if layer[part].shape[dim] != options.rank:
            problems.append(
                f"{name}: lora_{part} has total rank {layer[part].shape[dim]}, expected "
                f"{options.rank} (r in adapter_config.json)"
            )
    missing = [k for k, ours in _ROUTER_NAMES.items() if ours not in layer]
    return problems + [f"{name}: {key} is missing" for key in missing]


def _add_teachers(
    layers: dict[str, dict[str, Any]], ema: dict[str, dict[str, Tensor]] | None
) -> list[str]:
    """Adds the moving averages, or copies of the routers when there are none, in place."""
    problems = []
    averages = {hf_native(k.removeprefix("base_model.model.")): v for k, v in (ema or {}).items()}
    for module in sorted(averages.keys() - layers.keys()):
        problems.append(f"{module}: has a moving average but no layer in adapter_model.bin")
    for name, layer in layers.items():
        source = averages.get(name)
        if ema is not None and source is None:
            problems.append(f"{name}: its moving average is missing in router_distill_ema.bin")
        for theirs, ours in _EMA_NAMES.items():
            router = layer.get(ours.removeprefix("ema_"))
            if source is None:
                if router is not None:
                    layer[ours] = router.clone()
            elif theirs not in source:
                problems.append(f"{name}: {theirs} is missing in router_distill_ema.bin")
            else:
                layer[ours] = source[theirs]
        for theirs in sorted((source or {}).keys() - _EMA_NAMES.keys()):
            problems.append(f"{name}: unknown moving average {theirs}")
    return problems


def convert(source: Path, target: Path) -> None:
    """Writes the published adapter in `source` to `target` as one that PEFT loads with our tuner.

    Raises:
        ValueError: what is missing, unknown or damaged, with the file.
    """
    options, raw = read_config(source)
    weights = source / "adapter_model.bin"
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; --from must name a published adapter's folder")
    averages = source / "router_distill_ema.bin"
    ema = _read_pickle(averages) if averages.is_file() else None
    tensors = convert_tensors(_read_pickle(weights), ema, options)
    hidden = next(v.shape[1] for k, v in tensors.items() if k.endswith(".key"))
    tensors |= {
        "base_model.strlora_statistics.count": torch.zeros((), dtype=torch.int64),
        "base_model.strlora_statistics.mean": torch.zeros(hidden),
        "base_model.strlora_statistics.spread": torch.zeros(()),
        "base_model.strlora_statistics.teacher_steps": torch.tensor(int(ema is not None)),
    }
    others = source / "non_lora_trainables.bin"
    trained = _read_pickle(others) if others.is_file() else {}
    tensors |= {
        f"base_model.model.{hf_native(k.removeprefix('base_model.model.'))}": v.contiguous()
        for k, v in trained.items()
    }
    config = StrLoraConfig(
        **options_as_config(options),
        target_modules=_targets(tensors),
        modules_to_save=_fully_trained(trained),
        base_model_name_or_path=raw.get("base_model_name_or_path") or None,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(target))


def _targets(tensors: dict[str, Tensor]) -> str:
    """Returns one regex that matches exactly the converted layers."""
    suffix = ".strlora_mixture.A"
    names = [k[len("base_model.model.") : -len(suffix)] for k in tensors if k.endswith(suffix)]
    return "(?:" + "|".join(re.escape(name) for name in sorted(names)) + ")"


def _fully_trained(trained: dict[str, Tensor]) -> list[str] | None:
    """Returns the modules that the published run trained in full (the aligner), or None."""
    names = {hf_native(k.removeprefix("base_model.model.")) for k in trained}
    modules = {n.split("multi_modal_projector")[0] + "multi_modal_projector" for n in names}
    return sorted(modules) or None


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m strlora_tuner.convert", description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="published adapter")
    parser.add_argument("--to", dest="target", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.source, arguments.target)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
