"""A linear layer's LoRA experts, stacked: what the mixtures of all methods are built on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.precision import Float32Buffers, autocast_on, cast

if TYPE_CHECKING:
    from strlora_tuner.core.config import RoutedConfig


def several_processes() -> bool:
    """Whether this process trains or answers together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Returns the sum of what all processes hold; call it on all of them or on none."""
    if several_processes():
        values = values.clone()  # all_reduce writes into what it is given
        dist.all_reduce(values)
    return values


_NAMES = itertools.count()


def init_router(weight: Tensor) -> None:
    """Fills a router (rows, features) as nn.Linear fills its weight."""
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)


class Routed(NamedTuple):
    """How a layer routed the tokens of one forward pass.

    Attributes:
        gates: (B, L, E), the weight of every expert for every token.
        kept: (B, E) bool, the experts that the prompt can use.
        preference: (B, E), how much the prompt asked for each; they sum to 1.
        tokens: (B, L) float32, each token's share in a mean over all tokens; 0 for padding.
        share: (B), what the tokens of each row of `preference` make of that mean.

    Where a row has several segments, B are all segments in training, and the rows' last outside.
    """

    gates: Tensor
    kept: Tensor
    preference: Tensor
    tokens: Tensor
    share: Tensor


class ExpertBank(Float32Buffers):
    """Experts of one layer: A (r, d_in) stacked, B (d_out, r) side by side; y = B (g * (A x)).

    With E experts, expert e owns rows (columns) e * r/E to (e+1) * r/E. A method derives from it,
    adds its routers as parameters of its own (PEFT restores keys only one level deep, and DeepSpeed
    ZeRO-3 gathers what the running module owns), and says in :meth:`update` what the gates are.
    Buffers keep float32 for good.

    Attributes:
        recorded: how the last forward pass was routed, where recording was asked for.
        name: under which a sequence keeps what this bank read of it.
    """

    # Whether experts are chosen by the hidden states of the whole prompt.
    reads_states = False

    def __init__(self, d_in: int, d_out: int, config: RoutedConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.scaling = config.lora_alpha / config.r
        self.A = nn.Parameter(torch.empty(config.r, d_in))
        self.B = nn.Parameter(torch.empty(d_out, config.r))
        # As in the published code of StrLoRA, MoELoRA, SMoLoRA and HiDe-LLaVA.
        nn.init.normal_(self.A, std=0.01)
        nn.init.zeros_(self.B)  # a fresh adapter computes exactly what the base model does
        self.recorded: Routed | None = None
        # A bank knows no layer name, and one cache may hold what banks of several adapters read.
        self.name = next(_NAMES)

    def update(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the method's update; the arguments are those of :meth:`forward`."""
        raise NotImplementedError

    def forward(self, x: Tensor, result: Tensor, context: RoutingContext, adapter: str) -> Tensor:
        """Returns result + the routed update, (B, L, d_out), in the dtype of `result`.

        Gradients of side losses are already attached to what is returned.

        Args:
            x: (B, L, d_in), what the base layer read.
            result: (B, L, d_out), what it returned.
            context: what the layers of one forward pass share.
            adapter: this bank's adapter name.
        """
        if x.dtype != self.A.dtype and not autocast_on(x):
            x = x.to(self.A.dtype)
        return self.update(x, result, context, adapter)

    def hidden(self, x: Tensor) -> Tensor:
        """Returns A dropout(x), (B, L, r); with `dropout_masks: expert` each A_e has its own x."""
        rate = self.config.lora_dropout if self.training else 0.0
        if rate == 0:
            return F.linear(x, self.A)
        if self.config.dropout_masks == "shared":
            return F.linear(F.dropout(x, rate), self.A)
        experts = self.A.chunk(self.config.num_experts)
        return torch.cat([F.linear(F.dropout(x, rate), own) for own in experts], -1)

    def expert_activations(self, x: Tensor) -> Tensor:
        """Returns A_e x of all experts, without dropout, (B, L, r), for the routing record."""
        return F.linear(x.to(self.A.dtype), self.A)

    def output_weights(self) -> Tensor:
        """Returns B_e of all experts side by side, (d_out, r), for the routing record."""
        return self.B

    def projected(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        """Returns A dropout(x), (B, L, r), and router x, (B, L, rows of router).

        Without dropout it is one product, which reads x once.
        """
        if self.training and self.config.lora_dropout > 0:
            return self.hidden(x), F.linear(x, router)
        both = F.linear(x, torch.cat([self.A, router]))
        rank = self.A.shape[0]
        return both[..., :rank], both[..., rank:]

    @property
    def scale(self) -> float:
        """alpha / r, times E where the gates are to sum to E."""
        times = self.config.num_experts if self.config.gate_scale == "num_experts" else 1
        return self.scaling * times

    def combine(
        self, hidden: Tensor, result: Tensor, gates: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Returns result + scale * sum_e g_e B_e h_e with h (B, L, r), gates (B, L or 1, E).

        `out` is as in :meth:`_add`.
        """
        weights = (gates * self.scale).to(hidden.dtype).unsqueeze(-1)
        experts = hidden.view(*hidden.shape[:-1], gates.shape[-1], -1)
        return self._add(result, (experts * weights).view_as(hidden), out)

    def losses(self) -> dict[str, Tensor]:
        """Returns this layer's side losses of the last training forward, detached scalars by name.

        They are for reading: their gradient is already injected.
        """
        return {}

    def begin_chunk(self) -> None:
        """What the method does with a layer before another chunk trains it."""

    def freeze_untrained(self) -> None:
        """Freezes the parameters that the configuration does not train."""

    def routers(self) -> Iterable[nn.Parameter]:
        """Yields this bank's parameters beside A and B."""
        for name, parameter in self.named_parameters(recurse=False):
            if name not in ("A", "B"):
                yield parameter

    def _add(self, result: Tensor, weighted: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns result + B weighted: one product that adds up, where it can and where it pays.

        `out` (d_out, columns of `weighted`) stands for B where a method puts it together.
        """
        out = self.B if out is None else out
        # addmm wants operands of one dtype, and autocast sees to that.
        mixed = result.dtype != weighted.dtype and not autocast_on(result)
        if mixed or weighted.shape[1] == 1:
            return result + cast(F.linear(weighted, out), result.dtype)
        flat = torch.addmm(result.flatten(0, -2), weighted.flatten(0, -2), out.t())
        return flat.view_as(result)

    def record(
        self,
        context: RoutingContext,
        x: Tensor,
        gates: Tensor,
        kept: Tensor | None = None,
        preference: Tensor | None = None,
        index: Tensor | None = None,
    ) -> None:
        """Keeps in `recorded` how x (B, L, d_in) was routed, if recording was asked for.

        Without a choice of experts a prompt keeps all of them, and prefers them by its mean gates.
        `index` (B, L) says which rows of `kept` and `preference` a token took, if not its row's.
        """
        if not (context.recording or self.training):
            return
        weights = context.token_weights(x, "mask")  # in training also the sign that it has routed
        if not context.recording:
            return
        gates = gates.detach().expand(*x.shape[:2], -1)
        if kept is None:
            kept = torch.ones_like(gates[:, 0], dtype=torch.bool)
        if preference is None:
            preference = torch.einsum("ble,bl->be", gates.float(), weights)
            preference = preference / preference.sum(-1, keepdim=True).clamp_min(1e-30)
        share = weights.sum(1)
        if index is not None and self.training:
            share = weights.new_zeros(len(kept)).index_add(0, index.flatten(), weights.flatten())
        # Outside training a row counts once, by its last segment.
        elif index is not None:
            kept, preference = kept[index[:, -1]], preference[index[:, -1]]
        self.recorded = Routed(gates, kept, preference.detach(), weights, share)
