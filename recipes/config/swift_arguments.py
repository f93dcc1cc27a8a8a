"""The `swift` block: which arguments of `swift sft` exist, and which values they take.

Importing ms-swift takes many seconds, and a laptop that writes recipes need not have it. So the
arguments of the tested version are shipped as ``ms-swift-VERSION.json`` beside this file, one line
an argument; those of any other installed version are read once, in a process of their own, and
kept in ``.cache/recipes/``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_prep.files import read_json, write_text
from recipes import REPO
from recipes.config.problems import Places, Problem, did_you_mean, shown
from strlora_tuner.options import AdapterOptions, host_arguments

SHIPPED = Path(__file__).resolve().parent
TESTED_VERSION = "4.6.0"
READER = "recipes.swift_plugins.argument_fields"


@dataclass(frozen=True)
class HostArgument:
    """One argument of `swift sft`.

    `kinds` are the plain types it takes ("any" for others), `choices` the values of a closed list;
    `model_side` says whether `swift infer` needs the argument too; `unrouted` holds the default of
    an argument that our own tuners do not read.
    """

    kinds: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    model_side: bool = False
    unrouted: tuple[Any, ...] = ()


# Keys that the orchestrator sets itself, with what to write instead.
OWNED: dict[str, str] = {
    "model": "set model.path",
    "torch_dtype": "set model.dtype",
    "bf16": "set model.dtype",
    "fp16": "set model.dtype",
    "max_length": "set model.max_length",
    "freeze_vit": "the vision tower stays frozen, as in the published runs",
    "freeze_aligner": "set model.aligner",
    "freeze_llm": "adapters live in the language model",
    "modules_to_save": "set model.aligner",
    "target_modules": "set tuner.targets",
    "check_model": "always false: it only asks the hub again and again",
    "dataset": "one chunk of data.stream at a time",
    "val_dataset": "evaluation is a process of its own, see eval",
    "cached_dataset": "one chunk of data.stream at a time",
    "streaming": "chunks are files of known length",
    "split_dataset_ratio": "every sample of a chunk is trained on",
    "strict": "always true: a bad image stops the run instead of being replaced",
    "data_seed": "derived from seed and the chunk's number",
    "seed": "set seed at the top of the recipe",
    "task_type": "a stream trains models that write answers",
    "tuner_type": "set method",
    "tuner_backend": "set method",
    "external_plugins": "set method",
    "custom_register_path": "set method",
    "callbacks": "set method",
    "model_kwargs": "set the keys of tuner",
    **{host: f"set tuner.{name}" for name, host in host_arguments(AdapterOptions).items()},
    "adapters": "always the previous chunk's adapter",
    "resume_from_checkpoint": "the orchestrator resumes from the newest complete checkpoint",
    "resume_only_model": "it would end at once on a new chunk (ms-swift issue 6084)",
    "output_dir": "set run_dir",
    "logging_dir": "set run_dir",
    "add_version": "folders are named by chunk",
    "create_checkpoint_symlink": "folders are named by chunk",
    "save_strategy": "set schedule.save_steps",
    "save_steps": "set schedule.save_steps",
    "save_total_limit": "set schedule.keep_checkpoints",
    "save_only_model": "always false: without the optimizer a chunk cannot be resumed",
    "eval_strategy": "evaluation is a process of its own, see eval",
    "num_train_epochs": "set schedule.epochs",
    "max_epochs": "set schedule.epochs",
    "max_steps": "a chunk is read completely; set schedule.epochs",
    "per_device_train_batch_size": "set schedule.per_device_batch",
    "gradient_accumulation_steps": "derived from schedule.global_batch",
    "learning_rate": "set learning_rate in schedule.first and schedule.later",
    "aligner_lr": "set aligner_lr in schedule.first and schedule.later",
    "lr_scheduler_type": "set lr_scheduler_type in schedule.first and schedule.later",
    "warmup_ratio": "set warmup_ratio in schedule.first and schedule.later",
    "warmup_steps": "set warmup_ratio in schedule.first and schedule.later",
    "weight_decay": "set schedule.weight_decay",
    "use_cpu": "set launcher.cpu",
    "deepspeed": "set launcher.deepspeed",
    "ignore_args_error": "it would hide misspelt arguments",
    "load_args": "the recipe is the only source of arguments",
    "max_new_tokens": "set eval.max_new_tokens",
    "temperature": "evaluation is greedy",
    "push_to_hub": "nothing leaves this machine",
    "hub_token": "a secret would be logged: set HF_TOKEN in the environment",
    "swanlab_token": "a secret would be logged: set SWANLAB_API_KEY in the environment",
    "swanlab_secret": "a secret would be logged: set it in SwanLab's own environment variables",
}


@cache
def known_arguments() -> dict[str, HostArgument]:
    """Returns the arguments of the installed ms-swift; without one, the tested version's."""
    name = f"ms-swift-{installed_version() or TESTED_VERSION}.json"
    cached = REPO / ".cache" / "recipes" / name
    path = SHIPPED / name if (SHIPPED / name).is_file() else cached
    # In a process of its own: importing the host takes ten seconds, and prints.
    if not path.is_file():
        write_text(path, read_from_package())
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: HostArgument(**entry) for name, entry in table.items()}


def installed_version() -> str | None:
    """Returns ms-swift's version without importing it, or None."""
    try:
        return metadata.version("ms-swift")
    except metadata.PackageNotFoundError:
        return None


def read_from_package() -> str:
    """The installed version's arguments as JSON; RuntimeError with the reader's last words."""
    done = subprocess.run([sys.executable, "-m", READER], cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ms-swift's arguments could not be read: {done.stderr[-2000:]}")
    return done.stdout


def check_swift_block(block: dict[str, Any], places: Places, prefix: str) -> list[Problem]:
    """Checks a `swift:` block: known to the host, not owned by us, of the right type."""
    known = known_arguments()
    problems = []
    for key, value in block.items():
        dotted = f"{prefix}.{key}"
        hint = ""
        if key in OWNED:
            message = f"is set by the orchestrator and cannot be given here: {OWNED[key]}"
        elif key not in known:
            version = installed_version() or TESTED_VERSION
            message = f"ms-swift has no such argument (SftArguments of {version})"
            hint = did_you_mean(key, sorted(known.keys() | OWNED.keys()))
        elif not _fits(value, known[key]):
            allowed = known[key].choices or known[key].kinds
            text = ", ".join("null" if a in (None, "NoneType") else str(a) for a in allowed)
            message = f"found {shown(value)}, but ms-swift takes: {text}"
        else:
            continue
        problems.append(Problem(places[dotted], dotted, message, hint))
    return problems


# What a value written in YAML may be given as, by its own type.
_ACCEPTED = {
    type(None): {"NoneType"},
    bool: {"bool", "str"},
    int: {"int", "float", "str"},
    float: {"float"},
    str: {"str", "list"},
}


def _fits(value: Any, argument: HostArgument) -> bool:
    kinds = set(argument.kinds)
    if value in argument.choices or "any" in kinds or not (kinds or argument.choices):
        return True
    return bool(kinds & _ACCEPTED.get(type(value), {type(value).__name__}))


def zero_settings(deepspeed: str | dict[str, Any] | None) -> dict[str, Any]:
    """The block zero_optimization of `launcher.deepspeed`; empty where there is none.

    Args:
        deepspeed: a name of the host's, JSON text or a JSON file, as in a recipe; or the whole
            configuration, as the host's args.json has it.

    Raises:
        OSError, ValueError: it is no name of the host's, and no JSON is there.
    """
    if not deepspeed:
        return {}
    if isinstance(deepspeed, str):
        deepspeed = _configuration(deepspeed)
    return dict(deepspeed.get("zero_optimization", {}))


def _configuration(named: str) -> dict[str, Any]:
    # First of all, since a long text is no name that a file system takes.
    if named.lstrip().startswith("{"):
        return dict(json.loads(named))
    path, host = Path(named), find_spec("swift")
    if host is not None and host.origin is not None:
        shipped = Path(host.origin).parent / "config" / f"{named}.json"
        path = shipped if shipped.is_file() else path
    return dict(read_json(path))
