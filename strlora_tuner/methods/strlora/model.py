"""The PEFT model of StrLoRA."""

from __future__ import annotations

import torch
from torch import Tensor

from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora.layer import MixtureOfExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry mixtures routed in two stages."""

    bank_class = MixtureOfExperts
    state_class = InstructionStatistics

    def losses(self) -> dict[str, Tensor]:
        """Returns the stability loss; zero where it is off."""
        return super().losses() or {"stability_loss": torch.zeros(())}

    def after_optimizer_step(self) -> None:
        """Merges the step's instruction statistics and moves the teacher by one step.

        A teacher that never moved stays a copy of its routers, in what is saved too: an adapter is
        then the same whether or not its chunk was interrupted.
        """
        adapter = self.active_adapters[0]
        statistics = self.statistics(adapter)
        mixtures = [mixture for _, mixture in self.mixtures(adapter)]
        stability_on = any(mixture.stability_on for mixture in mixtures)
        statistics.commit(self._statistics_share() if stability_on else None)
        if stability_on:
            for mixture in mixtures:
                mixture.update_teacher()
            statistics.teacher_steps += 1
        elif int(statistics.teacher_steps) == 0:
            for mixture in mixtures:
                mixture.start_teacher()

    def _statistics_share(self) -> float | None:
        """How much a step may move mean and scale of the instructions, see `commit`."""
        config = self.own_config
        if not config.goes_on:
            return None  # the first chunk has no other statistics than its own
        return {"count": None, "slow": 1 - config.ema_decay, "hold": 0.0}[
            config.instruction_statistics
        ]

    def after_load(self, adapter_name: str) -> None:
        """A loaded adapter that carries no teacher gets one: a copy of its routers."""
        steps = self.statistics(adapter_name).teacher_steps
        if steps.device.type == "meta" or steps.item() > 0:
            return
        for _, mixture in self.mixtures(adapter_name):
            if mixture.query.numel() and mixture.query.device.type != "meta":
                mixture.start_teacher()

    def check_alive(self) -> None:
        """Raises RuntimeError when no prompt has an instruction, or the stability loss is dead."""
        self.check_instructions()
        for name, mixture in self.mixtures():
            if mixture.stability_on and mixture.divergence is None:
                raise RuntimeError(f"the stability loss is on but layer {name} computed none")
