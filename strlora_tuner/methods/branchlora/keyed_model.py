"""A PEFT model whose adapter keeps an image and a text key for each chunk."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from strlora_tuner.core.model import RoutedModel


class KeyedModel(RoutedModel):
    """Its `state_class` is ChunkKeys; the routing context is shown what the decoder reads."""

    def _register_hooks(self, model: nn.Module) -> list[RemovableHandle]:
        decoder = model.get_decoder()  # type: ignore[operator]
        handle = decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)
        return [*super()._register_hooks(model), handle]

    def _before_decoder(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict) -> None:
        embeddings = kwargs.get("inputs_embeds")
        if isinstance(embeddings, Tensor) and embeddings.shape[1] > 1:
            self.routing.on_inputs(embeddings)

    def after_optimizer_step(self) -> None:
        """Adds the step's features to the chunk's keys."""
        self.statistics().commit()

    def begin_chunk(self) -> None:
        """Keeps the keys of the chunk before, too, and begins its own."""
        super().begin_chunk()
        self.statistics().close_chunk()

    def chosen_chunks(self) -> list[int] | None:
        """Returns the chunk, from 1, whose keys are nearest to each row of the last prompt."""
        choices = self.statistics().choices
        return None if choices is None else (choices + 1).tolist()
