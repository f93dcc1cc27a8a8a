"""The PEFT model of SMoLoRA, which embeds the sentences that its layers read."""

from __future__ import annotations

from torch import Tensor

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.instruction.sentence import embed_text
from strlora_tuner.core.model import RoutedModel
from strlora_tuner.embedder_files import embedder_folder
from strlora_tuner.methods.smolora.layer import SeparableExperts
from strlora_tuner.methods.smolora.options import Options
from strlora_tuner.methods.smolora.tasks import task_label


class Model(RoutedModel):
    """A base model whose chosen linear layers carry SMoLoRA's experts."""

    bank_class = SeparableExperts

    def _add_state(self, adapter_name: str, config: RoutedConfig) -> None:
        embedder_folder(config.options().embedder)  # before anything is trained
        super()._add_state(adapter_name, config)
        self.routing.embed_sentence = self._embed_sentence

    def _embed_sentence(self, adapter: str, ids: tuple[int, ...]) -> Tensor:
        """Returns the embedding (width) of an instruction's token ids."""
        options: Options = self.routing.configs[adapter].options()
        text = self.tokenizer.decode(list(ids)).strip()
        return embed_text(text if options.sentence == "prompt" else task_label(text), options)
