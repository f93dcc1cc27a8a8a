"""A recipe and a chunk -> the exact arguments and environment of `swift sft` and `swift infer`.

Pure functions: nothing is read, written or started, so every command can be printed
before anything runs.
Arguments are lists, never shell strings.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.schema import LaterPhase, Model, Recipe
from recipes.config.swift_arguments import host_fields
from recipes.run.layout import RunLayout
from recipes.run.trackers import tracker_arguments, tracker_environment
from recipes.swift_plugins.sample_cache import FOLDER, LIMIT
from strlora_tuner.methods import LORA, options_class
from strlora_tuner.options import TASKS_FILE

REPO = Path(__file__).resolve().parents[2]
PLUGIN = REPO / "strlora_tuner" / "swift_plugins" / "routed_tuners.py"
EWC_PLUGIN = REPO / "strlora_tuner" / "methods" / "ewc" / "swift_plugin.py"
HOST_PLUGIN = REPO / "recipes" / "swift_plugins" / "training.py"
INFER_PLUGIN = REPO / "recipes" / "swift_plugins" / "inference.py"
POOL_PLUGIN = REPO / "recipes" / "baselines" / "mr_lora" / "swift_plugin.py"
POOL_BLOCK = 8  # batches that are routed together, so that each adapter's share fills its batches
# LoRA options that the host has arguments of its own for.
_HOST_LORA = {"rank": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout"}


@dataclass(frozen=True)
class Command:
    """One host process: `kind` (sft | infer), its arguments, and what its environment adds."""

    kind: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    processes: int = 1
    prefix: tuple[str, ...] = ()  # srun and what it needs
    inside: tuple[str, ...] = ()  # the container that the host runs in

    @property
    def remote(self) -> bool:
        """Whether srun starts it, on other machines perhaps."""
        return bool(self.prefix)

    def argv(self) -> list[str]:
        """What is executed.

        One process runs the module behind `swift KIND` itself: the launcher in between would cost
        two seconds a start and stand between our signals and the trainer. Several processes go
        through ms-swift's own launcher, which calls torchrun.
        """
        python = "python3" if self.inside else sys.executable
        if self.remote:
            node = [*self.prefix, sys.executable, "-m", "recipes.slurm.task"]
            host = [*self.inside, python, "-m", "swift.cli.main", self.kind]
            return [*node, *host, *self.arguments]
        if "NPROC_PER_NODE" not in self.environment:
            return [*self.inside, python, "-m", f"swift.cli.{self.kind}", *self.arguments]
        return [*self.inside, python, "-m", "swift.cli.main", self.kind, *self.arguments]

    def as_shell(self, indent: str = "    ") -> str:
        """The same as one shell command, for people to read and copy."""
        names = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        lines = [" ".join([*names, "swift", self.kind])]
        pair: list[str] = []
        for argument in self.arguments:
            if argument.startswith("--") and pair:
                lines.append(" ".join(pair))
                pair = []
            pair.append(shlex.quote(argument))
        lines.append(" ".join(pair))
        return f" \\\n{indent}".join(lines)


def train_command(
    recipe: Recipe,
    layout: RunLayout,
    data: Path | Sequence[Path],
    chunk: int,
    resume_from: Path | None = None,
    own: Path | None = None,
) -> Command:
    """The command that trains chunk `chunk` (from 1) on `data`.

    Args:
        data: the training file, or several, which the host reads as one.
        resume_from: a complete host checkpoint of this very chunk to go on from.
        own: the chunk's own samples, where `data` holds replayed ones, too.
    """
    arguments = {
        **_model_arguments(recipe),
        **_adapter_arguments(recipe, layout, chunk, own),
        **_data_arguments(recipe, [data] if isinstance(data, Path) else data, chunk),
        **_optimizer_arguments(recipe, chunk),
        "output_dir": str(layout.host(chunk)),
        "logging_dir": str(layout.trackers(chunk)),
        "add_version": False,
        "save_strategy": "steps",
        "save_steps": recipe.schedule.save_steps,
        "save_total_limit": recipe.schedule.keep_checkpoints,
        "save_only_model": False,
        "eval_strategy": "no",
        "seed": recipe.seed,
        **tracker_arguments(recipe, chunk),
    }
    previous = recipe.previous(chunk)
    if previous is not None:
        arguments["adapters"] = str(layout.adapter(previous))
    if resume_from is not None:
        arguments["resume_from_checkpoint"] = str(resume_from)
    if recipe.launcher.cpu:
        arguments["use_cpu"] = True
    if recipe.launcher.deepspeed:
        arguments["deepspeed"] = recipe.launcher.deepspeed
    arguments |= recipe.swift
    return Command(
        "sft",
        _flags(arguments),
        _environment(recipe, layout) | tracker_environment(recipe, layout.trackers(chunk)),
        recipe.processes,
        _srun(recipe),
        _container(recipe),
    )


def infer_command(recipe: Recipe, layout: RunLayout, prompts: Path, chunk: int) -> Command:
    """The command that answers all `prompts` with the adapter of `chunk` (0: the base model)."""
    arguments: dict[str, Any] = {
        "model": recipe.model.path,
        "torch_dtype": recipe.model.dtype,
        "max_length": recipe.model.max_length,
        "val_dataset": str(prompts),
        "dataset_num_proc": 1,
        "strict": True,
        "infer_backend": recipe.eval.backend,
        "max_batch_size": recipe.eval.batch_size,
        # Answers are on disk after every batch: a killed evaluation goes on from there.
        "write_batch_size": recipe.eval.batch_size * recipe.launcher.nproc,
        "max_new_tokens": recipe.eval.max_new_tokens,
        "temperature": 0,
        "result_path": str(layout.answers(chunk)),
        "external_plugins": [str(HOST_PLUGIN), str(INFER_PLUGIN)],
    }
    environment = _environment(recipe, layout)
    if chunk > 0:
        arguments["adapters"] = str(layout.adapter(chunk))
        if recipe.eval.backend == "vllm":
            arguments["merge_lora"] = True
        if recipe.routed:
            arguments["external_plugins"].append(str(PLUGIN))
            environment["STRLORA_ROUTING_FILE"] = str(layout.routing(chunk))
            environment["STRLORA_PROBE_FILE"] = str(layout.probe)
        if recipe.pool is not None:
            arguments["external_plugins"].append(str(POOL_PLUGIN))
            arguments["write_batch_size"] *= POOL_BLOCK
            environment["MR_LORA_POOL_FILE"] = str(layout.pool(chunk))
    fields = host_fields()
    arguments |= {key: v for key, v in recipe.swift.items() if fields[key]["model_side"]}
    if recipe.launcher.nodes > 1:  # this machine alone answers
        environment |= {"NNODES": "1", "NODE_RANK": "0"}
    inside = _container(recipe)
    return Command("infer", _flags(arguments), environment, recipe.launcher.nproc, inside=inside)


def _srun(recipe: Recipe) -> tuple[str, ...]:
    """What starts a host process on every machine of a job; empty on one machine."""
    launcher = recipe.launcher
    if launcher.kind != "slurm" or launcher.nodes == 1:
        return ()
    options = [f"--{option}" for option in launcher.slurm.srun_options]
    per_node = f"--nodes={launcher.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"
    return ("srun", *per_node, "--export=ALL", *options)


def _container(recipe: Recipe) -> tuple[str, ...]:
    launcher = recipe.launcher
    if launcher.kind != "slurm" or launcher.slurm.container is None:
        return ()
    gpu = () if launcher.cpu else ("--nv",)
    return ("apptainer", "exec", *gpu, f"--bind={REPO}", launcher.slurm.container)


def tuner_arguments(recipe: Recipe, chunk: int) -> dict[str, Any]:
    """What `--model_kwargs` carries for a tuner of ours in chunk `chunk`, without the prefix."""
    unused = {*_HOST_LORA, *recipe.unused_tuner_keys}
    options = {k: v for k, v in recipe.tuner_given.items() if k not in unused and v is not None}
    preset = options_class(recipe.tuner_type or LORA).default_preset
    if preset is None:
        return options
    options.setdefault("preset", preset)
    phase = recipe.phase(chunk)
    if phase.stability_weight is not None:
        options["stability_weight"] = phase.stability_weight
    if _routers_frozen(recipe, chunk):
        options["freeze_routers"] = True
    if chunk > 2 and _teacher_acts(recipe, chunk) and _teacher_acts(recipe, chunk - 1):
        options["require_teacher"] = True
    return options


def _routers_frozen(recipe: Recipe, chunk: int) -> bool:
    phase = recipe.phase(chunk)
    start = phase.freeze_routers_from_chunk if isinstance(phase, LaterPhase) else None
    return start is not None and chunk >= start


def _teacher_acts(recipe: Recipe, chunk: int) -> bool:
    return recipe.phase(chunk).stability_weight != 0 and not _routers_frozen(recipe, chunk)


def _model_arguments(recipe: Recipe) -> dict[str, Any]:
    return {
        "model": recipe.model.path,
        "torch_dtype": recipe.model.dtype,
        "bf16": recipe.model.dtype == "bfloat16",
        "fp16": recipe.model.dtype == "float16",  # left alone, the host turns fp16 on for float32
        "check_model": False,
        "max_length": recipe.model.max_length,
        "freeze_vit": True,
    }


def _adapter_arguments(
    recipe: Recipe, layout: RunLayout, chunk: int, own: Path | None
) -> dict[str, Any]:
    plugins, callbacks, keywords = [str(HOST_PLUGIN)], ["save_and_stop"], {}
    if recipe.routed:
        plugins.append(str(PLUGIN))
        callbacks.append("strlora")
        keywords = {f"strlora_{k}": v for k, v in tuner_arguments(recipe, chunk).items()}
    if recipe.ewc is not None:
        plugins.append(str(EWC_PLUGIN))
        callbacks.append("ewc")
        keywords |= _ewc_arguments(recipe, layout, chunk, own)
    arguments: dict[str, Any] = {"tuner_type": recipe.tuner_type, **_aligner_arguments(recipe)}
    arguments |= {"external_plugins": plugins, "callbacks": callbacks}
    if keywords:
        arguments["model_kwargs"] = keywords
    for ours, hosts in _HOST_LORA.items():
        arguments[hosts] = getattr(recipe.tuner_options, ours)
    return arguments


def _ewc_arguments(
    recipe: Recipe, layout: RunLayout, chunk: int, own: Path | None
) -> dict[str, Any]:
    assert recipe.ewc is not None
    options = {k: v for k, v in recipe.ewc.model_dump().items() if v is not None}
    options["seed"] = chunk_seed(recipe, chunk)
    previous = recipe.previous(chunk)
    if previous is not None:
        options["state"] = str(layout.adapter(previous))
    if own is not None and not recipe.ewc.released:
        options["data"] = str(own)
    return {f"ewc_{key}": value for key, value in options.items()}


def _aligner_arguments(recipe: Recipe) -> dict[str, Any]:
    """Trains the aligner in full, beside the adapter, where the recipe names it.

    For the host's LoRA `freeze_aligner false` would put an adapter on it instead; there
    modules_to_save does what is meant. Our plug-in reads `freeze_aligner false` as "in full".
    """
    if recipe.model.aligner is None:
        return {"freeze_aligner": True}
    if recipe.routed:
        return {"freeze_aligner": False}
    return {"freeze_aligner": True, "modules_to_save": recipe.model.aligner}


def _data_arguments(recipe: Recipe, files: Sequence[Path], chunk: int) -> dict[str, Any]:
    arguments = {
        "dataset": [str(file) for file in files],
        "split_dataset_ratio": 0,
        "strict": True,
        "dataset_num_proc": 1,
        "dataset_shuffle": False,  # the trainer shuffles; a second shuffle would only cost time
        "data_seed": chunk_seed(recipe, chunk),
    }
    if recipe.replays(chunk):  # the order, of all epochs, is in the file
        arguments["train_dataloader_shuffle"] = False
    return arguments


def chunk_seed(recipe: Recipe, chunk: int) -> int:
    """The seed of everything that is drawn for one chunk."""
    return recipe.seed * 1000 + chunk


def _optimizer_arguments(recipe: Recipe, chunk: int) -> dict[str, Any]:
    schedule, phase = recipe.schedule, recipe.phase(chunk)
    arguments: dict[str, Any] = {
        "num_train_epochs": 1 if recipe.replays(chunk) else schedule.epochs,
        "per_device_train_batch_size": schedule.per_device_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": phase.lr_scheduler_type,
        "warmup_ratio": phase.warmup_ratio,
        "weight_decay": schedule.weight_decay,
    }
    if phase.aligner_lr is not None:
        arguments["aligner_lr"] = phase.aligner_lr
    return arguments


def _environment(recipe: Recipe, layout: RunLayout) -> dict[str, str]:
    """What the host's process needs beside its arguments; all of it is printed by --dry-run."""
    launcher = recipe.launcher
    environment = {
        "ROOT_IMAGE_DIR": recipe.data.stream,
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": str(launcher.omp_threads or default_threads(recipe)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if is_local(recipe.model):
        environment["HF_HUB_OFFLINE"] = "1"
    if launcher.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if recipe.model.remote_code:
        environment["STRLORA_REMOTE_CODE"] = "1"
    if launcher.sample_cache is not None:
        environment[FOLDER] = launcher.sample_cache
        environment[LIMIT] = str(launcher.sample_cache_gb)
    if recipe.told_task:
        environment[TASKS_FILE] = str(layout.tasks.resolve())
    if launcher.nodes > 1:
        environment["NNODES"] = str(launcher.nodes)
    if recipe.processes > 1 or launcher.kind == "torchrun":
        environment["NPROC_PER_NODE"] = str(launcher.nproc)
    if launcher.cpu and launcher.deepspeed:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def default_threads(recipe: Recipe) -> int:
    """The cores of this machine shared among the processes; a GPU process needs 8 at most."""
    share = max(1, (os.cpu_count() or 1) // recipe.launcher.nproc)
    return share if recipe.launcher.cpu else min(8, share)


def is_local(model: Model) -> bool:
    """Whether the model is a folder: it exists, is written as a path, or is downloaded to one."""
    return Path(model.path).exists() or model.path[0] in "./~" or model.download is not None


def _flags(arguments: dict[str, Any]) -> tuple[str, ...]:
    flags: list[str] = []
    for key, value in arguments.items():
        if value is None:
            continue
        flags.append(f"--{key}")
        values = value if isinstance(value, (list, tuple)) else [value]
        flags += [_text(item) for item in values]
    return tuple(flags)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
