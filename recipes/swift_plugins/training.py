"""Loaded by every host process: `--external_plugins <this file> --callbacks save_and_stop`.

It corrects three defaults. The graceful exit of ms-swift also stops whenever the file /tmp/stop
exists, which any user of a shared machine can create; ms-swift runs Python files that come with a
model; and transformers orders checkpoints by the files' times, so that a clock that jumps makes it
remove the newest one.
"""

from __future__ import annotations

import os
from typing import Any

from swift.callbacks import callbacks_map
from swift.callbacks.deepspeed_elastic import GracefulExitCallback
from transformers import trainer_utils

from strlora_tuner import host_api

host_api.check("training")


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


host_api.replace("transformers.trainer:rotate_checkpoints", keep_newest_steps)
callbacks_map["save_and_stop"] = SaveAndStop
if os.environ.get("STRLORA_REMOTE_CODE") != "1":
    host_api.replace("swift.model.register:ModelLoader.default_trust_remote_code", False)
    host_api.replace("transformers.dynamic_module_utils:get_cached_module_file", refuse_remote_code)
