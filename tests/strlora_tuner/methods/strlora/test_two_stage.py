"""The fast forms of routing equal the plain ones: compiled, in decoding, under autocast."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor, nn

from strlora_tuner import StrLoraConfig
from strlora_tuner.core.autograd import shared_projection
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.methods.strlora.layer import MixtureOfExperts
from strlora_tuner.methods.strlora.two_stage import Projected, Routers, Settings, route

SETTINGS = [
    Settings(4, 2, 2, "prior", True, 2.0, 1.0, "gate"),
    pytest.param(
        Settings(4, 2, 2, "straight_through", True, 2.0, 0.5, "gate_topk"), marks=pytest.mark.slow
    ),
    pytest.param(Settings(4, 3, 1, "frozen", False, 0.5, 1.0, "scores"), marks=pytest.mark.slow),
]


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def run_route(function, settings: Settings, batch: int, length: int) -> list[Tensor]:
    """Returns the outputs and all gradients of one training forward on fixed random tensors."""
    torch.manual_seed(batch * 100 + length)
    rank, width, hidden = 16, 8, 32
    sizes = [(batch, length, n) for n in (rank, width, width, width)]
    projected = Projected(*(leaf(*size) for size in sizes))
    routers = Routers(leaf(4, hidden), leaf(width, hidden), leaf(4, width))
    teacher = Routers(torch.randn(4, hidden), torch.randn(width, hidden), torch.randn(4, width))
    tokens = torch.rand(batch, length).softmax(-1) / batch
    weighted, gates, prompt, value = function(
        projected, torch.randn(batch, hidden), routers, teacher, tokens, settings
    )
    (weighted.square().sum() + 3 * value).backward()
    inputs = [*projected[:3], *routers]
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in inputs]
    return [weighted.detach(), gates.detach(), prompt.kept.float(), value.detach(), *gradients]


class CompileCounter:
    """Counts the graphs that dynamo captures inside each of its `with` blocks."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def _graphs(self) -> int:
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def __enter__(self) -> None:
        self.before = self._graphs()

    def __exit__(self, *failure: object) -> None:
        self.counts.append(self._graphs() - self.before)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_compiled_routing_equals_plain_and_sizes_are_symbolic(settings: Settings) -> None:
    torch._dynamo.reset()
    fused = torch.compile(route, dynamic=True, fullgraph=True, backend="aot_eager")
    compiled = CompileCounter()
    for batch, length in ((2, 9), (3, 17)):
        with compiled:
            found = run_route(fused, settings, batch, length)
        for ours, theirs in zip(found, run_route(route, settings, batch, length), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert compiled.counts == [1, 0], "another batch size or length must not compile anew"


class Routed(nn.Module):
    """A mixture on its own, with its context."""

    def __init__(self, dtype: torch.dtype = torch.float32, **options) -> None:
        super().__init__()
        config = StrLoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, router_dim=8, instruction_norm="none", **options
        )
        self.mixture = MixtureOfExperts(24, 40, 32, config)
        with torch.no_grad():
            self.mixture.B.normal_()
            self.mixture.A.normal_()
        self.mixture.to(dtype)
        self.context = RoutingContext()
        self.context.configs["default"], self.context.num_layers = config, 1

    def forward(self, x: Tensor) -> Tensor:
        result = torch.zeros(*x.shape[:2], 40, dtype=x.dtype)
        return self.mixture(x, result, self.context, "default")


@pytest.mark.parametrize("token_top_k", [1, 2])
@pytest.mark.parametrize("task_router", ["frozen", "straight_through", "prior"])
@pytest.mark.parametrize("repeat", [1, 3])
def test_decoding_equals_the_whole_sequence(
    token_top_k: int, task_router: str, repeat: int
) -> None:
    torch.manual_seed(0)
    layer = Routed(token_top_k=token_top_k, task_router=task_router).eval()
    for _ in range(2):  # a second prompt must not meet what the first one left behind
        layer.context.set_instruction(torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.bool))
        x = torch.randn(2 * repeat, 7, 24)
        with torch.no_grad():
            whole = layer(x)
            steps = torch.cat([layer(x[:, i : i + 1]) for i in range(7)], dim=1)
        torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)
        differs = (whole[0] - layer(x[:, :, torch.randperm(24)])[0]).abs().max()
        assert differs > 0.1


def test_scores_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer = Routed(task_router="prior").train()
    layer.context.set_instruction(torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.bool))
    layer.context.recording = True
    # Values that bfloat16 holds exactly: products alone may round.
    x = torch.randint(-2, 3, (2, 5, 24)).float()
    with torch.no_grad():
        for name in ("A", "query"):
            getattr(layer.mixture, name).copy_(
                torch.randint(-1, 2, getattr(layer.mixture, name).shape)
            )
    layer(x)
    wanted = layer.mixture.recorded[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    torch.testing.assert_close(layer.mixture.recorded[0], wanted, rtol=0, atol=1e-6)


def test_the_shared_product_keeps_one_activation() -> None:
    x, a, query = leaf(2, 5, 24), leaf(16, 24), leaf(8, 24)
    hidden, queries, detached, taught = shared_projection(x, a, query, torch.randn(8, 24))
    storages = {t.untyped_storage().data_ptr() for t in (hidden, queries, detached, taught)}
    assert len(storages) == 1
    (queries.sum() + 2 * detached.sum()).backward()
    torch.testing.assert_close(x.grad, query.detach().sum(0).expand_as(x))
    torch.testing.assert_close(query.grad, 3 * x.detach().sum((0, 1)).expand_as(query))
