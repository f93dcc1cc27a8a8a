"""A recipe and a chunk -> the exact arguments and environment of `swift sft` and `swift infer`.

Nothing is written or started, nothing read but what `start_from` brought along, so every command
can be printed before anything runs. Arguments are lists, never shell strings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recipes import REPO
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import known_arguments
from recipes.processes.command import Arguments, Command, flags
from recipes.run.placement import container, srun
from recipes.run.trackers import tracker_arguments, tracker_environment
from recipes.run_folder.checkpoints import OPTIMIZER
from recipes.run_folder.layout import RunLayout
from strlora_tuner.methods.ewc.state_file import FILE as EWC_STATE
from strlora_tuner.methods.slow_weights import both_sets
from strlora_tuner.methods.slow_weights.both_sets import planned_set
from strlora_tuner.methods.strlora.options import Options as StrLoraOptions
from strlora_tuner.methods.strlora.options import stability_acts
from strlora_tuner.options import (
    NEEDS_GPU,
    OPTIMIZER_STATE,
    PROBE_FILE,
    REMOTE_CODE,
    ROUTING_FILE,
    TASKS_FILE,
    TOO_LONG,
    TOO_LONG_FILE,
    host_arguments,
)
from strlora_tuner.saved import WEIGHTS

PLUGIN = REPO / "strlora_tuner" / "swift_plugins" / "routed_tuners.py"
LWF_PLUGIN = REPO / "strlora_tuner" / "methods" / "lwf" / "swift_plugin.py"
SLOW_PLUGIN = REPO / "strlora_tuner" / "swift_plugins" / "slow_weights.py"
EWC_PLUGIN = REPO / "strlora_tuner" / "methods" / "ewc" / "swift_plugin.py"
HOST_PLUGIN = REPO / "recipes" / "swift_plugins" / "training.py"
INFER_PLUGIN = REPO / "recipes" / "swift_plugins" / "inference.py"
SERVE_PLUGIN = REPO / "recipes" / "swift_plugins" / "serving.py"
POOL_PLUGIN = REPO / "recipes" / "baselines" / "mr_lora" / "swift_plugin.py"
# torch, MKL and oneDNN without the instructions that only newer processors have.
PORTABLE_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
POOL_BLOCK = 8  # batches that are routed together, so that each adapter's share fills its batches


def train_command(
    recipe: Recipe,
    layout: RunLayout,
    data: Path | Sequence[Path],
    chunk: int,
    resume_from: Path | None = None,
    own: Path | None = None,
    start: Path | None = None,
) -> Command:
    """The command that trains chunk `chunk` (from 1) on `data`.

    Args:
        data: the training file, or several, which the host reads as one.
        resume_from: a complete host checkpoint of this chunk to continue from.
        own: the chunk's own samples, where `data` holds replayed ones, too.
        start: the adapter to train on, where it is not that of the chunk before.
    """
    arguments: Arguments = {
        **_loading(recipe),
        "bf16": recipe.model.dtype == "bfloat16",
        "fp16": recipe.model.dtype == "float16",  # left alone, the host turns fp16 on for float32
        "check_model": False,  # the host would ask ModelScope, also for a model that lies here
        "freeze_vit": True,
        **_adapter_arguments(recipe, layout, chunk, resume_from, own),
        **_data_arguments(recipe, [data] if isinstance(data, Path) else data, chunk),
        **_optimizer_arguments(recipe, chunk),
        "output_dir": str(layout.host(chunk)),
        "logging_dir": str(layout.trackers(chunk)),
        "add_version": False,  # else checkpoints lie in a folder of the date, where none looks
        "save_strategy": "steps",
        "save_steps": recipe.schedule.save_steps,
        "save_total_limit": recipe.schedule.keep_checkpoints,
        "save_only_model": False,  # resuming needs the states of optimizer and generators
        "eval_strategy": "no",
        "seed": recipe.host_seed,
        **tracker_arguments(recipe, chunk),
    }
    if own is not None:  # the order, of all epochs, is in the file
        arguments |= {"train_dataloader_shuffle": False, "num_train_epochs": 1}
    if (previous := recipe.previous(chunk)) is not None:
        start = _trained_on(recipe, layout, previous)
    if start is not None:
        arguments["adapters"] = str(start)
    if resume_from is not None:
        arguments["resume_from_checkpoint"] = str(resume_from)
    if recipe.launcher.cpu:
        arguments["use_cpu"] = True
    if recipe.launcher.deepspeed:
        arguments["deepspeed"] = recipe.launcher.deepspeed
    # Last, so that the words of the user win; those that are ours alone the loader has refused
    # (OWNED in config/swift_arguments.py).
    arguments |= recipe.swift
    environment = _environment(recipe, layout)
    environment |= tracker_environment(recipe, layout.trackers(chunk))
    environment |= {TOO_LONG: recipe.data.too_long, TOO_LONG_FILE: str(layout.too_long(chunk))}
    environment |= _optimizer_state(recipe, layout, chunk, resume_from)
    place = recipe.processes, srun(recipe), container(recipe)
    return Command("sft", flags(arguments), environment, *place)


def infer_command(recipe: Recipe, layout: RunLayout, prompts: Path, chunk: int) -> Command:
    """The command that answers all `prompts` with the adapter of `chunk` (0: the base model)."""
    # Answers are on disk after every block: a killed evaluation continues from there.
    block = recipe.eval.batch_size * recipe.processes
    if chunk > 0 and recipe.pool is not None:
        block *= POOL_BLOCK
    arguments, environment = _answering(recipe, layout, chunk)
    if chunk > 0 and recipe.routed:
        environment[ROUTING_FILE] = str(layout.routing(chunk))
        environment[PROBE_FILE] = str(layout.probe)
    if chunk > 0 and recipe.eval.backend == "vllm":
        arguments["merge_lora"] = True
    arguments |= {
        "val_dataset": str(prompts),
        "dataset_num_proc": 1,
        "strict": True,
        "infer_backend": recipe.eval.backend,
        "write_batch_size": block,
        "result_path": str(layout.answers(chunk)),
    }
    place = recipe.processes, srun(recipe), container(recipe)
    return Command("infer", flags(arguments | _model_side(recipe)), environment, *place)


def deploy_command(
    recipe: Recipe, layout: RunLayout, chunk: int, host: str, port: int, name: str
) -> Command:
    """The command of the host's server, in one process, with the adapter of `chunk`.

    Args:
        recipe: whose launcher is for one process.
        layout: of the run.
        chunk: 0 is the base model.
        host: the address to listen on.
        port: which must be free: the host would quietly take another.
        name: of the model, as clients ask for it.
    """
    arguments, environment = _answering(recipe, layout, chunk, SERVE_PLUGIN)
    arguments |= {
        "infer_backend": "transformers",
        "host": host,
        "port": port,
        "served_model_name": name,
        "verbose": False,  # no question and no answer in the log
        "log_interval": -1,
    }
    arguments |= _model_side(recipe)
    return Command("deploy", flags(arguments), environment, inside=container(recipe))


def _answering(
    recipe: Recipe, layout: RunLayout, chunk: int, *further: Path
) -> tuple[Arguments, dict[str, str]]:
    """Arguments and environment of a host process that answers with a chunk's adapter."""
    plugins, environment = [HOST_PLUGIN, INFER_PLUGIN], _environment(recipe, layout)
    if chunk > 0 and recipe.routed:
        plugins.append(PLUGIN)
    if chunk > 0 and recipe.pool is not None:
        plugins = [HOST_PLUGIN, POOL_PLUGIN]  # which brings INFER_PLUGIN along
        environment["MR_LORA_POOL_FILE"] = str(layout.pool(chunk))
    arguments: Arguments = {
        **_loading(recipe),
        "max_batch_size": recipe.eval.batch_size,
        "max_new_tokens": recipe.eval.max_new_tokens,
        "temperature": 0,
        "external_plugins": [str(plugin) for plugin in (*plugins, *further)],
    }
    if chunk > 0:
        arguments["adapters"] = str(layout.adapter(chunk))
    return arguments, environment


def _loading(recipe: Recipe) -> Arguments:
    """How the host loads the base model, for training and for answers."""
    model = recipe.model
    return {"model": model.path, "torch_dtype": model.dtype, "max_length": model.max_length}


def _model_side(recipe: Recipe) -> Arguments:
    """The arguments of the recipe's swift block that say how a model is loaded and prompted."""
    known = known_arguments()
    return {key: value for key, value in recipe.swift.items() if known[key].model_side}


def tuner_arguments(recipe: Recipe, chunk: int) -> Arguments:
    """What `--model_kwargs` carries for a tuner of ours in chunk `chunk`, without the prefix."""
    unused = {*host_arguments(recipe.options_class), *recipe.unused_tuner_keys}
    options = {k: v for k, v in recipe.tuner_given.items() if k not in unused and v is not None}
    if "preset" in recipe.own_tuner_keys:
        options.setdefault("preset", recipe.options_class.default_preset)
    weight, scheduled = recipe.phase(chunk).stability_weight, Arguments()
    if weight is not None:
        scheduled["stability_weight"] = weight
    if _routers_frozen(recipe, chunk):
        scheduled["freeze_routers"] = True
    if chunk > 2 and all(_teacher_acts(recipe, number) for number in (chunk - 1, chunk)):
        scheduled["require_teacher"] = True
    return options | {k: v for k, v in scheduled.items() if k in recipe.own_tuner_keys}


def _routers_frozen(recipe: Recipe, chunk: int) -> bool:
    start, before = recipe.routers_frozen_from, 0 if recipe.start_from is None else 1
    return recipe.previous(chunk) is not None and 0 < start <= chunk + before


def _teacher_acts(recipe: Recipe, chunk: int) -> bool:
    weight, options = recipe.phase(chunk).stability_weight, recipe.tuner_options
    if not isinstance(options, StrLoraOptions) or _routers_frozen(recipe, chunk):
        return False
    return stability_acts(options if weight is None else replace(options, stability_weight=weight))


def _adapter_arguments(
    recipe: Recipe, layout: RunLayout, chunk: int, resume_from: Path | None, own: Path | None
) -> Arguments:
    plugins, callbacks = [str(HOST_PLUGIN)], ["save_and_stop"]
    keywords: Arguments = {}
    if recipe.routed:
        plugins.append(str(PLUGIN))
        callbacks.append("strlora")
        keywords = {f"strlora_{k}": v for k, v in tuner_arguments(recipe, chunk).items()}
    if recipe.ewc is not None:
        plugins.append(str(EWC_PLUGIN))
        callbacks.append("ewc")
        keywords |= _ewc_arguments(recipe, layout, chunk, own)
    if recipe.lwf is not None:
        plugins.append(str(LWF_PLUGIN))
        callbacks.append("lwf")
        keywords |= {f"lwf_{key}": value for key, value in recipe.lwf.model_dump().items()}
        if (previous := recipe.previous(chunk)) is not None:
            keywords["lwf_teacher"] = str(layout.adapter(previous))
    if recipe.keeps_optimizer:
        callbacks.append("keep_optimizer_state")
    if recipe.slow_weights is not None:
        plugins.append(str(SLOW_PLUGIN))
        callbacks.append("slow_weights")
        keywords |= _slow_arguments(recipe, layout, chunk, resume_from)
    arguments: Arguments = {"tuner_type": recipe.tuner_type, **_aligner_arguments(recipe)}
    arguments |= {"external_plugins": plugins, "callbacks": callbacks}
    if keywords:
        arguments["model_kwargs"] = keywords
    for option, argument in host_arguments(recipe.options_class).items():
        value = recipe.tuner_options.host_value(option)
        if value is not None:
            arguments[argument] = value
    return arguments


def _ewc_arguments(recipe: Recipe, layout: RunLayout, chunk: int, own: Path | None) -> Arguments:
    assert recipe.ewc is not None
    options = {k: v for k, v in recipe.ewc.model_dump().items() if v is not None}
    options["seed"] = recipe.chunk_seed(chunk)
    previous = recipe.previous(chunk)
    if previous is not None and (previous or (layout.adapter(0) / EWC_STATE).is_file()):
        options["state"] = str(layout.adapter(previous))
    # Its Fisher information is that of the new samples; the training file holds old ones, too.
    if own is not None and recipe.ewc.fisher:
        options["data"] = str(own)
    return {f"ewc_{key}": value for key, value in options.items()}


def _slow_arguments(
    recipe: Recipe, layout: RunLayout, chunk: int, resume_from: Path | None
) -> Arguments:
    assert recipe.slow_weights is not None
    options: Arguments = {key: getattr(recipe.slow_weights, key) for key in ("window", "max_decay")}
    previous = recipe.previous(chunk)
    if resume_from is not None:
        options["state"] = str(resume_from / both_sets.FILE)
    # A tuner that grows starts new tensors in each chunk, which the average before lacks.
    elif previous is not None and _has_sets(layout, previous) and not recipe.options_class.grows:
        slow = planned_set(layout.adapter(previous), "slow", recipe.slow_weights.answer)
        options["state"] = str(slow / WEIGHTS)
    return {f"slow_weights_{key}": value for key, value in options.items()}


def _optimizer_state(
    recipe: Recipe, layout: RunLayout, chunk: int, resume_from: Path | None
) -> dict[str, str]:
    """Names the optimizer's state of the chunk before; a checkpoint inside the chunk has its own.

    The adapter of `start_from` need not have one.
    """
    previous = recipe.previous(chunk)
    if not recipe.keeps_optimizer or resume_from is not None or previous is None:
        return {}
    path = layout.adapter(previous) / OPTIMIZER
    return {OPTIMIZER_STATE: str(path)} if previous or path.is_file() else {}


def _trained_on(recipe: Recipe, layout: RunLayout, previous: int) -> Path:
    """The folder of the weights that the chunk after `previous` goes on from."""
    adapter, slow = layout.adapter(previous), recipe.slow_weights
    if slow is None or not _has_sets(layout, previous):
        return adapter
    return planned_set(adapter, slow.start_next_from, slow.answer)


def _has_sets(layout: RunLayout, previous: int) -> bool:
    """Whether the chunk before has slow weights: that of `start_from`, 0, need not."""
    return previous > 0 or bool(both_sets.inner_weights(layout.adapter(0)))


def _aligner_arguments(recipe: Recipe) -> Arguments:
    """Trains the aligner in full, beside the adapter, where the recipe names it.

    For the host's LoRA `freeze_aligner false` would put an adapter on it instead; there
    modules_to_save does what is meant. Our plug-in reads `freeze_aligner false` as "in full".
    """
    if recipe.model.aligner is None:
        return {"freeze_aligner": True}
    if recipe.routed:
        return {"freeze_aligner": False}
    return {"freeze_aligner": True, "modules_to_save": recipe.model.aligner}


def _data_arguments(recipe: Recipe, files: Sequence[Path], chunk: int) -> Arguments:
    return {
        "dataset": [str(file) for file in files],
        "split_dataset_ratio": 0,
        "strict": True,  # else another sample takes the place of one that cannot be encoded
        "dataset_num_proc": 1,
        "dataset_shuffle": False,  # the trainer shuffles; a second shuffle would only cost time
        "data_seed": recipe.chunk_seed(chunk),
    }


def _optimizer_arguments(recipe: Recipe, chunk: int) -> Arguments:
    schedule, phase = recipe.schedule, recipe.phase(chunk)
    rates = phase.peak_rates
    arguments: Arguments = {
        "num_train_epochs": schedule.epochs,
        "per_device_train_batch_size": schedule.per_device_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "learning_rate": rates["learning_rate"],
        "lr_scheduler_type": phase.lr_scheduler_type,
        "warmup_ratio": phase.warmup_ratio,
        "weight_decay": schedule.weight_decay,
    }
    return arguments | rates


def _environment(recipe: Recipe, layout: RunLayout) -> dict[str, str]:
    """What the host's process needs beside its arguments; all of it is printed by --dry-run."""
    launcher = recipe.launcher
    environment = {
        "ROOT_IMAGE_DIR": recipe.data.stream,  # where relative paths of pictures begin
        "PYTHONPATH": str(REPO),  # plug-ins are loaded by their path, and import our packages
        "OMP_NUM_THREADS": str(launcher.omp_threads or default_threads(recipe)),
        "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive a data loader's fork
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if recipe.model.is_local:
        environment["HF_HUB_OFFLINE"] = "1"  # a node without network would wait for the hub
    if launcher.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # the host takes every GPU that it sees
    else:
        environment[NEEDS_GPU] = "1"  # else the host would go on without, on the CPU
    if launcher.portable_kernels:
        environment |= PORTABLE_KERNELS
    if recipe.model.remote_code:
        environment[REMOTE_CODE] = "1"
    if recipe.task_labels:
        environment[TASKS_FILE] = str(layout.known_labels.resolve())
    # NNODES and NPROC_PER_NODE make ms-swift's launcher call torchrun; without them it starts one
    # process.
    if launcher.nodes > 1:
        environment["NNODES"] = str(launcher.nodes)
    if recipe.processes > 1 or launcher.kind == "torchrun":
        environment["NPROC_PER_NODE"] = str(launcher.nproc)
    if launcher.cpu and launcher.deepspeed:
        environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed guesses by what is installed
    return environment


def default_threads(recipe: Recipe) -> int:
    """The cores of this machine shared among the processes; a GPU process needs 8 at most."""
    share = max(1, (os.cpu_count() or 1) // recipe.launcher.nproc)
    return share if recipe.launcher.cpu else min(8, share)
