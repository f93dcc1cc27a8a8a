"""Fixed gates: y = W x + s B (g * A x), g a fixed function of the instruction.

    sign   g = sign(G u)                                          +1 for 0
    topk   g = E / k on the k largest of G u, else 0

u is the instruction vector, centred and scaled by its running mean and scale; G is a random map of
the layer's own that never trains. A constant instruction makes it plain LoRA, up to signs that
stand still; u = 0 (no instruction) is plain LoRA itself under `sign`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import ExpertBank
from strlora_tuner.core.gating import at
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import cast, float32_scores
from strlora_tuner.methods.strlora_signed.gate_map import (
    check_number,
    draw_map,
    draw_seed,
    fixed_gates,
)

if TYPE_CHECKING:
    from strlora_tuner.methods.strlora_signed.config import Config


class SignedExperts(ExpertBank):
    """E = r / expert_rank experts; the buffers hold G's seed and its check number.

    G itself is drawn when it is first needed. What a prompt fixes is computed once a prompt: a
    token costs what it costs in plain LoRA.
    """

    map_seed: Tensor
    map_check: Tensor

    def __init__(self, d_in: int, d_out: int, hidden: int, config: Config) -> None:
        super().__init__(d_in, d_out, config)
        self.vector_width = config.vector_width(hidden)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as PEFT's LoRA
        seed = draw_seed()
        # On meta, where files are compared and parameters counted, no seed has a value.
        check = torch.zeros_like(seed)
        if seed.device.type != "meta":
            check = torch.tensor(check_number(self._draw(int(seed))))
        self.register_buffer("map_seed", seed)
        self.register_buffer("map_check", check)
        self._map: Tensor | None = None
        self._fixed: tuple[Tensor, Tensor, Tensor] | None = None

    def _draw(self, seed: int) -> Tensor:
        return draw_map(seed, self.config.num_experts, self.vector_width)

    def take_map(self, other: SignedExperts) -> None:
        """Has the map of another layer from now on."""
        self.map_seed.copy_(other.map_seed)
        self.map_check.copy_(other.map_check)
        self.forget_map()

    def forget_map(self) -> None:
        """Has the map drawn anew from the seed: another one may have been loaded."""
        self._map = self._fixed = None

    def gate_map(self) -> Tensor:
        """Returns G, (E, H) int8, drawn from the seed.

        Raises:
            ValueError: this machine draws other signs from the seed than the one that trained.
        """
        if self._map is None:
            signs = self._draw(int(self.map_seed))
            if check_number(signs) != int(self.map_check):
                raise ValueError(
                    f"map_seed {int(self.map_seed)} gives another random map here (check number "
                    f"{check_number(signs)}, the adapter's {int(self.map_check)}): the adapter's "
                    "file was changed, or this PyTorch draws other numbers; use the version that "
                    "trained it, or bring back the file"
                )
            self._map = signs.to(self.A.device)
        return self._map

    def gates(self, instruction: Tensor) -> Tensor:
        """Returns the gates (S, E) float32 of instruction vectors (S, H)."""
        kept = None if self.config.gate == "sign" else self.config.kept_experts
        with float32_scores(instruction):
            return fixed_gates(self.gate_map(), instruction.float(), kept)

    @property
    def last_gates(self) -> Tensor | None:
        """The gates (S, E) of the last prompt; None before any."""
        return None if self._fixed is None else self._fixed[1]

    def row_weights(self, gates: Tensor) -> Tensor:
        """Returns what each row of A is multiplied with, (S, r): its gate and alpha / r."""
        return gates.repeat_interleave(self.config.r // gates.shape[-1], -1) * self.scaling

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + s B (g * A x), (B, L, d_out)."""
        instruction = context.instruction(adapter, x)
        index = context.index(adapter, x)
        fixed = self._fixed
        # A new prompt brings a new tensor.
        if fixed is None or fixed[0] is not instruction:
            gates = self.gates(instruction)
            fixed = self._fixed = instruction, gates, self.row_weights(gates)
        _, gates, weights = fixed
        if context.recording:
            # Turned over is used, too, by all alike: what tells instructions apart is recorded.
            used = gates > 0
            share = torch.where(used.any(-1, keepdim=True), used, 1.0)
            share = share / share.sum(-1, keepdim=True)
            self.record(context, x, at(share, index), used, share, index)
        hidden = self.hidden(x)
        return self._add(result, hidden * cast(at(weights, index), hidden.dtype))
