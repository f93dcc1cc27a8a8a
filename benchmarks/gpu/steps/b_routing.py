"""Routing compiled by torch.compile against eager and float64: forward, backward, recompilations.

One adapted layer of the shape of Qwen3-8B (small with --cpu), in bfloat16 and float32, with and
without the stability term. The float64 model still keeps routing scores in float32, as the method
does, so that its own error is about 1e-7.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from step import Step
from torch import Tensor, nn

import strlora_tuner
from strlora_tuner import StrLoraConfig

LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}
TARGETS = ["q_proj", "down_proj"]
LENGTHS = (1024, 1000, 640, 1024)  # another length must not compile anew, but once


def build(cpu: bool, stability: float) -> nn.Module:
    """Returns one decoder layer with adapted q_proj and down_proj, B not zero, float32, eager."""
    from peft import get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, heads = (256, 4) if cpu else (4096, 32)
    base = Qwen3Config(
        vocab_size=1024, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=heads // 4, head_dim=hidden // heads,
    )  # fmt: skip
    options = StrLoraConfig(
        r=64, lora_alpha=128, lora_dropout=0.0, num_experts=4, top_k=2, router_dim=64,
        target_modules=TARGETS, stability_weight=stability, task_router="prior",
        compile_routing="off",
    )  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(Qwen3ForCausalLM(base), options, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith(".B"):
                parameter.normal_(std=0.02)
            if parameter.requires_grad and ".query" in name:  # so that teacher and student differ
                parameter.mul_(1.2)
    return model.train()


def layers(model: nn.Module) -> list[nn.Module]:
    """Returns the adapted layers."""
    block = model.base_model.model.model.layers[0]  # type: ignore[union-attr,index]
    return [block.self_attn.q_proj, block.mlp.down_proj]  # type: ignore[union-attr,list-item]


def passed(model: nn.Module, ids: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Returns outputs and all gradients of a forward and backward through the adapted layers."""
    found = []
    with strlora_tuner.instruction_ids(model, ids):
        for layer, x in zip(layers(model), inputs, strict=True):
            x = x.clone().requires_grad_(True)
            output = layer(x)
            trained = [p for p in layer.parameters() if p.requires_grad]
            weights = torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype).to(x.device)
            gradients = torch.autograd.grad(
                (output * weights).sum() / output.shape[1], [x, *trained], allow_unused=True
            )
            found += [output.detach(), *(g for g in gradients if g is not None)]
    return found


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Returns the greatest relative error, norm by norm; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        value = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        worst = max(worst, value if value == value else float("inf"))
    return worst


def milliseconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Returns the median time of a call."""
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def graphs() -> int:
    """How many graphs torch.compile has made so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def one_case(step: Step, dtype: str, stability: float) -> None:
    """Measures a dtype, with the stability term or without it."""
    name = f"{dtype}_{'stability' if stability else 'plain'}"
    kind = getattr(torch, dtype)
    # Rounded before they are copied, so that all three have the same weights; the moving averages,
    # which a model keeps in float32, are those of the start.
    eager = build(step.cpu, stability).to(step.device, kind)
    exact = copy.deepcopy(eager).double()
    compiled = copy.deepcopy(eager)
    for layer in layers(compiled):
        layer.strlora_mixture["default"].config.compile_routing = "on"
    widths = [layer.in_features for layer in layers(eager)]
    scale = 8 if step.cpu else 1
    errors = {"eager": 0.0, "compiled": 0.0}
    before, seconds = graphs(), 0.0
    for seed, length in enumerate(LENGTHS):
        generator = torch.Generator().manual_seed(seed)
        shape = (2, length // scale)
        ids = torch.randint(5, 1000, shape, generator=generator).to(step.device)
        inputs = [torch.randn(*shape, width, generator=generator).to(step.device, kind)
                  for width in widths]  # fmt: skip
        wanted = passed(exact, ids, [x.double() for x in inputs])
        started = time.perf_counter()
        results = {"compiled": passed(compiled, ids, inputs)}
        if seed == 0:
            seconds = time.perf_counter() - started
        results["eager"] = passed(eager, ids, inputs)
        for way, found in results.items():
            errors[way] = max(errors[way], error(found, wanted))
    step.figure(f"{name}_eager_error", errors["eager"], at_most=LIMITS[dtype])
    step.figure(f"{name}_compiled_error", errors["compiled"], at_most=LIMITS[dtype])
    step.figure(f"{name}_graphs", graphs() - before, at_most=4)
    step.figure(f"{name}_first_call_s", seconds)
    for way, model in (("eager", eager), ("compiled", compiled)):
        time_ms = milliseconds(lambda m=model: passed(m, ids, inputs), step.device, 5)
        step.figure(f"{name}_{way}_ms", time_ms)
    step.save()


def main(step: Step, folder: Path) -> None:
    """All cases."""
    step.result["settings"] = {"lengths": LENGTHS, "batch": 2, "small": step.cpu}
    for dtype in ("bfloat16", "float32"):
        for stability in (0.1, 0.0):
            one_case(step, dtype, stability)


if __name__ == "__main__":
    sys.exit(Step("b_routing", __doc__).main(main))
