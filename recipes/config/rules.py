"""Rules over several keys of a recipe; recipes.config.blocks says what a single key may hold."""

from __future__ import annotations

import re
from typing import Any

from recipes.config.method import FREEZE, METHOD_BLOCKS
from recipes.config.problems import shown
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import OWNED, known_arguments

# The DeepSpeed settings that the host has by name.
DEEPSPEED = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def cross_field_problems(recipe: Recipe) -> list[str]:
    """Names every rule over several keys that `recipe` breaks, each as "key = value ..."."""
    schedule, launcher = recipe.schedule, recipe.launcher
    problems = []
    step = schedule.per_device_batch * recipe.processes
    if schedule.global_batch % step:
        below = max(schedule.global_batch // step, 1) * step
        problems.append(
            f"schedule.global_batch = {schedule.global_batch} cannot be made of per_device_batch "
            f"{schedule.per_device_batch} x {recipe.processes} processes (launcher.nproc"
            f"{' x launcher.nodes' if launcher.nodes > 1 else ''}) x a whole "
            f"accumulation: use a global batch of {below} or {below + step}, or change the others"
        )
    if schedule.later.freeze_routers_from_chunk == 1:
        problems.append(
            "schedule.later.freeze_routers_from_chunk = 1 would leave the routers untrained: give "
            "a chunk from 2 on, 0 for never, or null for what the preset says"
        )
    for phase, name in ((schedule.first, "first"), (schedule.later, "later")):
        if phase.aligner_lr is not None and recipe.model.aligner is None:
            problems.append(
                f"schedule.{name}.aligner_lr = {phase.aligner_lr} has nothing to act on: set "
                "model.aligner (multi_modal_projector) or remove the rate"
            )
    problems += _backend_problems(recipe)
    problems += _resident_problems(recipe)
    if launcher.nodes > 1 and launcher.kind != "slurm":
        problems.append(
            f"launcher.nodes = {launcher.nodes} needs something that starts processes on other "
            "machines: set launcher.kind to slurm"
        )
    settings = launcher.deepspeed or DEEPSPEED[0]
    if settings not in DEEPSPEED and not re.search(r"^\s*\{|/|\.json$", settings):
        problems.append(
            f"launcher.deepspeed = {settings} is no name of the host's: set one of "
            f"{', '.join(DEEPSPEED)}, a file whose name ends with .json, or null"
        )
    if recipe.start_from is not None and not recipe.protocol.continues:
        problems.append(
            f"start_from = {recipe.start_from} has nobody to go on from it: with method "
            f"{recipe.method} no chunk trains on from another one's adapter; leave it out, or take "
            "a method that does"
        )
    if recipe.start_from is not None and recipe.told == "number":
        problems.append(
            f"start_from = {recipe.start_from} with method = {recipe.method}: its experts belong "
            "to the tasks of the stream that it was trained on, by their number; leave it out"
        )
    problems += _identity_problems(recipe) + _unread_problems(recipe)
    problems += _replay_problems(recipe) + _ewc_problems(recipe) + _pool_problems(recipe)
    problems += _lwf_problems(recipe)
    if recipe.slow_weights is not None and recipe.tuner_type is None:
        problems.append(
            f"method = {recipe.method} has nothing for slow_weights to average: it trains no "
            "weights; set slow_weights: null"
        )
    problems += _optimizer_problems(recipe)
    if recipe.eval.both_weights and (recipe.slow_weights is None or recipe.pool is not None):
        reason = "slow_weights is null" if recipe.slow_weights is None else "a pool answers as one"
        problems.append(
            f"eval.both_weights = True has no second set of weights to evaluate: {reason}; set it "
            "to false"
        )
    if launcher.cpu and recipe.model.dtype == "float16":
        problems.append("model.dtype = float16 needs a GPU: with launcher.cpu use float32")
    if recipe.data.source == "mini" and not re.fullmatch(r"[a-z0-9_-]+", recipe.data.size):
        problems.append(f"data.size = {recipe.data.size!r} is no size of the mini stream")
    return problems


def _unread_problems(recipe: Recipe) -> list[str]:
    """Names arguments of the host's own LoRA that a tuner of ours would not read."""
    if not recipe.routed:
        return []
    problems = []
    for key, argument in known_arguments().items():
        value, default = recipe.swift.get(key), argument.unrouted
        if key not in recipe.swift or key in OWNED or not default:
            continue
        if str(value).lower() != str(default[0]).lower():
            problems.append(
                f"swift.{key} = {shown(value)} would do nothing: method {recipe.method} trains "
                "layers of its own, which do not read it; leave it out, or take a method of the "
                "host's LoRA (lora)"
            )
    return problems


def _identity_problems(recipe: Recipe) -> list[str]:
    """Names what turns off, or changes, what defines the recipe's method."""
    problems = _preset_problems(recipe)
    always = recipe.definition.always
    kept = [(f"tuner.{k}", recipe.tuner.get(k), v) for k, v in always.get("tuner", {}).items()]
    factor = always.get("schedule", {}).get("later", {}).get("rate_factor")
    if factor is not None:
        kept.append(("schedule.later.rate_factor", recipe.schedule.later.rate_factor, factor))
    for block in METHOD_BLOCKS:
        if block not in recipe.definition.own_blocks:
            continue
        found = getattr(recipe, block)
        if found is None:
            problems.append(
                f"method = {recipe.method} needs its block `{block}`, found null: leave it out, "
                "set its keys, or name the method that is left (lora)"
            )
            continue
        values = always.get(block, {}).items()
        kept += [(f"{block}.{key}", getattr(found, key), value) for key, value in values]
    problems += [
        f"{key} = {found} makes method {recipe.method} another one, expected {value}: leave it out"
        for key, found, value in kept
        if found != value
    ]
    return problems


def _preset_problems(recipe: Recipe) -> list[str]:
    """Names what is not as published in a method that is a preset and nothing else."""
    allowed = recipe.definition.presets
    if not allowed:
        return []
    if recipe.preset not in allowed:
        return [
            f"tuner.preset = {recipe.preset} makes method {recipe.method} another one, expected "
            f"{' or '.join(allowed)}: leave it out, or take method: strlora"
        ]
    return [
        f"{'schedule.later' if key == FREEZE else 'tuner'}.{key} = {value} modifies the preset "
        f"{recipe.preset}, which method {recipe.method} keeps as published: leave it out, or take "
        f"method: strlora with tuner.preset: {recipe.preset}"
        for key, value in recipe.preset_changes.items()
    ]


# Arguments under which the host would not read a training file in its order, or not all of it.
_ORDER: dict[str, Any] = {
    "train_dataloader_shuffle": True,
    "dataset_shuffle": True,
    "group_by_length": True,
    "dataloader_drop_last": True,
    "packing": True,
    "padding_free": True,
    "truncation_strategy": "split",
}


def _replay_problems(recipe: Recipe) -> list[str]:
    if recipe.replay is None:
        return []
    batch, problems = recipe.schedule.global_batch, []
    if recipe.replay.replayed(batch) is None:
        problems.append(
            f"replay.share = {recipe.replay.share} of schedule.global_batch = {batch} is no whole "
            f"number of samples between 1 and {batch - 1}: use a share of n / {batch}"
        )
    for key, value in _ORDER.items():
        if recipe.swift.get(key) == value:
            problems.append(
                f"swift.{key} = {str(value).lower()} would break the share of replayed samples in "
                "every batch, which is laid out in the training file: leave it out"
            )
    return problems + _stream_only(recipe, "replay")


def _optimizer_problems(recipe: Recipe) -> list[str]:
    """Names why the optimizer of a chunk cannot go on with the state of the chunk before."""
    if not recipe.keeps_optimizer:
        return []
    fsdp = recipe.swift.get("fsdp")
    where = "launcher.deepspeed" if recipe.launcher.deepspeed else "swift.fsdp"
    frozen = recipe.routers_frozen_from
    reasons = {
        f"{where}: each process holds a part of the moments; use DDP, or the default: fresh": bool(
            recipe.launcher.deepspeed or fsdp
        ),
        f"method = {recipe.method}, where no chunk goes on with the parameters of the one before": (
            recipe.options_class.grows or not recipe.protocol.continues
        ),
        f"routers that freeze from chunk {frozen} on: what trains then changes; use the default, "
        "fresh": frozen > 1,
    }
    key = "schedule.later.optimizer_state = keep"
    return [f"{key} does not go with {reason}" for reason, found in reasons.items() if found]


def _ewc_problems(recipe: Recipe) -> list[str]:
    if recipe.ewc is None:
        return []
    problems = []
    acts = recipe.ewc.gradient or recipe.ewc.fisher
    if recipe.model.dtype == "float16" and recipe.launcher.deepspeed and acts:
        problems.append(
            "model.dtype = float16 with ewc under DeepSpeed: its dynamic loss scale cannot be "
            "applied to the penalty; use model.dtype: bfloat16"
        )
    if recipe.options_class.grows:
        problems.append(
            f"method = {recipe.method} has nothing for ewc to act on: every chunk starts "
            "parameters of its own, of which the weights before say nothing; set ewc: null"
        )
    for key in ("packing", "padding_free"):
        if recipe.swift.get(key) and recipe.ewc.fisher:
            problems.append(
                f"swift.{key} = true would make one sample of several, and the Fisher information "
                "of ewc is taken sample by sample: leave it out"
            )
    return problems + _stream_only(recipe, "ewc")


def _lwf_problems(recipe: Recipe) -> list[str]:
    if recipe.lwf is None:
        return []
    problems = []
    if "zero3" in (recipe.launcher.deepspeed or "").lower():
        problems.append(
            f"launcher.deepspeed = {recipe.launcher.deepspeed} with lwf: the teacher needs the "
            "whole model on each process; use zero2 or null"
        )
    if recipe.options_class.grows:
        problems.append(
            f"method = {recipe.method} has nothing for lwf to act on: every chunk has tensors that "
            "the adapter before lacks; set lwf: null"
        )
    return problems + _stream_only(recipe, "lwf")


def _pool_problems(recipe: Recipe) -> list[str]:
    has_pool = recipe.protocol.pools
    if recipe.pool is not None and not has_pool:
        return [
            f"method = {recipe.method} keeps one adapter, so pool has nothing to act on; set pool: "
            "null or method: mr_lora"
        ]
    texts = 0 if recipe.pool is None else len(recipe.pool.descriptions)
    if texts and texts != recipe.data.chunks:
        return [
            f"pool.descriptions = {texts} texts for data.chunks = {recipe.data.chunks}: give one a "
            "chunk, in their order, or none"
        ]
    if has_pool and recipe.data.chunks > MOST_EXPERTS:
        return [f"data.chunks = {recipe.data.chunks}: a pool has names for {MOST_EXPERTS} adapters"]
    return []


MOST_EXPERTS = 26 * 26  # two letters


def _stream_only(recipe: Recipe, block: str) -> list[str]:
    if recipe.protocol.continues:
        return []
    return [
        f"method = {recipe.method} has nothing for {block} to act on: no chunk continues the "
        f"one before (protocol {recipe.protocol.name}); set {block}: null"
    ]


# Tuners whose adapter can be merged into the base weights, which is all that vLLM is given.
MERGEABLE = ("lora",)


def _backend_problems(recipe: Recipe) -> list[str]:
    if recipe.eval.backend != "vllm":
        return []
    problems = []
    if recipe.pool is not None:
        problems.append(
            f"eval.backend = vllm cannot serve method = {recipe.method}: each question has its own "
            "adapter, and one merged model is served; use eval.backend: transformers"
        )
    if recipe.tuner_type not in MERGEABLE:
        problems.append(
            f"eval.backend = vllm cannot serve method = {recipe.method}: its expert weights depend "
            "on instruction and token, so the adapter cannot be merged into the model, and vLLM "
            "knows plain LoRA only; use eval.backend: transformers"
        )
    if recipe.launcher.cpu:
        problems.append(
            "eval.backend = vllm needs a GPU: with launcher.cpu use eval.backend: transformers"
        )
    return problems


def _resident_problems(recipe: Recipe) -> list[str]:
    launcher = recipe.launcher
    if not launcher.resident:
        return []
    others = {
        f"launcher.nodes = {launcher.nodes}: its processes are of one machine": launcher.nodes > 1,
        "launcher.kind = torchrun, whose place it takes; use local": launcher.kind == "torchrun",
        f"launcher.deepspeed = {launcher.deepspeed}: each process loads a part of the model; use "
        "zero2 or null": "zero3" in (launcher.deepspeed or "").lower(),
        "launcher.slurm.container: the host runs in there": bool(launcher.slurm.container),
        "eval.backend = vllm, which loads the model itself": recipe.eval.backend == "vllm",
    }
    return [
        f"launcher.resident = True does not go with {reason}; or set launcher.resident to false"
        for reason, found in others.items()
        if found
    ]
