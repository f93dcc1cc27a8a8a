"""Every method's layer against a float64 loop over samples, tokens and experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.layer import RoutedLinear
from strlora_tuner.methods import config_class
from strlora_tuner.methods.branchlora.keys import ChunkKeys
from strlora_tuner.methods.hide_llava.layer import Anchors
from tests.strlora_tuner.methods import methods_reference as reference

SAMPLES, TOKENS, D_IN, D_OUT, HIDDEN = 3, 5, 7, 6, 9


class Layer:
    """One routed layer with random weights, a batch for it, and float64 copies of its tensors."""

    def __init__(self, method: str, seed: int = 0, **options):
        torch.manual_seed(seed)
        kind = config_class(method)
        model_class = kind.model_class()
        self.config = kind(target_modules=["x"], lora_dropout=0.0, **options)
        self.context = RoutingContext()
        self.context.configs, self.context.num_layers = {"default": self.config}, 1
        make = lambda d_in, d_out: model_class.new_bank(d_in, d_out, HIDDEN, self.config)  # noqa: E731
        base = nn.Linear(D_IN, D_OUT, bias=False)
        self.layer = RoutedLinear(base, "default", self.config, self.context, make).train()
        self.bank = self.layer.mixture("default")
        self.fill()
        self.x = torch.randn(SAMPLES, TOKENS, D_IN)
        self.upstream = torch.randn(SAMPLES, TOKENS, D_OUT)
        self.mask = torch.ones(SAMPLES, TOKENS, dtype=torch.long)
        self.mask[0, 3:] = self.mask[1, 4:] = 0

    @torch.no_grad()
    def fill(self) -> None:
        """Gives every tensor of the bank a random value, and the reference a copy of it."""
        for tensor in self.bank.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
        self.leaves = {k: v.double().clone() for k, v in self.bank.state_dict().items()}
        for name, _ in self.bank.named_parameters():
            self.leaves[name].requires_grad_(True)

    def run(self):
        """Returns the layer's output and x's gradient after a forward and backward pass."""
        self.context.begin_forward(self.mask, training=self.layer.training)
        x = self.x.clone().requires_grad_(True)
        output = self.layer(x)
        output.backward(self.upstream)
        self.context.end_forward()
        return output, x.grad

    def check(self, reference_update, loss=None):
        """Compares output and all gradients; `reference_update` maps (leaves, x) to the update.

        `loss` is a scalar of the reference that is added to what is differentiated.
        """
        x = self.x.double().requires_grad_(True)
        wanted = x @ self.layer.base_layer.weight.detach().double().T
        wanted = wanted + reference_update(self.leaves, x)
        total = (wanted * self.upstream.double()).sum()
        (total if loss is None else total + loss(self.leaves)).backward()
        output, grad_x = self.run()
        close(output, wanted, "output")
        close(grad_x, x.grad, "x")
        for name, parameter in self.bank.named_parameters():
            expected = self.leaves[name].grad
            if expected is None:
                assert parameter.grad is None or not parameter.grad.any(), name
                continue
            assert expected.abs().sum() > 0, f"{name}: the reference has no gradient"
            close(parameter.grad, expected, name)


def close(found, wanted, what):
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < 1e-5, f"{what}: relative error {error}"


@pytest.mark.parametrize("gate_scale", ["one", "num_experts"])
@pytest.mark.parametrize("num_experts", [2, 4])
def test_moelora(num_experts, gate_scale):
    layer = Layer("moelora", r=8, lora_alpha=16, num_experts=num_experts, gate_scale=gate_scale)
    times = num_experts if gate_scale == "num_experts" else 1
    layer.check(lambda w, x: reference.moelora(x, w, num_experts, 2 * times))


@pytest.mark.parametrize("gate_scale", ["one", "num_experts"])
@pytest.mark.parametrize("num_experts", [4, 8])
def test_smolora(num_experts, gate_scale):
    layer = Layer("smolora", r=8, lora_alpha=16, num_experts=num_experts, gate_scale=gate_scale)
    layer.config.turn_start, layer.config.turn_end = [90], [91]
    with torch.no_grad():  # scores of a size that softmax does not saturate on
        layer.bank.fusion.mul_(0.05)
        layer.bank.text.mul_(0.1)
    layer.leaves = {k: v.double().clone() for k, v in layer.bank.state_dict().items()}
    for leaf in layer.leaves.values():
        leaf.requires_grad_(True)
    ids = torch.tensor([[90, 3, 91, 0, 0], [90, 3, 5, 91, 0], [90, 4, 6, 91, 7]])
    vectors = {(3,): torch.randn(384), (3, 5): torch.randn(384), (4, 6): torch.randn(384)}
    layer.context.embed_sentence = lambda adapter, row: vectors[row]
    layer.context.on_prompt(ids, torch.randn(SAMPLES, TOKENS, HIDDEN))
    counted = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]).bool()
    sentences = torch.stack(list(vectors.values())).double()
    scale = 2.0 * (num_experts if gate_scale == "num_experts" else 1)
    layer.check(lambda w, x: reference.smolora(x, w, counted, sentences, scale))


def test_oracle():
    layer = Layer("oracle", r=4, lora_alpha=8, task_experts=3)
    layer.config.turn_start, layer.config.turn_end = [90], [91]
    assert layer.bank.A.shape == (12, D_IN), "each task has the full rank"
    told = {(3,): 2, (3, 5): 0, (4, 6): 2}
    layer.context.embed_sentence = lambda adapter, row: torch.eye(3)[told[row]]
    ids = torch.tensor([[90, 3, 91, 0, 0], [90, 3, 5, 91, 0], [90, 4, 6, 91, 7]])
    layer.context.on_prompt(ids, torch.randn(SAMPLES, TOKENS, HIDDEN))
    layer.check(lambda w, x: reference.oracle(x, w, [2, 0, 2], 2.0))
    assert not layer.bank.A.grad[4:8].any(), "no sample was of task 1"


@pytest.mark.parametrize("method", ["moelora", "smolora"])
@pytest.mark.parametrize("masks", ["shared", "expert"])
def test_each_expert_has_the_dropout_that_it_is_to_have(method, masks):
    """A_e (m_e * x) in float64 with the masks that the same seed draws, one or one an expert."""
    layer = Layer(method, r=8, lora_alpha=16, num_experts=4, dropout_masks=masks)
    layer.config.lora_dropout = 0.5
    torch.manual_seed(7)
    found = layer.bank.train().hidden(layer.x)
    torch.manual_seed(7)
    ones = torch.ones_like(layer.x)
    drawn = [torch.nn.functional.dropout(ones, 0.5) for _ in range(4 if masks == "expert" else 1)]
    rows = layer.leaves["A"].detach().chunk(4)
    wanted = [(layer.x * drawn[i % len(drawn)]).double() @ rows[i].T for i in range(4)]
    close(found, torch.cat(wanted, -1), "hidden")


@pytest.mark.parametrize("form", ["squared", "absolute"])
@pytest.mark.parametrize("subspaces", [1, 3])
def test_olora(subspaces, form):
    options = dict(orthogonality_weight=0.3, orthogonality_form=form, subspaces=subspaces)
    layer = Layer("olora", r=4, lora_alpha=8, **options)
    penalty = lambda weights: reference.orthogonality(weights, 0.3, form)  # noqa: E731
    layer.check(lambda w, x: reference.olora(x, w, subspaces, 2.0), penalty)
    close(layer.bank.losses()["orthogonality_loss"], penalty(layer.leaves).detach(), "loss")


def test_olora_counts_the_penalty_once_a_step():
    """Two micro-batches of one step: each injects its share of tokens."""
    layer = Layer("olora", r=4, lora_alpha=8, orthogonality_weight=0.3, subspaces=2)
    layer.upstream.zero_()
    layer.run()
    whole = layer.bank.A.grad.clone()
    layer.bank.A.grad = None
    layer.context.step_tokens = torch.tensor(2.0 * layer.mask.sum())
    layer.run()
    torch.testing.assert_close(layer.bank.A.grad, whole / 2)


def branch_layer(past: int, frozen: int, **options):
    """Returns a layer of 4 branches in a random order, after a prompt of three instructions."""
    settings = dict(r=8, lora_alpha=16, num_experts=4, past_chunks=past, frozen=frozen)
    layer = Layer("branchlora", **settings, **options)
    order = torch.randperm(4)
    layer.bank.order.copy_(order)
    layer.leaves["order"] = order.clone()
    layer.mask[2, 0] = 0  # left padding: the first token is the second one
    layer.context.statistics = {"default": ChunkKeys(HIDDEN, layer.config)}
    ids = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 0], [0, 4, 6, 1, 7]])
    layer.context.on_prompt(ids, torch.randn(SAMPLES, TOKENS, HIDDEN))
    return layer


@pytest.mark.parametrize(("frozen", "top_k", "scale"), [(0, 2, "one"), (2, 3, "num_experts")])
def test_branchlora(frozen, top_k, scale):
    layer = branch_layer(1, frozen, top_k=top_k, gate_scale=scale)
    times = 2.0 * (4 if scale == "num_experts" else 1)
    router = layer.leaves["router"]
    layer.check(
        lambda w, x: reference.branchlora(x, w, [0, 0, 1], [router] * SAMPLES, top_k, times)
    )
    assert layer.bank.counted.sum() == SAMPLES * top_k


def test_branchlora_routes_by_the_nearest_keys_at_evaluation():
    layer = branch_layer(2, 1)
    layer.layer.eval()
    keys, past = layer.context.statistics["default"], layer.leaves["past_routers"]
    vectors = layer.context.instruction("default", layer.x)
    keys.keys[0, 1], keys.keys[1, 1] = vectors[1], 3 * vectors[2]
    keys.sums[1] = 7 * vectors[0]
    routers = [layer.leaves["router"], past[0], past[1]]  # the current chunk, the first, the second
    layer.check(lambda w, x: reference.branchlora(x, w, [0, 0, 1], routers, 2, 2.0))
    assert keys.choices.tolist() == [2, 0, 1]


def hide_layer(top: bool, past: int = 2, **options):
    """Returns a layer of HiDe-LLaVA that has read a prompt, with the marks of its images."""
    layer = Layer("hide_llava", r=4, lora_alpha=8, past_chunks=past, **options)
    layer.bank.top = top
    layer.config.turn_start, layer.config.turn_end, layer.config.ignored_ids = [90], [91], [92]
    layer.context.statistics = {"default": Anchors(HIDDEN, layer.config)}
    hide_prompt(layer, seed=1)
    return layer


def hide_prompt(layer, seed):
    """Shows the layer three prompts, the last without an image; returns their features, float64."""
    torch.manual_seed(seed)
    layer.mask[:] = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    ids = torch.tensor([[90, 92, 3, 91, 0], [90, 92, 92, 5, 91], [90, 4, 6, 91, 7]])
    read, embedded = (3 * torch.rand(*ids.shape, HIDDEN) - 1 for _ in range(2))
    layer.context.on_prompt(ids, embedded)
    layer.context.on_inputs(read)
    images = [read[0, 1], (read[1, 1] + read[1, 2]) / 2, torch.zeros(HIDDEN)]
    texts = [embedded[0, 2], embedded[1, 3], (embedded[2, 1] + embedded[2, 2]) / 2]
    return [[image.double(), text.double()] for image, text in zip(images, texts, strict=True)]


@pytest.mark.parametrize("top", [False, True])
def test_hide_llava_trains_the_chunks_own_lora(top):
    layer = hide_layer(top)
    layer.check(lambda w, x: reference.hide_llava(x, w, [[0, 0, 1]] * SAMPLES, 2.0))


@pytest.mark.parametrize("fusion", ["sum", "mean"])
def test_hide_llava_fuses_the_chunks_below_the_top_layer(fusion):
    layer = hide_layer(top=False, fusion=fusion)
    layer.layer.eval()
    layer.check(lambda w, x: reference.hide_llava(x, w, fusion, 2.0))


def test_hide_llava_weighs_the_chunks_by_their_anchors_in_the_top_layer():
    """Three chunks, the first two of two steps each; prompts of another length in each."""
    layer = hide_layer(top=True, temperature=0.3)
    anchors = layer.context.statistics["default"]
    anchors.keys = anchors.keys[:0]
    past: list[list] = []
    for chunk, steps in enumerate(((2, 3), (4, 5), (6,))):
        if chunk:
            anchors.close_chunk()
        past.append([])
        for seed in steps:
            past[chunk] += hide_prompt(layer, seed)
            layer.run()
            anchors.commit()
    layer.bank.zero_grad()
    layer.layer.eval()
    wanted = [reference.anchor_weights(f, past, 0.3) for f in hide_prompt(layer, seed=7)]
    layer.check(lambda w, x: reference.hide_llava(x, w, wanted, 2.0))
    assert max(max(row) - min(row) for row in wanted) > 0.1, "weights that say something"
    assert anchors.choices.tolist() == [row.index(max(row)) for row in wanted]
