"""The fields of ms-swift's own arguments, without importing it in this process (8 seconds).

The table of the tested version is shipped in ``host_fields/``; for any other installed version it
is read once in a child process and kept in ``.cache/``. The shipped file is made by
``python -m recipes.config.swift_arguments --write``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from recipes.config.problems import Places, Problem, did_you_mean, shown
from recipes.run.state import write_json

REPO = Path(__file__).resolve().parents[2]
SHIPPED = Path(__file__).resolve().parents[1] / "host_fields"
TESTED_VERSION = "4.6.0"


class HostField(TypedDict):
    """One argument of `swift sft`: the values it takes, and whether `swift infer` needs it too."""

    kinds: list[str]
    choices: list[Any]
    model_side: bool


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
    "target_modules": "all linear layers of the language model are wrapped, for every method alike",
    "target_regex": "all linear layers of the language model are wrapped, for every method alike",
    "check_model": "always false: it only asks the hub again and again",
    "dataset": "one chunk of data.stream at a time",
    "val_dataset": "evaluation is a process of its own, see eval",
    "cached_dataset": "one chunk of data.stream at a time",
    "streaming": "chunks are files of known length",
    "split_dataset_ratio": "every sample of a chunk is trained on",
    "strict": "always true: a bad image stops the run instead of being replaced",
    "data_seed": "derived from seed and the chunk's number",
    "seed": "set seed at the top of the recipe",
    "tuner_type": "set method",
    "tuner_backend": "set method",
    "external_plugins": "set method",
    "custom_register_path": "set method",
    "callbacks": "set method",
    "model_kwargs": "set the keys of tuner",
    "lora_rank": "set tuner.rank",
    "lora_alpha": "set tuner.alpha",
    "lora_dropout": "set tuner.dropout",
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

_READER = """
import dataclasses, json, types, typing
from swift.arguments import SftArguments
from swift.arguments.base_args.model_args import ModelArguments
from swift.arguments.base_args.template_args import TemplateArguments
from swift.arguments.base_args.quant_args import QuantizeArguments
model_side = {f.name for c in (ModelArguments, TemplateArguments, QuantizeArguments)
              for f in dataclasses.fields(c)}
hints = typing.get_type_hints(SftArguments)
def describe(hint):
    if typing.get_origin(hint) is typing.Literal:
        return [], list(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [describe(part) for part in typing.get_args(hint)]
        return sum((p[0] for p in parts), []), sum((p[1] for p in parts), [])
    origin = typing.get_origin(hint) or hint
    name = getattr(origin, "__name__", "any")
    plain = ("int", "float", "bool", "str", "list", "dict", "NoneType")
    return [name if name in plain else "any"], []
table = {}
for field in dataclasses.fields(SftArguments):
    kinds, choices = describe(hints[field.name])
    table[field.name] = {"kinds": sorted(set(kinds)), "choices": choices,
                         "model_side": field.name in model_side}
print("TABLE " + json.dumps(table))
"""


@cache
def host_fields() -> dict[str, HostField]:
    """Returns the fields of the installed ms-swift; without one, the tested version's."""
    version = installed_version() or TESTED_VERSION
    for folder in (SHIPPED, REPO / ".cache" / "recipes"):
        path = folder / f"ms-swift-{version}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    table = read_from_package()
    write_json(REPO / ".cache" / "recipes" / f"ms-swift-{version}.json", table)
    return table


def installed_version() -> str | None:
    """Returns ms-swift's version without importing it, or None."""
    try:
        return metadata.version("ms-swift")
    except metadata.PackageNotFoundError:
        return None


def read_from_package() -> dict[str, HostField]:
    """Reads the fields in a child process; raises RuntimeError with the child's last words."""
    done = subprocess.run([sys.executable, "-c", _READER], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("TABLE "):
            return json.loads(line.removeprefix("TABLE "))
    raise RuntimeError(f"ms-swift's arguments could not be read: {done.stderr[-2000:]}")


def check_swift_block(block: dict[str, Any], places: Places, prefix: str) -> list[Problem]:
    """Checks a `swift:` block: known to the host, not owned by us, of the right type."""
    fields = host_fields()
    problems = []
    for key, value in block.items():
        dotted = f"{prefix}.{key}"
        if key in OWNED:
            message = f"is set by the orchestrator and cannot be given here: {OWNED[key]}"
            problems.append(Problem(places[dotted], dotted, message))
        elif key not in fields:
            message = "ms-swift has no such argument"
            version = installed_version() or TESTED_VERSION
            hint = did_you_mean(key, sorted(set(fields) | set(OWNED)))
            problems.append(
                Problem(places[dotted], dotted, f"{message} (SftArguments of {version})", hint)
            )
        elif not _fits(value, fields[key]):
            allowed = fields[key]["choices"] or fields[key]["kinds"]
            text = ", ".join("null" if a in (None, "NoneType") else str(a) for a in allowed)
            message = f"found {shown(value)}, but ms-swift takes: {text}"
            problems.append(Problem(places[dotted], dotted, message))
    return problems


def _fits(value: Any, field: HostField) -> bool:
    kinds = set(field["kinds"])
    if value in field["choices"] or "any" in kinds or not (kinds or field["choices"]):
        return True
    if value is None:
        return "NoneType" in kinds
    if isinstance(value, bool):
        return bool({"bool", "str"} & kinds)
    if isinstance(value, int):
        return bool({"int", "float", "str"} & kinds)
    if isinstance(value, float):
        return "float" in kinds
    if isinstance(value, str):
        return bool({"str", "list"} & kinds)
    return type(value).__name__ in kinds


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python -m recipes.config.swift_arguments --write")
    write_json(SHIPPED / f"ms-swift-{installed_version()}.json", read_from_package())
