"""The PEFT model of the oracle, which looks the task of every prompt up."""

from __future__ import annotations

import torch
from torch import Tensor

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.methods.embedded_text import task_label
from strlora_tuner.methods.oracle.layer import TaskExperts


class Model(RoutedModel):
    """A base model whose chosen linear layers carry an expert a task."""

    bank_class = TaskExperts

    def _add_state(self, adapter_name: str, config: RoutedConfig) -> None:
        super()._add_state(adapter_name, config)
        self.routing.embed_sentence = self._task

    def _task(self, adapter: str, ids: tuple[int, ...]) -> Tensor:
        """Returns 1 at the number of the task that owns an instruction's token ids, (T).

        Raises:
            ValueError: the text is in no table, or there are more tasks than experts.
        """
        label = task_label(self.tokenizer.decode(list(ids)).strip())
        number, experts = int(label.split()[0]), self.routing.configs[adapter].num_experts
        if number >= experts:
            raise ValueError(
                f"task {label.partition(' ')[2]!r} is the stream's number {number + 1}, and "
                f"tuner.task_experts = {experts}: start the run with at least as many as tasks"
            )
        found = torch.zeros(experts)
        found[number] = 1
        return found
