"""StrLoRA without stage 2: kept experts weigh as stage 1 has them, against loops in float64."""

from __future__ import annotations

import pytest
import torch

import strlora_tuner
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import adapted, prompts, text_model


def model_of(task_router: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(3)
    settings = dict(task_router=task_router, token_router="off", instruction_norm="none")
    model = adapted(text_model(), "strlora", **settings, **options)
    for _, bank in tuner_of(model).mixtures():
        torch.nn.init.normal_(bank.B)
    return model


def banks(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [bank for _, bank in tuner_of(model).mixtures()]


@pytest.mark.parametrize("task_router", ["frozen", "straight_through", "prior"])
@pytest.mark.parametrize("mode", ["eval", "train", "step"])
def test_the_update_worked_by_loops(task_router: str, mode: str) -> None:
    model = model_of(task_router).train(mode == "train")
    bank = banks(model)[0]
    config, read = bank.config, {}

    def keep(module: object, args: tuple, output: torch.Tensor) -> None:
        x, result, context, adapter = args
        read.update(x=x, moved=output - result, t=context.instruction(adapter, x))

    whole = prompts(2)
    bank.register_forward_hook(keep)
    with torch.set_grad_enabled(mode == "train"):
        out = model(**whole, use_cache=mode == "step")
        if mode == "step":
            mask = torch.nn.functional.pad(whole["attention_mask"], (0, 1), value=1)
            cache = {"past_key_values": out.past_key_values, "attention_mask": mask}
            model(input_ids=torch.full((2, 1), 5), **cache)
    assert read["x"].shape[1] == (1 if mode == "step" else whole["input_ids"].shape[1])
    a, b, task, x = (v.detach().double() for v in (bank.A, bank.B, bank.task, read["x"]))
    rows = len(a) // config.num_experts
    expected = torch.zeros_like(read["moved"]).double()
    for row, t in enumerate(read["t"].double()):
        p = [float(value) for value in (task @ t).softmax(0)]
        best = sorted(range(len(p)), key=lambda e: -p[e])[: config.top_k]
        for e in best:
            share = p[e] / sum(p[k] for k in best) if task_router == "prior" else 1 / len(best)
            part = slice(e * rows, (e + 1) * rows)
            expected[row] += share * bank.scale * x[row] @ a[part].T @ b[:, part].T
    torch.testing.assert_close(read["moved"].detach().double(), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize(("task_router", "held"), [("prior", True), ("frozen", False)])
def test_what_trains_and_what_is_held(task_router: str, held: bool) -> None:
    model = model_of(task_router, stability_weight=0.1).train()
    layers = banks(model)
    for bank in layers:
        with torch.no_grad():
            bank.ema_task.add_(torch.randn_like(bank.ema_task))
    model(**prompts(2)).loss.backward()
    for bank in layers:
        assert bank.A.grad is not None
        assert bank.B.grad is not None
        assert all(getattr(bank, name).grad is None for name in ("query", "key", "prototypes"))
        assert (bank.task.grad is not None) == held
        # The term is KL of stage 1's whole distributions: tokens add nothing to it.
        assert (bank.divergence is not None) == held
    if held:
        assert sum(float(bank.divergence) for bank in layers) > 0
    strlora_tuner.after_optimizer_step(model)


def test_no_token_chooses_among_the_kept() -> None:
    with pytest.raises(ValueError, match="token_top_k = 1 with token_router = off"):
        Options(token_router="off", token_top_k=1)
