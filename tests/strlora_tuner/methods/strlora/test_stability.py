"""The stability term weighs the same however a step's batch is cut into pieces."""

from __future__ import annotations

import pytest
import torch

import strlora_tuner
from strlora_tuner.core.routing_metrics import StepMetrics
from tests.strlora_tuner.models import adapted, prompts, text_model

ROUTERS = ("query", "key", "prototypes")


def pieces(batch, sizes):
    """Cuts a batch into row groups of these sizes."""
    return [
        {key: part for key, part in zip(batch, group, strict=True)}
        for group in zip(*(value.split(sizes) for value in batch.values()), strict=True)
    ]


def injected(model, batch) -> None:
    """Runs forward and backward with a main loss of zero: only the term's gradient flows."""
    (model(**{k: v for k, v in batch.items() if k != "labels"}).logits * 0).sum().backward()


def gradients(sizes, dtype, step_tokens, scale=1.0, **options):
    """Returns the routers' gradients of a step cut into `sizes` rows, and the step's metrics."""
    model = adapted(text_model(), stability_weight=1.0, **options).to(dtype).train()
    tuner, metrics = model.base_model, StepMetrics()
    tuner.routing.step_tokens = step_tokens
    tuner.routing.loss_scale = scale
    tuner.routing.recording = True
    for piece in pieces(prompts(batch=6), sizes):
        injected(model, piece)
        metrics.add(tuner, tuner.routing.tokens("mask"))
    parts = {n: p.grad for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] in ROUTERS}
    return parts, metrics.take()


def assert_same(found, wanted, tolerance, factor=1.0):
    for name, gradient in wanted.items():
        error = (found[name].float() * factor - gradient.float()).norm()
        assert error <= tolerance * gradient.float().norm(), name
        assert gradient.norm() > 0, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_pieces_of_a_step_add_up_to_the_whole(dtype, tolerance):
    total = prompts(batch=6)["attention_mask"].sum().float()
    whole, logged = gradients([6], dtype, total)
    assert logged["stability_loss"] > 0
    accumulated, logged_pieces = gradients([1, 3, 2], dtype, total)
    assert_same(accumulated, whole, tolerance)
    assert logged.keys() == logged_pieces.keys()
    for name, value in logged.items():
        torch.testing.assert_close(logged_pieces[name], value, rtol=tolerance, atol=1e-3, msg=name)
    # Two processes of three rows: each divides by total / 2, gradients are averaged over them.
    left, _ = gradients([3, 3], dtype, total / 2)
    assert_same(left, whole, tolerance, factor=0.5)


def test_without_a_host_a_batch_is_its_own_step():
    total = prompts(batch=6)["attention_mask"].sum().float()
    assert_same(
        gradients([6], torch.float32, None)[0], gradients([6], torch.float32, total)[0], 1e-5
    )


def test_a_loss_scale_reaches_the_term():
    plain, scaled = (gradients([6], torch.float32, None, scale=s)[0] for s in (1.0, 8.0))
    assert_same(plain, scaled, 1e-5, factor=8.0)


def test_padding_counts_only_when_it_is_included():
    short, longer = prompts(batch=6), prompts(batch=6)
    width = short["input_ids"].shape[1]
    for key, value in longer.items():
        fill = -100 if key == "labels" else 0
        longer[key] = torch.nn.functional.pad(value, (0, 5), value=fill)
    assert longer["input_ids"].shape[1] == width + 5

    def term(batch, padding):
        model = adapted(text_model(), padding=padding).train()
        model(**batch)
        return strlora_tuner.stability_loss(model).item()

    assert term(longer, "mask") == pytest.approx(term(short, "mask"), rel=1e-5)
    assert term(longer, "include") != pytest.approx(term(short, "include"), rel=1e-3)


def test_a_teacher_that_never_moved_stays_a_copy_of_its_routers():
    # Else a chunk without the term, interrupted and gone on with, would save another teacher.
    model = adapted(text_model(), stability_weight=0.0).train()
    model.base_model.statistics().teacher_steps.zero_()
    with torch.no_grad():
        for _, mixture in model.base_model.mixtures():
            mixture.query.add_(1.0)
    strlora_tuner.after_optimizer_step(model)
    for _, mixture in model.base_model.mixtures():
        for name in ROUTERS:
            assert torch.equal(getattr(mixture, f"ema_{name}"), getattr(mixture, name).float())
    assert int(model.base_model.statistics().teacher_steps) == 0
