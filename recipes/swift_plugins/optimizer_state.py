"""Adam's moments of the chunk before, where the environment names its file: they go on.

By itself the host begins every chunk with an optimizer that knows nothing. Resumed from a
checkpoint inside a chunk it reads that checkpoint's state, and no file is named.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from swift.callbacks.base import TrainerCallback
from swift.utils import get_logger

from strlora_tuner.core.sharded import refuse_fsdp
from strlora_tuner.options import OPTIMIZER_STATE

logger = get_logger()


class KeepOptimizerState(TrainerCallback):
    """Gives the optimizer the state that `STRLORA_OPTIMIZER_STATE` names; rates stay its own."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Loads the state.

        Raises:
            ValueError: it is of other parameters, or lies in pieces (DeepSpeed, FSDP).
        """
        if OPTIMIZER_STATE not in os.environ:
            return
        refuse_fsdp(self.trainer, "schedule.later.optimizer_state: keep")
        if self.trainer.is_deepspeed_enabled:
            raise ValueError(
                "schedule.later.optimizer_state: keep under DeepSpeed: each process holds a part "
                "of the moments; use DDP (launcher.deepspeed: null) or optimizer_state: fresh"
            )
        path = Path(os.environ[OPTIMIZER_STATE])
        # On the CPU first: the optimizer copies it to where its parameters are.
        saved = torch.load(path, map_location="cpu", weights_only=True)
        count = give_state(self.trainer.optimizer, saved, path)
        logger.info(f"optimizer: the state of {count} parameters goes on, {path}")


def give_state(optimizer: Any, saved: dict[str, Any], path: Path) -> int:
    """Gives an optimizer the moments in `saved`; returns of how many parameters.

    Raises:
        ValueError: they are of other parameters than the optimizer's.
    """
    own = optimizer.state_dict()["param_groups"]
    shapes = [tuple(value.shape) for group in optimizer.param_groups for value in group["params"]]
    moments = [saved["state"].get(number, {}).get("exp_avg") for number in range(len(shapes))]
    found = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in own]
    other = [
        (tuple(moment.shape), shape)
        for moment, shape in zip(moments, shapes, strict=True)
        if moment is not None and tuple(moment.shape) != shape
    ]
    if found != here or other:
        what = f"{other[0][0]} beside {other[0][1]}" if found == here else f"{found} beside {here}"
        raise ValueError(
            f"{path} is the state of other parameters than those that train now ({what}): set "
            "schedule.later.optimizer_state: fresh"
        )
    # Moments without the groups of the file: those hold the rates of the chunk before.
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
    return len(saved["state"])
