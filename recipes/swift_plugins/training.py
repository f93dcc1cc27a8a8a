"""Loaded by every host process: `--external_plugins <this file> --callbacks save_and_stop`.

Where a GPU was asked for, it stops a process that finds none: the host would go on, on the CPU. It
corrects eight defaults. The graceful exit of ms-swift also stops whenever the file /tmp/stop
exists, which any user of a shared machine can create; ms-swift runs Python files that come with a
model; it finds no type (Qwen3-VL) or template (Qwen2.5-VL) for a model whose folder has another
name than on the hub, since embedders and rerankers have the same architecture, and other models the
same type; transformers orders checkpoints by the files' times, so that a clock that jumps makes it
remove the newest one; a batch of a short and a long sample keeps the logits of all tokens from the
shorter one's answer on (3,100 positions of a vocabulary of 151,936 are 1.9 GB in float32); the rate
that is logged is the first group's, the aligner's where it has its own; the first step of a warm-up
has the rate 0, so that a chunk of one step would learn nothing; and the log warns of remote code
that is switched off, and asks for packages that only remote code and videos need.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import time
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import callbacks_map
from swift.callbacks.deepspeed_elastic import GracefulExitCallback
from swift.model import MODEL_MAPPING
from swift.trainers.mixin import SwiftMixin
from swift.utils import get_logger
from transformers import trainer_utils

# Both replace a function of the host.
from recipes.swift_plugins import kept_rows, long_samples  # noqa: F401
from recipes.swift_plugins.optimizer_state import KeepOptimizerState
from strlora_tuner import host_api
from strlora_tuner.options import NEEDS_GPU, REMOTE_CODE
from strlora_tuner.swift_plugins import master_weights as master_weights

host_api.check("training")
if os.environ.get(NEEDS_GPU) == "1" and not torch.cuda.is_available():
    raise RuntimeError(
        "torch finds no usable GPU in this process, and the recipe asks for one (launcher.cpu is "
        "false): `bash recipes/run_stream.sh RECIPE --dry-run` says why. The run "
        "does not continue on the CPU"
    )
GLOO_THREAD = "pt_gloo_runloop"
NO_TEXT = (
    "_emb",
    "_embedding",
    "_gme",
    "_reranker",
)  # endings of types that write no text


class SaveAndStop(GracefulExitCallback):
    """On SIGTERM, SIGINT, SIGUSR1 or SIGUSR2: ends the step, saves a checkpoint, stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shutdown_manager._stop_file = ""  # no file stops us


def refuse_remote_code(repo_id: str, module: str, *args: Any, **kwargs: Any) -> str:
    """Takes the place of the function with which transformers fetches a model's Python files."""
    raise ValueError(
        f"{repo_id} wants to run its own Python file {module}. That is off: use a model that "
        "transformers knows by itself, or, if you trust its source, set model.remote_code: true"
    )


def keep_newest_steps(*args: Any, **kwargs: Any) -> None:
    """Takes the place of the function that removes old checkpoints: old is what has fewer steps."""
    trainer_utils.rotate_checkpoints(*args, **{**kwargs, "use_mtime": False})


def types_that_write(architectures: list[str] | None) -> list[str]:
    """Takes the place of the function that finds a model's types by its architectures."""
    found: list[str] = types_of(architectures)
    writing = [name for name in found if not name.endswith(NO_TEXT)]
    # Of several the one called like the class: Qwen3.5's is another maker's OCR model's, too.
    classes = (str(name).removesuffix("ForConditionalGeneration") for name in architectures or ())
    called = [name.lower() for name in classes]
    own = [name for name in writing if name in called]
    return next((names for names in (writing, own) if len(names) == 1), found)


log_by_host = SwiftMixin.log


@wraps(log_by_host)
def log_rates(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
    """Takes the place of the host's function that logs a step: names the rate of each group.

    Where the aligner has a rate of its own the host makes its parameters the first groups, and the
    adapter's the last. `learning_rate` is the adapter's.
    """
    if "learning_rate" in logs and self.args.aligner_lr is not None:
        groups = [float(group["lr"]) for group in self.optimizer.param_groups]
        logs["learning_rate"] = logs["adapter_learning_rate"] = groups[-1]
        logs["aligner_learning_rate"] = groups[0]
    log_by_host(self, logs, *args, **kwargs)


def leave_a_step(self: Any, num_training_steps: int) -> int:
    """Takes the place of the host's count of warm-up steps: one step at least is none of them."""
    steps: int = warmup_by_host(self, num_training_steps)
    return min(steps, max(num_training_steps - 1, 0))


# Of the host's log: a warning that is not true here, and a hint at packages that are not used.
_NOT_TRUE = re.compile(r"Loading \S+ from .* with trust_remote_code=True")
_NOT_NEEDED = re.compile(r'Please install the package: `pip install( "(timm|decord)[^"]*")+ -U`')


def holds(record: logging.LogRecord) -> bool:
    """Tells whether a line of the host's log is worth reading; remote code is off."""
    text = record.getMessage()
    return not (_NOT_TRUE.match(text) or _NOT_NEEDED.match(text))


keep_by_host = SwiftMixin.prepare_logits_to_keep


@wraps(keep_by_host)
def keep_labelled_logits(self: Any, inputs: dict[str, Any]) -> None:
    """Takes the place of the host's function that leaves out logits: keeps labelled positions.

    The host does so for a batch of one, and else keeps one range. In float32 that stays: another
    order of the same sums would change the last bits, and such runs are repeated bit for bit.
    """
    labels = inputs["labels"]
    if labels.shape[0] == 1 or not (self.args.bf16 or self.args.fp16):
        keep_by_host(self, inputs)
        return
    labelled = (labels != -100).any(0)
    for name, filling in (("labels", -100), ("loss_scale", 0)):
        if inputs.get(name) is not None:
            kept = inputs[name][:, labelled]
            inputs[name] = torch.nn.functional.pad(kept, (1, 0), value=filling)
    # What is seen at a position is the token behind it.
    inputs["logits_to_keep"] = torch.nn.functional.pad(labelled[1:], (0, 1), value=True)


def gloo_is_busy() -> bool:
    """Tells whether a thread of gloo in this process runs or waits for a core (known on Linux)."""
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # one that just ended
            name, _, rest = (thread / "stat").read_text().partition("(")[2].rpartition(")")
            if name == GLOO_THREAD and rest.split()[0] != "S":
                return True
    return False


@atexit.register
def wait_for_gloo() -> None:
    """Lets gloo's threads put down the tensors of the last collective while Python still runs.

    A thread that a busy machine has not let do so needs Python's lock later, and a thread that
    asks for it once Python ends aborts the process (SIGABRT; PyTorch's pull request 179291).
    `destroy_process_group` does not end these threads where DDP's reducer holds the group.
    """
    idle, end = 0, time.monotonic() + 60
    while idle < 3 and time.monotonic() < end:
        idle = 0 if gloo_is_busy() else idle + 1
        time.sleep(0.01)  # and gives Python's lock to whoever waits for it


host_api.replace("swift.trainers.mixin:SwiftMixin.prepare_logits_to_keep", keep_labelled_logits)
host_api.replace("swift.trainers.mixin:SwiftMixin.log", log_rates)
host_api.replace("transformers.trainer:rotate_checkpoints", keep_newest_steps)
warmup_by_host = host_api.replace(
    "transformers.training_args:TrainingArguments.get_warmup_steps", leave_a_step
)
types_of = host_api.replace("swift.model.model_meta:get_matched_model_types", types_that_write)
for meta in MODEL_MAPPING.values():  # the template that is called like the type is its own
    if meta.model_type in meta.candidate_templates:
        meta.candidate_templates = [meta.model_type]
callbacks_map["save_and_stop"] = SaveAndStop
callbacks_map["keep_optimizer_state"] = KeepOptimizerState
if os.environ.get(REMOTE_CODE) != "1":
    get_logger().addFilter(holds)
    host_api.replace("swift.model.register:ModelLoader.default_trust_remote_code", False)
    host_api.replace("transformers.dynamic_module_utils:get_cached_module_file", refuse_remote_code)
