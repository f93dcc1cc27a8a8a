"""The ms-swift side of slow weights: `--external_plugins <this file> --callbacks slow_weights`.

A callback beside any tuner: after every optimizer step it moves the average of the adapter's
weights, and puts it into every checkpoint before the host completes it. Options come through
`--model_kwargs '{"slow_weights_window": 0.1, "slow_weights_state": "<file of the average>"}'`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from swift.utils import get_logger
from torch import Tensor

from strlora_tuner import host_api
from strlora_tuner.core.sharded import refuse_fsdp, whole
from strlora_tuner.methods.slow_weights.average import SlowWeights, adapter_tensors
from strlora_tuner.methods.slow_weights.options import Options

logger = get_logger()


class SlowWeightsCallback(TrainerCallback):
    """Moves the average once a step and saves it wherever the host saves."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self.options = Options.from_environment(os.environ)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins the average, or goes on with the one that `slow_weights_state` names."""
        refuse_fsdp(self.trainer, "slow_weights")
        if self.trainer.is_deepspeed_enabled:
            host_api.check("deepspeed")
        # Of these only parameters are read again: the tuner replaces buffers as it trains.
        self.tensors = self._tensors()
        with whole(self.tensors.values()):
            self.slow = SlowWeights(self.tensors, self.options)
        count = sum(value.numel() for value in self.slow.average.values())
        source = self.options.state or "the fresh adapter"
        logger.info(f"slow weights: {count:,} numbers, {self.slow.steps} steps so far, {source}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the average; where the host is about to save, writes it into the checkpoint."""
        saves = control.should_save or state.global_step == state.max_steps
        with whole(self.tensors.values()):
            self.slow.step(self.tensors)
            if saves and self.args.should_save:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                self.slow.save(folder, self._tensors())
        if saves and dist.is_initialized():
            dist.barrier()  # the host completes the checkpoint next: the file must be in it

    def _tensors(self) -> dict[str, Tensor]:
        return adapter_tensors(self.trainer.accelerator.unwrap_model(self.trainer.model))


callbacks_map["slow_weights"] = SlowWeightsCallback
