"""SAME against float64 arithmetic written out: loops over tokens, whole matrices, inverses."""

from __future__ import annotations

import pytest
import torch

import strlora_tuner
from strlora_tuner.methods.same.spectrum import kept, router_factors, sketch_of, spectrum_of
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.methods import methods_reference as reference
from tests.strlora_tuner.methods.test_methods_reference import D_IN, Layer, close
from tests.strlora_tuner.models import adapted, base_model, prompts

EXPERTS, RANK, SCALE = 4, 8, 2.0


def layer_of(**options):
    """A layer with random A, B and router, which has seen no token."""
    layer = Layer("same", r=RANK, lora_alpha=16, num_experts=EXPERTS, **options)
    for name, value in layer.bank.named_buffers():
        value.fill_(name == "active")
    return layer


def see(layer, x=None, mask=None):
    """One forward pass in training."""
    layer.context.begin_forward(layer.mask if mask is None else mask, training=True)
    layer.layer(layer.x if x is None else x)
    layer.context.end_forward()


def tokens_of(*passes):
    """The real tokens (n, d) float64 of passes (x, mask)."""
    return torch.stack([t for x, mask in passes for t in x[mask.bool()]]).double()


def covariance(tokens):
    total = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
    for token in tokens:
        total += torch.outer(token, token)
    return total / len(tokens)


def whole(directions, spectrum):
    return directions.double() @ torch.diag(spectrum.double()) @ directions.double().T


@pytest.mark.parametrize("gate_scale", ["one", "num_experts"])
def test_forward_is_a_mixture_that_every_token_weighs(gate_scale):
    layer = layer_of(gate_scale=gate_scale)
    times = EXPERTS if gate_scale == "num_experts" else 1
    layer.check(lambda w, x: reference.moelora(x, w, EXPERTS, SCALE * times))


def test_a_resting_expert_is_left_out_in_training_alone():
    layer = layer_of()
    layer.bank.active[1] = False
    taken = [0, 2, 3]
    rows = [row for e in taken for row in range(2 * e, 2 * e + 2)]

    def without(w, x):
        less = {"A": w["A"][rows], "B": w["B"][:, rows], "router": w["router"][taken]}
        return reference.moelora(x, less, 3, SCALE)

    layer.check(without)
    layer.layer.eval()
    layer.bank.zero_grad()
    layer.leaves = {
        k: v.detach().clone().requires_grad_(True)
        for k, v in layer.leaves.items()
        if v.is_floating_point()
    }
    layer.check(lambda w, x: reference.moelora(x, w, EXPERTS, SCALE))


@pytest.mark.parametrize("components", [64, D_IN - 2])
def test_covariance_is_the_uncentred_mean_over_all_tokens_of_all_steps_and_chunks(components):
    """Fewer components than inputs are enough for inputs with no more directions."""
    layer, passes = layer_of(components=components), []
    base = torch.randn(min(components, D_IN), D_IN) + 0.5
    for step in range(4):
        x = torch.randn(3, 5, len(base)) @ base
        see(layer, x)
        passes.append((x, layer.mask))
        if step != 1:  # two micro-batches make the second step
            layer.bank.end_step(layer.bank.seen())
        if step == 0:
            layer.bank.begin_chunk()
            close(
                whole(layer.bank.past_directions, layer.bank.past_spectrum),
                covariance(tokens_of(*passes)),
                "the first chunk's",
            )
    layer.bank.begin_chunk()
    wanted = covariance(tokens_of(*passes))
    close(whole(layer.bank.past_directions, layer.bank.past_spectrum), wanted, "covariance")
    assert int(layer.bank.tokens) == 4 * int(layer.mask.sum())
    values = torch.linalg.eigvalsh(wanted).flip(0)[: len(layer.bank.past_spectrum)]
    close(layer.bank.past_spectrum, values, "eigenvalues, largest first")


def test_a_sketch_with_fewer_components_holds_what_matters():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(60, 60)).Q
    sizes = torch.tensor([10.0, 5.0, 2.0, *[0.01] * 57])
    tokens = torch.randn(4000, 60) * sizes @ axes.T
    wanted = covariance(tokens.double())
    directions, spectrum = spectrum_of(sketch_of(tokens, 12) / len(tokens))
    assert (whole(directions, spectrum) - wanted).norm() < 1e-3 * wanted.norm()
    largest = torch.linalg.eigvalsh(wanted).flip(0)[:3].float()
    torch.testing.assert_close(spectrum[:3], largest, rtol=1e-3, atol=0)


def test_processes_add_up_to_one():
    """Two processes with a half each end as one with the whole batch."""
    one, halves = layer_of(), [layer_of(), layer_of()]
    see(one)
    for rows, half in zip((slice(0, 1), slice(1, 3)), halves, strict=True):
        see(half, half.x[rows], half.mask[rows])
    total = halves[0].bank.seen() + halves[1].bank.seen()
    one.bank.end_step(one.bank.seen())
    halves[0].bank.end_step(total)
    for name, value in one.bank.named_buffers():
        torch.testing.assert_close(dict(halves[0].bank.named_buffers())[name], value)


def test_the_share_of_energy_is_taken_of_squares():
    spectrum = torch.tensor([3.0, 1.0, 0.5])  # squares 9, 1, 0.25: 9 of 10.25 are 0.878
    assert kept(spectrum, 0.87).tolist() == [True, False, False]
    assert kept(spectrum, 0.9).tolist() == [True, True, False]
    assert kept(torch.zeros(3), 0.9).tolist() == [False, False, False]


def test_the_router_moves_least_along_the_largest_directions():
    spectrum = torch.tensor([4.0, 2.0, 1.0, 0.1])  # means of two: 4, 3, 1.5
    found = router_factors(spectrum, 0.999, window=2)
    torch.testing.assert_close(found, torch.tensor([0.375, 0.5, 1.0, 1.0]))
    assert router_factors(torch.zeros(3), 0.9, 3).tolist() == [1, 1, 1]


class Adam:
    """AdamW as its paper writes it, for one float64 matrix; returns the step."""

    def __init__(self, rate, decay):
        self.rate, self.decay, self.m, self.v, self.t = rate, decay, 0.0, 0.0, 0

    def step(self, weight, gradient):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return -self.rate * (m / (v.sqrt() + 1e-8) + self.decay * weight)


def past_of(layer):
    """Lets the layer see a chunk of unlike directions; returns its tokens."""
    layer.x = layer.x * torch.linspace(0.1, 3, D_IN)
    see(layer)
    layer.bank.end_step(layer.bank.seen())
    tokens = tokens_of((layer.x, layer.mask))
    layer.bank.begin_chunk()
    return tokens


def top(matrix, energy):
    """Eigenvectors and values that make `energy` of the squares, largest first."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    count, share = 0, 0.0
    while share < energy * float((values**2).sum()):
        share, count = share + float(values[count] ** 2), count + 1
    return values[:count], vectors[:, :count]


def test_what_the_optimizer_did_is_scaled_after_its_step():
    """Three steps of AdamW with random gradients; every update by whole d x d matrices."""
    mu, energy = 0.7, 0.95
    settings = dict(window=2, refresh_steps=1, freeze_score=-1)
    layer = layer_of(damping=mu, energy=energy, **settings)
    bank, tokens = layer.bank, past_of(layer)
    past = covariance(tokens)
    sizes, vectors = top(past, energy)
    eye = torch.eye(D_IN, dtype=torch.float64)
    rest = eye - vectors @ vectors.T
    inverse = vectors @ torch.diag(1 / (sizes + mu)) @ vectors.T + rest / mu
    low = vectors @ torch.diag(sizes) @ vectors.T
    names = ("A", "B", "router")
    weights = {name: getattr(bank, name).detach().double().clone() for name in names}
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.05, weight_decay=0.3)
    adams = {name: Adam(0.05, 0.3) for name in names}
    seen = past  # what the router's directions were last found of
    for step in range(3):
        x = torch.randn(3, 5, D_IN) * (step + 1)
        see(layer, x)
        for name in names:
            getattr(bank, name).grad = torch.randn_like(getattr(bank, name))
        optimizer.step()
        updates = {
            name: adams[name].step(weights[name], getattr(bank, name).grad.double())
            for name in names
        }
        bank.end_step(bank.seen())
        before = weights["A"]
        weights["A"] = before + mu * updates["A"] @ inverse
        parts = []
        for e in range(EXPERTS):
            own = before[2 * e : 2 * e + 2]
            block = own @ low @ own.T + mu * torch.eye(2, dtype=torch.float64)
            parts.append(mu * updates["B"][:, 2 * e : 2 * e + 2] @ torch.linalg.inv(block))
        weights["B"] = weights["B"] + torch.cat(parts, 1)
        values, axes = top(seen, energy)
        smooth = torch.stack([values[max(0, i - 1) : i + 1].mean() for i in range(len(values))])
        along = axes @ torch.diag(smooth.min() / smooth) @ axes.T
        weights["router"] += updates["router"] @ (along + eye - axes @ axes.T)
        for name in names:
            close(getattr(bank, name).detach(), weights[name], f"{name}, step {step}")
        tokens = torch.cat([tokens, tokens_of((x, layer.mask))])
        seen = covariance(tokens)


def test_along_what_the_past_used_an_expert_hardly_moves():
    layer = layer_of(damping=0.5)
    layer.x = torch.zeros_like(layer.x)
    layer.x[..., 0] = 3.0  # the only direction of the past, of eigenvalue 9
    bank = layer.bank
    see(layer)
    bank.end_step(bank.seen())
    bank.begin_chunk()
    see(layer)
    before = bank.A.detach().clone()
    with torch.no_grad():
        bank.A += 1.0
    bank.end_step(bank.seen())
    moved = (bank.A - before).detach()
    torch.testing.assert_close(moved[:, 0], torch.full((RANK,), 0.5 / 9.5), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(moved[:, 1:], torch.ones(RANK, D_IN - 1), rtol=1e-4, atol=1e-5)


def gates_of(bank, token):
    return torch.stack(reference.softmax([row @ token for row in bank.router.detach().double()]))


def test_an_expert_of_little_use_now_and_importance_before_rests():
    layer = layer_of(freeze_score=0.1, refresh_steps=2)
    bank = layer.bank
    with torch.no_grad():
        bank.router.mul_(0.2)
    see(layer)
    bank.end_step(bank.seen())
    see(layer)
    bank.end_step(bank.seen())
    assert bank.active.all(), "nothing was important before the first chunk"
    important = sum(gates_of(bank, t) * (t @ t) for t in tokens_of((layer.x, layer.mask))) * 2
    bank.begin_chunk()
    close(bank.past_importance, important, "importance")
    for name in ("usage", "importance", "steps"):
        assert not getattr(bank, name).any(), f"{name} is this chunk's alone"
    x = torch.randn_like(layer.x)
    used = sum(gates_of(bank, t) for t in tokens_of((x, layer.mask)))
    for _ in range(2):
        see(layer, x)
        bank.end_step(bank.seen())
    close(bank.usage, used * 2, "usage")
    low, high = used.min(), used.max()
    least, most = important.min(), important.max()
    score = (used - low) / (high - low) - (important - least) / (most - least)
    wanted = [float(s) >= 0.1 or s == score.max() for s in score]
    assert bank.active.tolist() == wanted
    assert not all(wanted)
    bank.begin_chunk()
    assert bank.active.all(), "for the chunk only"


def test_an_expert_that_rests_does_not_move_by_momentum_or_decay():
    layer = layer_of(freeze_score=-1)
    bank = layer.bank
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.05, weight_decay=0.5)
    for _ in range(2):
        see(layer)
        before = bank.A.detach().clone(), bank.B.detach().clone()
        for parameter in bank.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        bank.end_step(bank.seen())
        bank.active[2] = False
    assert torch.equal(bank.A[4:6], before[0][4:6])
    assert torch.equal(bank.B[:, 4:6], before[1][:, 4:6])
    assert not torch.equal(bank.A[:4], before[0][:4])


def test_one_expert_always_works():
    layer = layer_of(freeze_score=5.0, refresh_steps=1)
    layer.bank.past_importance.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    see(layer)
    layer.bank.end_step(layer.bank.seen())
    assert int(layer.bank.active.sum()) == 1


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_a_layer_that_runs_again_counts_its_tokens_once(checkpointing):
    model = adapted(base_model("text"), "same").train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    banks = [bank for _, bank in tuner_of(model).mixtures()]
    start = int(banks[0].tokens)
    for _ in range(2):
        model(**prompts()).loss.backward()
    strlora_tuner.after_optimizer_step(model)
    real = int(prompts()["attention_mask"].sum())
    assert {int(bank.tokens) - start for bank in banks} == {2 * real}
    assert {int(bank.steps) for bank in banks} == {1}


def test_weights_that_are_loaded_are_no_step(tmp_path):
    """A checkpoint that is loaded over a model between two passes is what goes on."""
    model = adapted(base_model("text"), "same").train()
    model.save_pretrained(tmp_path)
    saved = {k: v.clone() for k, v in model.state_dict().items() if ".A." in k or k.endswith(".A")}
    model(**prompts()).loss.backward()
    with torch.no_grad():
        for _, bank in tuner_of(model).mixtures():
            bank.A += 1
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    strlora_tuner.after_optimizer_step(model)
    assert saved
    for key, value in saved.items():
        assert torch.equal(model.state_dict()[key], value), key
