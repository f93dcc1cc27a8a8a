"""Peers of the benchmark: mixtures of LoRA experts written the obvious way, expert by expert."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Experts(nn.Module):
    """A linear layer with separate small A and B matrices, one pair an expert."""

    def __init__(self, base: nn.Linear, rank: int, experts: int) -> None:
        super().__init__()
        self.base = base
        like = dict(dtype=base.weight.dtype, device=base.weight.device)
        each = rank // experts
        self.down = nn.ModuleList(
            nn.Linear(base.in_features, each, bias=False, **like) for _ in range(experts)
        )
        self.up = nn.ModuleList(
            nn.Linear(each, base.out_features, bias=False, **like) for _ in range(experts)
        )
        for layer in self.up:
            nn.init.zeros_(layer.weight)
        self.scaling = 2.0


def _replace(model: nn.Module, targets: list[str], make) -> list[nn.Module]:
    made = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                layer = make(child)
                setattr(parent, name, layer)
                made.append(layer)
    return made


class NaiveMoeLora(_Experts):
    """MoELoRA: a dense softmax over experts for every token, experts run one by one."""

    def __init__(self, base: nn.Linear, rank: int, experts: int) -> None:
        super().__init__(base, rank, experts)
        like = dict(dtype=base.weight.dtype, device=base.weight.device)
        self.router = nn.Linear(base.in_features, experts, bias=False, **like)

    @classmethod
    def wrap(cls, model: nn.Module, targets: list[str], **shape: int) -> None:
        """Wraps the target layers of `model` in place."""
        _replace(model, targets, lambda base: cls(base, **shape))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, d_out) for x of (B, L, d_in)."""
        y = self.base(x)
        gates = self.router(x).softmax(-1)
        for index, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            y = y + self.scaling * gates[..., index, None] * up(down(x))
        return y


class _Store:
    """What the naive layers share: the instruction, and the side losses of a forward."""

    def __init__(self) -> None:
        self.instruction: Tensor | None = None
        self.losses: list[Tensor] = []
        self.layers: list[NaiveStrLora] = []

    def mean_loss(self) -> Tensor | float:
        """Returns the mean side loss over layers and forgets it."""
        losses, self.losses = self.losses, []
        return torch.stack(losses).mean() if losses else 0.0

    @torch.no_grad()
    def update_teachers(self) -> None:
        """Moves every moving average by one step."""
        for layer in self.layers:
            for name in ("query", "key", "prototypes"):
                getattr(layer, f"ema_{name}").lerp_(getattr(layer, name).float(), 0.001)


class NaiveStrLora(_Experts):
    """StrLoRA as a loop: each expert is skipped or run after asking the host whether it is used."""

    def __init__(
        self, base: nn.Linear, rank: int, experts: int, router_dim: int, hidden: int, store: _Store
    ) -> None:
        super().__init__(base, rank, experts)
        like = dict(dtype=base.weight.dtype, device=base.weight.device)
        self.store, self.top_k = store, 2
        self.task = nn.Linear(hidden, experts, bias=False, **like)
        self.query = nn.Parameter(torch.empty(router_dim, base.in_features, **like))
        self.key = nn.Parameter(torch.empty(router_dim, hidden, **like))
        self.prototypes = nn.Parameter(torch.randn(experts, router_dim, **like))
        nn.init.xavier_uniform_(self.query)
        nn.init.xavier_uniform_(self.key)
        for name in ("query", "key", "prototypes"):
            self.register_buffer(f"ema_{name}", getattr(self, name).detach().float().clone())

    @classmethod
    def wrap(cls, model: nn.Module, targets: list[str], **shape: int) -> _Store:
        """Wraps the target layers of `model` in place; returns what they share."""
        store = _Store()
        hidden = model.get_input_embeddings().embedding_dim
        store.layers = _replace(
            model, targets, lambda base: cls(base, hidden=hidden, store=store, **shape)
        )

        def remember(module: nn.Module, args: tuple, output: Tensor) -> None:
            # A decoding step embeds one token: the instruction of the prompt holds for it.
            if output.shape[1] > 1:
                store.instruction = output.detach().mean(1)

        model.get_input_embeddings().register_forward_hook(remember)
        return store

    def _scores(self, x: Tensor, query: Tensor, key: Tensor, prototypes: Tensor) -> Tensor:
        t = self.store.instruction.to(query.dtype)
        condition = F.linear(F.layer_norm(t, t.shape[-1:]), key)
        q = F.linear(x.to(query.dtype), query)
        unit = F.normalize(prototypes, dim=-1)
        keys = condition[:, None] * unit
        return torch.einsum("bld,bed->ble", q, keys) / math.sqrt(query.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, d_out) for x of (B, L, d_in)."""
        y = self.base(x)
        p = self.task(self.store.instruction.to(x.dtype)).softmax(-1)
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(self.top_k).indices, True)
        mask = ~kept[:, None]
        z = self._scores(x, self.query, self.key, self.prototypes)
        gates = z.masked_fill(mask, -1e9).softmax(-1)
        for index, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            # The wait for the device is part of what is measured: the packed layer has none.
            if gates[..., index].sum().item() == 0:
                continue
            y = y + self.scaling * gates[..., index, None] * up(down(x))
        if self.training:
            student = self._scores(x.detach(), self.query, self.key, self.prototypes)
            with torch.no_grad():
                teacher = self._scores(x, self.ema_query, self.ema_key, self.ema_prototypes)
            target = teacher.masked_fill(mask, -1e9).log_softmax(-1)
            learned = student.masked_fill(mask, -1e9).log_softmax(-1)
            self.store.losses.append((target.exp() * (target - learned)).sum(-1).mean().float())
        return y
