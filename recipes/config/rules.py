"""Rules over several keys of a recipe; recipes.config.blocks says what a single key may hold.

A broken rule is a problem; a key that does nothing beside others is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from recipes.config.blocks import LaterPhase, Phase
from recipes.config.method import FREEZE, METHOD_BLOCKS
from recipes.config.problems import shown
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import OWNED, known_arguments
from strlora_tuner.methods.strlora.options import Options as StrLoraOptions

# The DeepSpeed settings that the host has by name.
DEEPSPEED = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def cross_field_problems(recipe: Recipe) -> Iterator[str]:
    """Names every rule over several keys that `recipe` breaks, each as "key = value ..."."""
    schedule, launcher = recipe.schedule, recipe.launcher
    step = schedule.per_device_batch * recipe.processes
    if schedule.global_batch % step:
        below = max(schedule.global_batch // step, 1) * step
        yield (
            f"schedule.global_batch = {schedule.global_batch} cannot be made of per_device_batch "
            f"{schedule.per_device_batch} x {recipe.processes} processes (launcher.nproc"
            f"{' x launcher.nodes' if launcher.nodes > 1 else ''}) x a whole "
            f"accumulation: use a global batch of {below} or {below + step}, or change the others"
        )
    if schedule.later.freeze_routers_from_chunk == 1:
        yield (
            "schedule.later.freeze_routers_from_chunk = 1 would leave the routers untrained: give "
            "a chunk from 2 on, 0 for never, or null for what the preset says"
        )
    for phase, name in ((schedule.first, "first"), (schedule.later, "later")):
        if phase.aligner_lr is not None and recipe.model.aligner is None:
            yield (
                f"schedule.{name}.aligner_lr = {phase.aligner_lr} has nothing to act on: set "
                "model.aligner (multi_modal_projector) or remove the rate"
            )
    yield from _backend_problems(recipe)
    yield from _resident_problems(recipe)
    if launcher.nodes > 1 and launcher.kind != "slurm":
        yield (
            f"launcher.nodes = {launcher.nodes} needs something that starts processes on other "
            "machines: set launcher.kind to slurm"
        )
    settings = launcher.deepspeed or DEEPSPEED[0]
    if settings not in DEEPSPEED and not re.search(r"^\s*\{|/|\.json$", settings):
        yield (
            f"launcher.deepspeed = {settings} is no name of the host's: set one of "
            f"{', '.join(DEEPSPEED)}, a file whose name ends with .json, or null"
        )
    if recipe.start_from is not None and not recipe.protocol.continues:
        yield (
            f"start_from = {recipe.start_from} has no effect: with method "
            f"{recipe.method} no chunk continues another one's adapter; leave it out, or take a "
            "method in which chunks do"
        )
    if recipe.start_from is not None and recipe.task_labels == "number":
        yield (
            f"start_from = {recipe.start_from} with method = {recipe.method}: its experts belong "
            "to the tasks of the stream that it was trained on, by their number; leave it out"
        )
    for check in (_identity_problems, _unread_problems, _replay_problems, _ewc_problems,
                  _pool_problems, _lwf_problems):  # fmt: skip
        yield from check(recipe)
    if recipe.slow_weights is not None and recipe.tuner_type is None:
        yield (
            f"method = {recipe.method} has nothing for slow_weights to average: it trains no "
            "weights; set slow_weights: null"
        )
    yield from _optimizer_problems(recipe)
    limit, before = _seconds(launcher.slurm.time), launcher.slurm.stop_before
    if launcher.kind == "slurm" and 0 < limit <= before:
        yield (
            f"launcher.slurm.stop_before = {before} seconds are the whole launcher.slurm.time "
            f"{launcher.slurm.time} ({limit} seconds): the job would stop as it starts; set "
            "a longer time or a smaller stop_before"
        )
    if recipe.eval.both_weights and (recipe.slow_weights is None or recipe.pool is not None):
        reason = "slow_weights is null" if recipe.slow_weights is None else "a pool answers as one"
        yield (
            f"eval.both_weights = True has no second set of weights to evaluate: {reason}; set it "
            "to false"
        )
    if launcher.portable_kernels and not (launcher.cpu and launcher.omp_threads):
        yield "launcher.portable_kernels needs launcher.cpu: true and a launcher.omp_threads"
    if launcher.cpu and recipe.model.dtype == "float16":
        yield "model.dtype = float16 needs a GPU: with launcher.cpu use float32"
    if recipe.data.source == "mini" and not re.fullmatch(r"[a-z0-9_-]+", recipe.data.size):
        yield f"data.size = {recipe.data.size!r} is no size of the mini stream"


def _seconds(time: str) -> int:
    """Seconds of a time limit as sbatch reads it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; 0: none."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    seconds = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return seconds + 86400 * int(days or 0)


def _unread_problems(recipe: Recipe) -> Iterator[str]:
    """Names arguments of the host's own LoRA that a tuner of ours would not read."""
    if not recipe.routed:
        return
    for key, argument in known_arguments().items():
        value, default = recipe.swift.get(key), argument.unrouted
        if key not in recipe.swift or key in OWNED or not default:
            continue
        if str(value).lower() != str(default[0]).lower():
            yield (
                f"swift.{key} = {shown(value)} would do nothing: method {recipe.method} trains "
                "layers of its own, which do not read it; leave it out, or take a method of the "
                "host's LoRA (lora)"
            )


def _identity_problems(recipe: Recipe) -> Iterator[str]:
    """Names what turns off, or changes, what defines the recipe's method."""
    yield from _preset_problems(recipe)
    always = recipe.definition.always
    kept = [(f"tuner.{k}", recipe.tuner.get(k), v) for k, v in always.get("tuner", {}).items()]
    kept += [(f"eval.{k}", getattr(recipe.eval, k), v) for k, v in always.get("eval", {}).items()]
    factor = always.get("schedule", {}).get("later", {}).get("rate_factor")
    if factor is not None:
        kept.append(("schedule.later.rate_factor", recipe.schedule.later.rate_factor, factor))
    for block in METHOD_BLOCKS:
        if block not in recipe.definition.own_blocks:
            continue
        if (own := getattr(recipe, block)) is None:
            yield (
                f"method = {recipe.method} needs its block `{block}`, found null: leave it out, "
                "set its keys, or name the method that is left (lora)"
            )
            continue
        values = always.get(block, {}).items()
        kept += [(f"{block}.{key}", getattr(own, key), value) for key, value in values]
    for key, given, value in kept:
        if given != value:
            yield (
                f"{key} = {given} makes method {recipe.method} another one, expected {value}: "
                "leave it out"
            )


def _preset_problems(recipe: Recipe) -> Iterator[str]:
    """Names what is not as published in a method that is a preset and nothing else."""
    allowed = recipe.definition.presets
    if not allowed:
        return
    if recipe.preset not in allowed:
        yield (
            f"tuner.preset = {recipe.preset} makes method {recipe.method} another one, expected "
            f"{' or '.join(allowed)}: leave it out, or take method: strlora"
        )
        return
    for key, value in recipe.preset_changes.items():
        yield (
            f"{'schedule.later' if key == FREEZE else 'tuner'}.{key} = {value} modifies the preset "
            f"{recipe.preset}, which method {recipe.method} keeps as published: leave it out, or "
            f"take method: strlora with tuner.preset: {recipe.preset}"
        )


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


def _replay_problems(recipe: Recipe) -> Iterator[str]:
    if recipe.replay is None:
        return
    batch = recipe.schedule.global_batch
    if recipe.replay.replayed(batch) is None:
        yield (
            f"replay.share = {recipe.replay.share} of schedule.global_batch = {batch} is no whole "
            f"number of samples between 1 and {batch - 1}: use a share of n / {batch}"
        )
    for key, value in _ORDER.items():
        if recipe.swift.get(key) == value:
            yield (
                f"swift.{key} = {str(value).lower()} would break the share of replayed samples in "
                "every batch, which is laid out in the training file: leave it out"
            )
    yield from _stream_only(recipe, "replay")


def _optimizer_problems(recipe: Recipe) -> Iterator[str]:
    """Names why the optimizer of a chunk cannot go on with the state of the chunk before."""
    if not recipe.keeps_optimizer:
        return
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
        "slow_weights.start_next_from = slow: the moments are those of the fast weights; use "
        "fast": recipe.slow_weights is not None and recipe.slow_weights.start_next_from == "slow",
    }
    for reason in (reason for reason, is_so in reasons.items() if is_so):
        yield f"schedule.later.optimizer_state = keep does not go with {reason}"


def _ewc_problems(recipe: Recipe) -> Iterator[str]:
    if recipe.ewc is None:
        return
    acts = recipe.ewc.gradient or recipe.ewc.fisher
    if recipe.model.dtype == "float16" and recipe.launcher.deepspeed and acts:
        yield (
            "model.dtype = float16 with ewc under DeepSpeed: its dynamic loss scale cannot be "
            "applied to the penalty; use model.dtype: bfloat16"
        )
    if recipe.options_class.grows:
        yield (
            f"method = {recipe.method} has nothing for ewc to act on: every chunk starts "
            "parameters of its own, of which the weights before say nothing; set ewc: null"
        )
    for key in ("packing", "padding_free"):
        if recipe.swift.get(key) and recipe.ewc.fisher:
            yield (
                f"swift.{key} = true would make one sample of several, and the Fisher information "
                "of ewc is taken sample by sample: leave it out"
            )
    yield from _stream_only(recipe, "ewc")


def _lwf_problems(recipe: Recipe) -> Iterator[str]:
    if recipe.lwf is None:
        return
    if "zero3" in (recipe.launcher.deepspeed or "").lower():
        yield (
            f"launcher.deepspeed = {recipe.launcher.deepspeed} with lwf: the teacher needs the "
            "whole model on each process; use zero2 or null"
        )
    if recipe.options_class.grows:
        yield (
            f"method = {recipe.method} has nothing for lwf to act on: every chunk has tensors that "
            "the adapter before lacks; set lwf: null"
        )
    for key in WITHOUT_LABELS_OR_LOGITS:
        if (value := recipe.swift.get(key)) and (key, value) != ("sequence_parallel_size", 1):
            yield (
                f"swift.{key} = {shown(value)} with lwf: the host then hands on no labels or no "
                "logits, which lwf compares; leave it out"
            )
    yield from _stream_only(recipe, "lwf")


WITHOUT_LABELS_OR_LOGITS = (
    *("label_smoothing_factor", "enable_dft_loss", "enable_channel_loss", "loss_type"),
    *("sequence_parallel_size", "use_liger_kernel"),
)


def _pool_problems(recipe: Recipe) -> Iterator[str]:
    has_pool = recipe.protocol.pools
    if recipe.pool is not None and not has_pool:
        yield (
            f"method = {recipe.method} keeps one adapter, so pool has nothing to act on; set pool: "
            "null or method: mr_lora"
        )
        return
    texts = 0 if recipe.pool is None else len(recipe.pool.descriptions)
    if texts and texts != recipe.data.chunks:
        yield (
            f"pool.descriptions = {texts} texts for data.chunks = {recipe.data.chunks}: give one a "
            "chunk, in their order, or none"
        )
    if has_pool and recipe.data.chunks > MOST_EXPERTS:
        yield f"data.chunks = {recipe.data.chunks}: a pool has names for {MOST_EXPERTS} adapters"


MOST_EXPERTS = 26 * 26  # two letters


def _stream_only(recipe: Recipe, block: str) -> Iterator[str]:
    if not recipe.protocol.continues:
        yield (
            f"method = {recipe.method} has nothing for {block} to act on: no chunk continues the "
            f"one before (protocol {recipe.protocol.name}); set {block}: null"
        )


# Tuners whose adapter can be merged into the base weights, which is all that vLLM is given.
MERGEABLE = ("lora",)


def _backend_problems(recipe: Recipe) -> Iterator[str]:
    if recipe.eval.backend != "vllm":
        return
    if recipe.pool is not None:
        yield (
            f"eval.backend = vllm cannot serve method = {recipe.method}: each question has its own "
            "adapter, and one merged model is served; use eval.backend: transformers"
        )
    if recipe.tuner_type not in MERGEABLE:
        yield (
            f"eval.backend = vllm cannot serve method = {recipe.method}: its expert weights depend "
            "on instruction and token, so the adapter cannot be merged into the model, and vLLM "
            "knows plain LoRA only; use eval.backend: transformers"
        )
    if recipe.launcher.cpu:
        yield ("eval.backend = vllm needs a GPU: with launcher.cpu use eval.backend: transformers")


def _resident_problems(recipe: Recipe) -> Iterator[str]:
    launcher = recipe.launcher
    if not launcher.resident:
        return
    others = {
        f"launcher.nodes = {launcher.nodes}: its processes are of one machine": launcher.nodes > 1,
        "launcher.kind = torchrun, whose place it takes; use local": launcher.kind == "torchrun",
        f"launcher.deepspeed = {launcher.deepspeed}: each process loads a part of the model; use "
        "zero2 or null": "zero3" in (launcher.deepspeed or "").lower(),
        "launcher.slurm.container: the host runs in there": bool(launcher.slurm.container),
        "eval.backend = vllm, which loads the model itself": recipe.eval.backend == "vllm",
    }
    for reason in (reason for reason, is_so in others.items() if is_so):
        fix = "or set launcher.resident to false"
        yield f"launcher.resident = True does not go with {reason}; {fix}"


# What the stability term alone reads.
_OF_STABILITY = (
    "stability_on",
    "stability_temperature",
    "stability_reduction",
    "ema_decay",
    "instruction_statistics",
)


def idle_keys(recipe: Recipe) -> dict[str, str]:
    """Returns {dotted key that does nothing: the end of a sentence that says why}."""
    method, schedule, options = recipe.method, recipe.schedule, recipe.tuner_options
    own = recipe.own_tuner_keys
    has = f": method {method} has {', '.join(sorted(own)) or 'no option'}"
    idle = {f"tuner.{key}": has for key in recipe.unused_tuner_keys}
    for name, cause in options.idle_options().items():
        idle[f"tuner.{name}"] = f" with tuner.{cause}"
    phases = {"schedule.first": schedule.first, "schedule.later": schedule.later}
    for phase, values in phases.items():
        if values.lr_scheduler_type == "constant" and values.warmup_ratio:
            idle[f"{phase}.warmup_ratio"] = f" with {phase}.lr_scheduler_type constant"
        if values.stability_weight and "stability_weight" not in own:
            idle[f"{phase}.stability_weight"] = f": method {method} has no stability term"
    if schedule.later.freeze_routers_from_chunk is not None and "freeze_routers" not in own:
        why = f": method {method} has no routers that freeze"
        idle["schedule.later.freeze_routers_from_chunk"] = why
    if isinstance(options, StrLoraOptions):
        given = [values.stability_weight for values in phases.values()]
        if not any(options.stability_weight if each is None else each for each in given):
            why = " with a stability_weight of 0 in every chunk"
            idle |= {f"tuner.{name}": why for name in _OF_STABILITY}
    if not recipe.protocol.continues:
        why = f": with method {method} no chunk goes on from the one before"
        idle |= {f"schedule.later.{name}": why for name in LaterPhase.model_fields}
        idle["slow_weights.start_next_from"] = why
    if recipe.start_from is not None:
        why = " with start_from: its first chunk goes on under schedule.later, too"
        idle |= {f"schedule.first.{name}": why for name in Phase.model_fields}
    if recipe.ewc is not None and not recipe.ewc.fisher:
        idle |= {f"ewc.{name}": " with ewc.fisher false" for name in ("decay", "samples")}
    return idle
