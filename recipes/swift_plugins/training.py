"""What every host process is told: `--external_plugins <this file> --callbacks save_and_stop`.

It mends three defaults. The graceful exit of ms-swift also stops whenever the file /tmp/stop
exists, which on a shared machine is anybody's; it runs Python files that come with a model; and
transformers takes the files' times for the order of checkpoints, so that a clock that jumps has it
remove the newest of them. It also puts the sample cache, where the recipe has one, before the host.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swift.callbacks import callbacks_map
from swift.callbacks.deepspeed_elastic import GracefulExitCallback
from swift.model.register import ModelLoader
from transformers import dynamic_module_utils, trainer, trainer_utils

from recipes.swift_plugins.sample_cache import FOLDER, LIMIT, install


class SaveAndStop(GracefulExitCallback):
    """On SIGTERM, SIGINT, SIGUSR1 or SIGUSR2: ends the step, saves a checkpoint, stops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shutdown_manager._stop_file = ""  # no file stops us


def refuse_remote_code(repo_id: str, module: str, *args: Any, **kwargs: Any) -> str:
    """Stands for the function through which transformers fetches a model's own Python files."""
    raise ValueError(
        f"{repo_id} wants to run its own Python file {module}. That is off: use a model that "
        "transformers knows by itself, or, if you trust its source, set model.remote_code: true"
    )


def keep_newest_steps(*args: Any, **kwargs: Any) -> None:
    """Stands for the function that removes old checkpoints: old is what has fewer steps."""
    trainer_utils.rotate_checkpoints(*args, **{**kwargs, "use_mtime": False})


vars(trainer)["rotate_checkpoints"] = keep_newest_steps
callbacks_map["save_and_stop"] = SaveAndStop
if os.environ.get("STRLORA_REMOTE_CODE") != "1":
    ModelLoader.default_trust_remote_code = False
    vars(dynamic_module_utils)["get_cached_module_file"] = refuse_remote_code
if FOLDER in os.environ:
    install(Path(os.environ[FOLDER]), float(os.environ[LIMIT]))
