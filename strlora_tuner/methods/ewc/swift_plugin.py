"""The ms-swift side of EWC: `--external_plugins <this file> --callbacks ewc`.

A callback beside any tuner: it pulls the trained parameters to where the chunk before left them,
logs `ewc_loss`, and after the last step writes `ewc.safetensors` into the host's last checkpoint,
before the host completes that checkpoint. Options come through
`--model_kwargs '{"ewc_weight": 100, "ewc_decay": 1.0, "ewc_state": "<the adapter before>"}'`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from swift.dataset import LazyLLMDataset, load_dataset
from swift.utils import get_logger
from torch import Tensor, nn
from tqdm import tqdm

from strlora_tuner import host_api
from strlora_tuner.core.sharded import is_sharded, refuse_fsdp, whole
from strlora_tuner.methods.ewc.ewc import (
    EwcState,
    FisherEstimate,
    Penalty,
    drawn_samples,
    load_state,
    next_state,
    save_state,
    whole_shape,
)
from strlora_tuner.methods.ewc.options import Options

host_api.check("ewc")
logger = get_logger()


class EwcCallback(TrainerCallback):
    """Pulls, logs, and estimates the Fisher information when the chunk's last step is done."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self.options = Options.from_environment(os.environ)
        self.previous: EwcState | None = None
        self.penalty: Penalty | None = None
        self.value: Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads what the chunk before left; without an `ewc_state` this chunk is the first."""
        self.parameters = _trained(self.trainer.model)
        self._refuse()
        self.samples = self._own_samples()
        if self.options.state is None:
            logger.info("EWC: first chunk, no pull")
            return
        shapes = {name: whole_shape(parameter) for name, parameter in self.parameters.items()}
        options, acts = self.options, self.options.gradient
        self.previous = load_state(Path(self.options.state), shapes, options.fisher)
        self.penalty = Penalty(self.parameters, self.previous, options.weight, self._whole, acts)
        count = sum(shape.numel() for shape in shapes.values())
        does = "pulled to" if acts else "compared with, and not held to,"
        logger.info(f"EWC: {count:,} parameters are {does} {options.state}")

    def _refuse(self) -> None:
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            host_api.check("deepspeed")
        scaled = trainer.is_deepspeed_enabled and getattr(self.args, "fp16", False)
        if scaled and (self.options.gradient or self.options.fisher):
            raise ValueError(
                "--fp16 true with DeepSpeed: its dynamic loss scale cannot be applied to the "
                "penalty of EWC; use --bf16 true or --torch_dtype float32"
            )
        refuse_fsdp(trainer, "EWC")

    def _sharded(self) -> bool:
        return is_sharded(self.parameters.values())

    def _whole(self) -> AbstractContextManager[object]:
        return whole(self.parameters.values())

    def _own_samples(self) -> Any:
        """The chunk's samples, encoded one by one when asked for, without replayed ones."""
        if self.options.data is None:
            return self.trainer.train_dataset
        if not Path(self.options.data).is_file():
            raise ValueError(f"ewc_data = {self.options.data}: no such file of samples")
        samples, _ = load_dataset([self.options.data], strict=True)
        return LazyLLMDataset(samples, self.trainer.template.encode, strict=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepares the pulls of the step."""
        if self.penalty is None:
            return
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        self.value = self.penalty.begin_step(float(scaler.get_scale()) if scaler else 1.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Logs the penalty; after the chunk's last step, writes the state that it leaves."""
        if self.value is not None:
            self.trainer.custom_metrics["train"]["ewc_loss"].update(self.value)
        if state.global_step == state.max_steps:
            self._finish(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _finish(self, checkpoint: Path) -> None:
        if self.penalty is not None:
            self.penalty.remove()  # the Fisher information is of the loss alone
        fisher = self._fisher() if self.options.fisher else None
        with self._whole():
            state = next_state(self.previous, self.parameters, fisher, self.options.decay)
        if self.args.should_save:
            path = save_state(checkpoint, state)
            logger.info(f"EWC: wrote {path}")
        if dist.is_initialized():
            dist.barrier()  # the host completes the checkpoint next: the file must be in it

    def _fisher(self) -> dict[str, Tensor]:
        """Returns E[g^2] over the chunk's samples, one at a time, shared out over the processes."""
        trainer, model = self.trainer, self.trainer.model
        sharded = self._sharded()
        estimate = FisherEstimate(self.parameters)
        model.eval()  # no dropout, no checkpointing, and no statistics of the tuner are touched
        for index, counts in self._share(len(self.samples), even=sharded):
            loss = self._loss(index)
            if sharded:  # all processes must differentiate together, and through DeepSpeed
                engine = trainer.model_wrapped
                # Not scaled: the sample is no part of an accumulated batch.
                backward = partial(engine.backward, loss, scale_wrt_gas=False)
                estimate.add_from(backward, counts)
                engine.optimizer.zero_grad()
            else:
                estimate.add(loss)
        model.train()
        trainer.custom_metrics["eval"].clear()  # drop the accuracy of these extra forward passes
        return estimate.mean(dist.all_reduce if dist.is_initialized() else None)

    def _loss(self, index: int) -> Tensor:
        """The loss that the host gives one sample alone."""
        trainer = self.trainer
        model = trainer.model_wrapped if self._sharded() else trainer.model
        inputs = trainer._prepare_inputs(trainer.data_collator([self.samples[index]]))
        with (
            trainer.template.forward_context(trainer.model, inputs),
            trainer.compute_loss_context_manager(),
        ):
            return trainer.compute_loss(model, inputs)

    def _share(self, total: int, even: bool) -> Iterator[tuple[int, bool]]:
        """This process's samples, and whether they count.

        Args:
            even: give every process as many, the last ones of some for company only.
        """
        chosen = drawn_samples(total, self.options.samples, self.options.seed)
        rank, world = self.args.process_index, self.args.world_size
        own = [(index, True) for index in chosen[rank::world]]
        if even and len(own) * world < len(chosen):
            own.append((chosen[0], False))
        yield from tqdm(own, desc="EWC: Fisher information", disable=rank > 0, mininterval=5)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer moves, by name. Buffers (moving averages) are none."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


callbacks_map["ewc"] = EwcCallback
