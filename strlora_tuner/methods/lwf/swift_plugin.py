"""The ms-swift side of LwF: `--external_plugins <this file> --callbacks lwf`.

A callback beside any tuner: adds the distance from what the adapter of the chunk before says to the
loss of every micro-batch, and logs it as `lwf_loss`. Options come through
`--model_kwargs '{"lwf_weight": 1, "lwf_temperature": 2, "lwf_teacher": "<the adapter before>"}'`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from swift.utils import get_logger

from strlora_tuner import host_api
from strlora_tuner.core.sharded import is_sharded, refuse_fsdp
from strlora_tuner.methods.lwf.distillation import Teacher, distillation
from strlora_tuner.methods.lwf.options import Options

host_api.check("lwf")
logger = get_logger()


class LwfCallback(TrainerCallback):
    """Stands between the host and its loss in every chunk but the first."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self.options = Options.from_environment(os.environ)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads the teacher; without an `lwf_teacher` this chunk is the first."""
        if self.options.teacher is None:
            logger.info("LwF: first chunk, no teacher")
            return
        trainer = self.trainer
        refuse_fsdp(trainer, "LwF")
        if is_sharded(trainer.model.parameters()):
            raise ValueError(
                "--deepspeed zero3 with LwF: the teacher needs the whole model; use zero2 or DDP"
            )
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.teacher = Teacher(model, Path(self.options.teacher))
        self.loss_by_host = trainer.template.compute_sft_loss
        trainer.template.compute_sft_loss = self._loss
        logger.info(f"LwF: answers of {self.options.teacher} are followed")

    def _loss(
        self, model: Any, inputs: dict[str, Any], *, num_items_in_batch: Any = None, trainer: Any
    ) -> Any:
        """Stands for the template's function: the host's outputs, with the distance in the loss."""
        plain = {"num_items_in_batch": num_items_in_batch, "trainer": trainer}
        if not model.training:  # EWC's pass over the samples
            return self.loss_by_host(model, inputs, **plain)
        if "labels" not in inputs:
            raise ValueError(
                "LwF needs the labels beside the logits, and the host takes them out for "
                "label_smoothing_factor, loss_scale, enable_dft_loss and the like: leave those out"
            )
        # Before the student's pass: a layer that checkpointing runs again finds the last pass.
        wanted = self.teacher.logits(inputs)
        outputs = self.loss_by_host(model, inputs, **plain)
        labels = inputs["labels"]
        value = distillation(outputs.logits, wanted, labels, self.options.temperature)
        trainer.custom_metrics["train"]["lwf_loss"].update(value.detach())
        if num_items_in_batch is not None:  # a share of the step's tokens, as the host's own loss
            value = value * ((labels[:, 1:] != -100).sum() / num_items_in_batch)
        outputs.loss = outputs.loss + self.options.weight * value
        return outputs


callbacks_map["lwf"] = LwfCallback
