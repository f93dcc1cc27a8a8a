"""The layer under torch.compile: one graph, no compilation for every prompt, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import strlora_tuner
from tests.strlora_tuner.models import adapted, text_model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "gradients"), [(True, True), (False, True), (False, False)], ids=str
)
def test_the_layer_compiles_whole_and_twice_at_most(training, gradients):
    model = adapted(text_model()).train(training)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        tokens = 5 + seed % 3
        ids = torch.randint(2, 80, (3, tokens), generator=generator)
        x = torch.randn(3, tokens, 32, generator=generator)
        with torch.set_grad_enabled(gradients), strlora_tuner.instruction_ids(model, ids):
            eager = layer(x)
        with torch.set_grad_enabled(gradients), strlora_tuner.instruction_ids(model, ids):
            output = compiled(x)
            torch.testing.assert_close(output, eager, rtol=1e-5, atol=1e-5)
        if gradients:
            compare_gradients(layer, eager, output)
    # The second one makes sizes symbolic.
    assert counter.frame_count <= 2, "compiled anew for another prompt"


def compare_gradients(layer, eager, output) -> None:
    """Compares the gradients of all parameters of the layer under both outputs."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(eager.sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_decoding_steps_compile_once():
    model = adapted(text_model()).eval()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, 80, (2, 5), generator=generator)
        prompt, step = (torch.randn(2, n, 32, generator=generator) for n in (5, 1))
        outputs = []
        for run in (layer, compiled):
            with torch.no_grad(), strlora_tuner.instruction_ids(model, ids):
                outputs.append([run(prompt), run(step), run(step)])
        for wanted, found in zip(*outputs, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert counter.frame_count <= 4, "a prompt, its first step and a later one: no more graphs"
