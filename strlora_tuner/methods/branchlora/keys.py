"""An image and a text key for each chunk, and how near a prompt's image and text are to them.

BranchLoRA takes the router of the nearest chunk, HiDe-LLaVA weighs the chunks' LoRAs. BranchLoRA's
published keys minimise 1 - cos(key, feature), summed over a chunk's samples, with the features
fixed. The minimiser is known: the direction of the sum of unit features. Here keys are that sum, so
they are exact, need no learning rate, and the weight of the alignment loss cannot matter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from strlora_tuner.core.expert_bank import sum_over_processes
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import Float32Buffers


class ChunkKeys(Float32Buffers):
    """Keys of earlier chunks, `keys` (chunks, 2, H), and the sums of the current one, (2, H).

    Feature 0 is the mean input embedding of the image's tokens, as the language model reads them;
    feature 1 the instruction vector. Either is zero where a prompt has none. A chunk's key is the
    direction of their sum over its prompts.
    """

    # Whether a prompt's features have norm 1 in the sum.
    unit_features = True
    keys: Tensor
    sums: Tensor

    def __init__(self, hidden: int, config: Any) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(config.past_chunks, 2, hidden))
        self.register_buffer("sums", torch.zeros(2, hidden))
        self._pending: Tensor | None = None
        self._seen: Tensor | None = None
        self._near: tuple[Tensor, Tensor] | None = None
        self.choices: Tensor | None = None  # of the rows of the last prompt

    @torch.no_grad()
    def observe(self, context: RoutingContext, adapter: str, x: Tensor) -> None:
        """Counts the prompt's features, once however many layers call it."""
        instruction = context.instruction(adapter, x)
        # All layers share one vector a pass; under checkpointing they ask once more in backward.
        if self._seen is instruction or not context.in_forward:
            return
        self._seen = instruction
        found, exist = features(context, adapter, x), context.exist(adapter)
        found = F.normalize(found, dim=-1) if self.unit_features else found
        found = (found if exist is None else found[exist]).sum(0)
        self._pending = found if self._pending is None else self._pending + found

    @torch.no_grad()
    def commit(self) -> None:
        """Adds what all processes have counted; call once after an optimizer step."""
        if self._pending is not None:
            self.sums += sum_over_processes(self._pending)
            self._pending = None

    @torch.no_grad()
    def similarity(self, context: RoutingContext, adapter: str, x: Tensor) -> Tensor:
        """Returns the cosines of every segment's features and the chunks' keys, (S, chunks, 2).

        The newest chunk is the last. `choices` is then the chunk with the largest sum, 0 the first.
        """
        instruction = context.instruction(adapter, x)
        if self._near is None or self._near[0] is not instruction:
            known = F.normalize(torch.cat([self.keys, self.sums[None]]), dim=-1)
            found = F.normalize(features(context, adapter, x), dim=-1)
            near = torch.einsum("bmh,cmh->bcm", found, known)
            self._near = instruction, near
            self.choices = context.last_of_rows(adapter, near.sum(-1).argmax(-1))
        return self._near[1]

    @torch.no_grad()
    def close_chunk(self) -> None:
        """Makes the sums the keys of a past chunk and starts them anew."""
        self.keys = torch.cat([self.keys, F.normalize(self.sums, dim=-1)[None]])
        self.sums.zero_()


def features(context: RoutingContext, adapter: str, x: Tensor) -> Tensor:
    """Returns image and text feature of every segment, (S, 2, H) float32."""
    image = context.image_vectors(adapter, x)
    return torch.stack([image, context.instruction(adapter, x)], 1)
