"""SAME as released against float64 arithmetic written out, and its defects by name."""

from __future__ import annotations

import pytest
import torch

from tests.strlora_tuner.methods import methods_reference as reference
from tests.strlora_tuner.methods.test_methods_reference import D_IN, Layer, close

EXPERTS, RANK, SCALE, KEPT = 4, 8, 2.0, 0.95


def near(found, wanted, what):
    """As `close`, for what follows from a QR decomposition in float32."""
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < 1e-3, f"{what}: relative error {error}"


def layer_of(**options):
    """A layer with random A, B and router at the start of a stream."""
    layer = Layer("same_released", r=RANK, lora_alpha=16, num_experts=EXPERTS, **options)
    bank = layer.bank
    for name in ("directions", "spectrum", "past_directions", "past_spectrum"):
        getattr(bank, name).zero_()
    for name in ("utilization", "importance"):
        getattr(bank, name).fill_(1 / EXPERTS)
    return layer


def tokens_of(x):
    return list(x.double().flatten(0, 1))


def mean_gates(router, x, divisor=1):
    """The mean over all tokens, padding included, of softmax(R x / divisor)."""
    every = [reference.softmax([row @ t / divisor for row in router]) for t in x.flatten(0, 1)]
    return [sum(gates[e] for gates in every) / len(every) for e in range(EXPERTS)]


def mixed(x, weights, gates):
    """s (sum_j w_j B_j)(sum_i w_i A_i) x for every token."""
    width = RANK // EXPERTS
    parts = [slice(e * width, (e + 1) * width) for e in range(EXPERTS)]
    a = sum(g * weights["A"][p] for g, p in zip(gates, parts, strict=True))
    b = sum(g * weights["B"][:, p] for g, p in zip(gates, parts, strict=True))
    return SCALE * torch.stack([torch.stack([b @ (a @ token) for token in row]) for row in x])


@pytest.mark.parametrize("out", [None, 2])
def test_a_batch_has_one_mixture_of_sums_not_of_products(out):
    layer = layer_of()

    def update(w, x):
        gates = mean_gates(w["router"], x)
        if out is not None:
            gates = [g * (e != out) for e, g in enumerate(gates)]
        return mixed(x, w, [g / sum(gates) for g in gates])

    if out is not None:
        layer.bank.active[out] = False
    layer.check(update)


def test_answers_take_the_one_expert_that_the_pass_prefers():
    layer = layer_of()
    layer.layer.eval()
    gates = [
        float(g.detach()) for g in mean_gates(layer.leaves["router"], layer.x.double(), EXPERTS)
    ]
    best = max(range(EXPERTS), key=lambda e: gates[e])
    layer.check(lambda w, x: mixed(x, w, [float(e == best) for e in range(EXPERTS)]))


def test_an_answer_depends_on_its_neighbours():
    """The defect: the same row beside others, or beside padding, takes another mixture."""
    layer = layer_of()
    layer.layer.train()
    layer.context.begin_forward(layer.mask, training=True)
    whole = layer.layer(layer.x)
    layer.context.end_forward()
    layer.context.begin_forward(layer.mask[:1], training=True)
    alone = layer.layer(layer.x[:1])
    layer.context.end_forward()
    assert (whole[0] - alone[0]).norm() > 0.01 * alone.norm()


def first_covariance(x, seed=0):
    """Directions and deviations as the code finds them, of all tokens, centred, unsorted."""
    rows = torch.stack(tokens_of(x))
    centred = rows - rows.mean(0)
    drawn = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(seed)).double()
    axes = torch.linalg.qr(centred.T @ (centred @ drawn)).Q
    squares = sum((axes.T @ row) ** 2 for row in centred)
    return axes, (squares / (len(rows) - 1)).sqrt()


def taken(spectrum, energy):
    """One more than the directions, as they lie, whose squares stay in the share."""
    total, so_far, count = float((spectrum**2).sum()), 0.0, 0
    for value in spectrum.tolist():
        so_far += value**2
        count += so_far / total <= energy
    return min(count + 1, len(spectrum))


def test_covariance_is_one_batchs_and_is_found_every_twenty_passes():
    layer = layer_of()
    batches = [torch.randn(3, 5, D_IN) for _ in range(22)]
    for index, batch in enumerate(batches):
        layer.x = batch
        layer.run()
        axes, spectrum = first_covariance(
            batches[0] if index < 20 else batches[20], index // 20 * 20
        )
        near(layer.bank.spectrum, spectrum, f"deviations, pass {index}")
        near(layer.bank.directions @ layer.bank.directions.T, axes @ axes.T, "directions")
    assert (spectrum.diff() > 0).any(), "unsorted"


def test_gradients_are_scaled_before_the_optimizer():
    """A along the last chunk's directions, the router along this one's from pass 10 on; B not."""
    mu, energy = 0.7, 0.6
    layer = layer_of(damping=mu, energy=energy, window=2)
    bank, x = layer.bank, layer.x
    layer.run()
    bank.begin_chunk()
    past_axes, past = first_covariance(x)
    near(bank.past_spectrum, past, "the last batch's deviations")
    layer.x = x = torch.randn_like(x)
    layer.run()
    axes, spectrum = first_covariance(x)
    bank.passes.fill_(12)
    bank.active.fill_(True)
    bank.zero_grad()
    layer.run()
    leaf = {k: v.detach().clone().requires_grad_(True) for k, v in layer.leaves.items()}
    gates = mean_gates(leaf["router"], x.double())
    (mixed(x.double(), leaf, gates) * layer.upstream.double()).sum().backward()
    eye = torch.eye(D_IN, dtype=torch.float64)
    v = past_axes[:, : taken(past, energy)]
    inverse = v @ torch.diag(1 / (past[: v.shape[1]] + mu)) @ v.T + (eye - v @ v.T) / mu
    near(bank.A.grad, leaf["A"].grad @ inverse, "A")
    close(bank.B.grad, leaf["B"].grad, "B")
    v = axes[:, : taken(spectrum, energy)]
    means = [spectrum[max(0, i - 1) : i + 1].mean() + 1e-6 for i in range(v.shape[1])]
    scale = torch.stack([(min(means) / m).clamp(0.8, 1.2) for m in means])
    wanted = leaf["router"].grad @ (v @ torch.diag(scale) @ v.T + eye - v @ v.T)
    near(bank.router.grad, wanted, "router")


def test_use_and_importance_are_moving_averages_of_passes():
    layer = layer_of(freeze_score=-1)
    use = important = torch.full((EXPERTS,), 1 / EXPERTS, dtype=torch.float64)
    for _ in range(3):
        layer.x = torch.randn_like(layer.x)
        layer.run()
        tokens = tokens_of(layer.x)
        every = [
            torch.stack(reference.softmax([r @ t for r in layer.leaves["router"]])) for t in tokens
        ]
        use = KEPT * use + 0.05 * (sum(every) / len(every)).detach()
        energy = sum(g * (t @ t) for g, t in zip(every, tokens, strict=True)) / len(tokens)
        important = KEPT * important + 0.05 * energy.detach()
    close(layer.bank.utilization, use, "use")
    close(layer.bank.importance, important, "importance")
    layer.bank.begin_chunk()
    assert layer.bank.utilization.tolist() == [1 / EXPERTS] * EXPERTS
    close(layer.bank.importance, important, "importance goes on")


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_experts_are_left_out_from_the_first_pass_on_but_the_chunks_own(chunk):
    layer = layer_of(freeze_score=5.0)
    layer.bank.past_chunks.fill_(chunk)
    layer.run()
    own = min(chunk, EXPERTS - 1)
    assert layer.bank.active.tolist() == [e == own for e in range(EXPERTS)]
    layer.config.freeze_score = -1
    layer.run()
    assert int(layer.bank.active.sum()) == 1, "for the rest of the chunk"
    layer.bank.begin_chunk()
    assert layer.bank.active.all()


def test_dropout_is_not_applied():
    layer = layer_of()
    layer.config.lora_dropout = 0.9
    first, _ = layer.run()
    layer.bank.active.fill_(True)
    again, _ = layer.run()
    torch.testing.assert_close(first, again)
