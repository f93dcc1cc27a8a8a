"""The fused layer against the float64 loop: outputs, stability loss, and every gradient."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strlora_tuner import StrLoraConfig
from strlora_tuner.instruction import InstructionStatistics, RoutingContext
from strlora_tuner.layer import StrLoraLinear
from tests.strlora_tuner.reference import Weights, routed_update

NAMES = ("A", "B", "query", "key", "prototypes", "task")


@st.composite
def cases(draw):
    experts = draw(st.integers(1, 5))
    top_k = draw(st.integers(1, experts))
    options = dict(
        num_experts=experts,
        top_k=top_k,
        token_top_k=draw(st.integers(1, top_k)),
        router_dim=draw(st.integers(1, 7)),
        task_router=draw(st.sampled_from(["frozen", "straight_through", "prior"])),
        gate_scale=draw(st.sampled_from(["one", "num_experts"])),
        stability_weight=draw(st.sampled_from([0.1, 0.7])),
        stability_temperature=draw(st.sampled_from([1.0, 0.5])),
        padding=draw(st.sampled_from(["mask", "include"])),
        instruction_norm="none",
        r=experts * draw(st.integers(1, 3)),
        lora_alpha=draw(st.sampled_from([4.0, 16.0])),
        lora_dropout=0.0,
    )
    sizes = draw(st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(3, 9)))
    return options, sizes, draw(st.integers(0, 10_000))


def build(options, sizes, seed, dtype=torch.float32):
    """Returns the layer, its context, inputs and the reference's weights (separate leaves)."""
    batch, tokens, width = sizes
    torch.manual_seed(seed)
    config = StrLoraConfig(target_modules=["x"], **options)
    context = RoutingContext()
    context.configs, context.num_layers = {"default": config}, 1
    context.statistics = {"default": InstructionStatistics(width)}
    base = nn.Linear(width, width + 1, bias=False)
    layer = StrLoraLinear(base, "default", config, context, width).to(dtype)
    mixture = layer.mixture("default")
    with torch.no_grad():
        for name in (*NAMES, "ema_query", "ema_key", "ema_prototypes"):
            getattr(mixture, name).normal_()
    x = torch.randn(batch, tokens, width, dtype=dtype)
    lengths = torch.randint(1, tokens + 1, (batch,))
    mask = torch.arange(tokens)[None] < lengths[:, None]
    instructions = torch.randn(batch, tokens, width)
    context.give(instructions.to(dtype), torch.ones(batch, tokens, dtype=torch.bool))
    context.begin_forward(mask.long(), training=True)
    leaves = {
        name: getattr(mixture, name).detach().double().clone().requires_grad_(name in NAMES)
        for name in (*NAMES, "ema_query", "ema_key", "ema_prototypes")
    }
    return layer, mixture, config, x, mask, instructions.to(dtype).double().mean(1), leaves


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases())
def test_layer_equals_the_reference(case):
    options, sizes, _ = case
    layer, mixture, config, x, mask, vectors, leaves = build(*case)
    layer.train()
    x.requires_grad_(True)
    upstream = torch.randn(sizes[0], sizes[1], sizes[2] + 1)
    output = layer(x)
    (output * upstream).sum().backward()

    wide = x.detach().double().requires_grad_(True)
    real = mask.double() if options["padding"] == "mask" else torch.ones_like(mask).double()
    update, divergence = routed_update(
        wide, vectors, Weights(**leaves), config.options(), real / real.sum()
    )
    expected = wide @ layer.base_layer.weight.detach().double().T + update
    stability = options["stability_weight"] * divergence
    ((expected * upstream.double()).sum() + stability).backward()

    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixture.divergence.double(), stability, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2e-3, atol=2e-3)
    for name in NAMES:
        found, wanted = getattr(mixture, name).grad, leaves[name].grad
        if name == "task" and options["task_router"] == "frozen":
            assert found is None
            continue
        found = torch.zeros_like(getattr(mixture, name)) if found is None else found
        wanted = torch.zeros_like(leaves[name]) if wanted is None else wanted
        torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=2e-3, msg=name)


def test_bfloat16_layer_stays_close_and_keeps_a_float32_teacher():
    case = (dict(num_experts=4, top_k=2, token_top_k=2, router_dim=6, r=8, lora_dropout=0.0,
                 instruction_norm="none"), (2, 5, 16), 3)  # fmt: skip
    layer, mixture, config, x, mask, vectors, leaves = build(*case, dtype=torch.bfloat16)
    assert mixture.query.dtype == torch.bfloat16
    assert mixture.ema_query.dtype == torch.float32
    layer.train()
    output = layer(x)
    wide = {name: tensor.detach() for name, tensor in leaves.items()}
    update, _ = routed_update(
        x.double(), vectors, Weights(**wide), config.options(), mask.double() / mask.sum()
    )
    expected = x.double() @ layer.base_layer.weight.double().T + update
    assert (output.double() - expected).norm() / expected.norm() < 0.02


def test_moving_average_after_n_steps():
    _, mixture, *_ = build(
        dict(num_experts=2, top_k=1, token_top_k=1, router_dim=4, r=4, ema_decay=0.9), (1, 2, 5), 0
    )
    expected = mixture.ema_query.double().clone()
    for step in range(5):
        with torch.no_grad():
            mixture.query.add_(0.1 * (step + 1))
        mixture.update_teacher()
        expected = 0.9 * expected + 0.1 * mixture.query.detach().double()
    torch.testing.assert_close(mixture.ema_query.double(), expected, rtol=1e-5, atol=1e-6)


def test_moving_average_moves_under_bfloat16_weights():
    _, mixture, *_ = build(
        dict(num_experts=2, top_k=1, token_top_k=1, router_dim=4, r=4), (1, 2, 5), 0, torch.bfloat16
    )
    before = mixture.ema_query.clone()
    mixture.update_teacher()
    moved = (mixture.ema_query - before).abs()
    assert (moved > 0).all(), "decay 0.999 must move the teacher in every component"


def test_released_preset_skips_gradients_of_unused_experts():
    from strlora_tuner.routing import token_gates

    scores = torch.tensor([[[3.0, 1.0, -1e30], [2.0, 0.5, -1e30]]], requires_grad=True)
    weights = torch.tensor([1.0, 5.0, 2.0])
    (token_gates(scores, 1, 2, unused_gradient=True) * weights).sum().backward()
    dense = scores.grad.clone()
    scores.grad = None
    gates = token_gates(scores, 1, 2, unused_gradient=False)
    assert gates.detach().tolist() == [[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]
    (gates * weights).sum().backward()
    soft = scores.detach().softmax(-1)
    expected = soft[..., :1] * (torch.tensor([1.0, 0.0, 0.0]) - soft)  # d soft_0 / d z
    torch.testing.assert_close(scores.grad, expected)
    assert not torch.allclose(dense, scores.grad)
