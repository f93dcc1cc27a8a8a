"""Speed and memory of the StrLoRA layer against plain LoRA and two naive mixtures, in one run.

    python benchmarks/tuner_speed.py --hidden 2048 --layers 2 --batch 1 --seq 512
    python benchmarks/tuner_speed.py --device cuda --dtype bfloat16 --shape qwen3-8b \
        --batch 2 --seq 2048
    python benchmarks/tuner_speed.py --device meta --dtype bfloat16 --shape qwen3-8b \
        --batch 2 --seq 2048        # counts memory only, on any machine

Methods take turns in a drawn order and medians over repeats are compared, so that a machine whose
speed drifts still gives honest ratios. All methods wrap the same linear layers of one model with
shared random weights, at the same total rank.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from naive import NaiveMoeLora, NaiveStrLora
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

import strlora_tuner
from recipes import REPO
from recipes.processes.machine import git, hardware
from strlora_tuner import StrLoraConfig
from strlora_tuner.methods import config_class
from strlora_tuner.methods.slow_weights.average import SlowWeights, adapter_tensors
from strlora_tuner.methods.slow_weights.options import Options as SlowOptions

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = ["peft_lora", "strlora", "strlora_signed", "naive", "moelora"]
SHAPES = {"qwen3-8b": dict(hidden=4096, layers=36, heads=32, intermediate=12288)}


@dataclass
class Method:
    """A model to measure, and what a training step adds to its loss."""

    model: nn.Module
    side_loss: Callable[[], torch.Tensor | float] = lambda: 0.0
    after_step: Callable[[], None] = lambda: None


def build_base(options: argparse.Namespace) -> nn.Module:
    """Returns a Qwen3 model with random weights of the asked shape."""
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate or 3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=max(options.heads // 4, 1),
        head_dim=options.hidden // options.heads,
        max_position_embeddings=2 * options.seq + options.new_tokens,
        tie_word_embeddings=True,
    )
    with torch.device(options.device):
        model = Qwen3ForCausalLM(config).to(getattr(torch, options.dtype))
    return model.requires_grad_(False)


def shared_copy(base: nn.Module) -> nn.Module:
    """Returns a copy of the modules of `base` around the very same weights."""
    return copy.deepcopy(base, memo={id(p): p for p in base.parameters()})


def build_methods(base: nn.Module, options: argparse.Namespace) -> dict[str, Method]:
    """Returns the methods to compare, adapters in the base's dtype."""
    rank, experts = options.rank, options.experts
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, lora_dropout=0.0)
    ours = StrLoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        num_experts=experts,
        router_dim=options.router_dim,
        target_modules=TARGETS,
        stability_weight=options.stability_weight,
        task_router="prior",
    )
    strlora = get_peft_model(shared_copy(base), ours, autocast_adapter_dtype=False)
    fixed = config_class("strlora_signed")(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS
    )
    signed = get_peft_model(shared_copy(base), fixed, autocast_adapter_dtype=False)
    naive, moelora = shared_copy(base), shared_copy(base)
    shape = dict(rank=rank, experts=experts)
    store = NaiveStrLora.wrap(naive, TARGETS, router_dim=options.router_dim, **shape)
    NaiveMoeLora.wrap(moelora, TARGETS, **shape)
    peft_lora = get_peft_model(shared_copy(base), lora, autocast_adapter_dtype=False)
    return {
        "peft_lora": Method(peft_lora),
        "strlora": Method(
            strlora, after_step=lambda: strlora_tuner.after_optimizer_step(strlora)
        ),
        "strlora_signed": Method(signed, after_step=after_signed_step(signed)),
        "naive": Method(
            naive,
            side_loss=lambda: options.stability_weight * store.mean_loss(),
            after_step=store.update_teachers,
        ),
        "moelora": Method(moelora),
    }  # fmt: skip


def after_signed_step(model: nn.Module) -> Callable[[], None]:
    """Returns what the method does after each step, its slow weights included."""
    tensors = adapter_tensors(model)
    slow = SlowWeights(tensors, SlowOptions())

    def after_step() -> None:
        strlora_tuner.after_optimizer_step(model)
        slow.step(tensors)

    return after_step


def synchronise(options: argparse.Namespace) -> None:
    """Waits for the device, so that a clock can be read."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def clock(options: argparse.Namespace) -> float:
    """Returns seconds of wall time, or of the processor's, which other programs take none of."""
    return time.process_time() if options.cpu_time else time.perf_counter()


def train_step(method: Method, ids: torch.Tensor, options: argparse.Namespace) -> float:
    """Runs forward, backward and the carried state's update; returns seconds."""
    method.model.train()
    synchronise(options)
    started = clock(options)
    loss = method.model(input_ids=ids, labels=ids).loss + method.side_loss()
    loss.backward()
    method.after_step()
    synchronise(options)
    seconds = clock(options) - started
    for parameter in method.model.parameters():
        parameter.grad = None
    return seconds


@torch.no_grad()
def decode(method: Method, ids: torch.Tensor, options: argparse.Namespace) -> float:
    """Generates greedily after a prompt; returns seconds a token, without the prefill."""
    method.model.eval()
    times = []
    for tokens in (1, 1 + options.new_tokens):
        synchronise(options)
        started = clock(options)
        method.model.generate(
            # The same number of tokens from all, whatever random weights say.
            input_ids=ids,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        synchronise(options)
        times.append(clock(options) - started)
    return (times[1] - times[0]) / options.new_tokens


def memory(method: Method, ids: torch.Tensor, options: argparse.Namespace) -> float:
    """Returns a training step's peak in MB.

    On CUDA the allocator's. Elsewhere a count of parameters, buffers, gradients and what is saved
    for backward; on meta tensors that needs no memory, so that any shape can be counted.
    """
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        train_step(method, ids, options)
        return torch.cuda.max_memory_allocated() / 1e6
    model = method.model.train()
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Views share their storage, which must count once.
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    for tensor in (*model.parameters(), *model.buffers()):
        keep(tensor)
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss + method.side_loss()
    del loss
    return (sum(storage.nbytes() for storage in storages.values()) + gradients) / 1e6


def prepare(options: argparse.Namespace) -> dict[str, Method]:
    """Returns the asked methods on one base model."""
    torch.manual_seed(0)
    random.seed(0)
    methods = build_methods(build_base(options), options)
    return {name: methods[name] for name in options.methods}


Rounds = dict[str, dict[str, list[float]]]


def measure(
    methods: dict[str, Method], options: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], Rounds]:
    """Returns median step seconds, decode seconds a token and memory in MB of every method.

    Behind them the seconds of every repeat, in which the methods took turns.
    """
    ids = torch.randint(5, 4000, (options.batch, options.seq), device=options.device)
    if options.device == "meta":
        for name in ("naive", "strlora_signed"):  # they ask for values
            methods.pop(name, None)
        return {name: {"memory": memory(m, ids, options)} for name, m in methods.items()}, {}
    prompt = ids[:, : min(options.seq, 64)]
    rounds: Rounds = {name: {} for name in methods}
    for repeat in range(options.warmup + options.repeats):
        # Another order each time: what ran before decides what the caches hold.
        for name in random.sample(list(methods), len(methods)):
            method = methods[name]
            step = train_step(method, ids, options)
            times = {"step": step}
            if options.new_tokens:
                times["decode"] = decode(method, prompt, options)
            if repeat >= options.warmup:
                for key, seconds in times.items():
                    rounds[name].setdefault(key, []).append(seconds)
    figures = {
        name: {
            **{key: statistics.median(seconds) for key, seconds in values.items()},
            "memory": memory(methods[name], ids, options),
        }
        for name, values in rounds.items()
    }
    return figures, rounds


def profile(methods: dict[str, Method], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns self time in ms by operator, of a step of PEFT LoRA and of ours."""
    cuda = options.device == "cuda"
    ids = torch.randint(5, 4000, (options.batch, options.seq), device=options.device)
    samples: dict[str, list[dict[str, float]]] = {"peft_lora": [], "strlora": []}
    for repeat in range(options.warmup + options.repeats):
        for name, steps in samples.items():
            with torch.profiler.profile() as profiler:
                train_step(methods[name], ids, options)
            if repeat >= options.warmup:
                steps.append({e.key: own_time(e, cuda) for e in profiler.key_averages()})
    return {
        name: {
            key: statistics.median(step.get(key, 0.0) for step in steps)
            for key in set().union(*steps)
        }
        for name, steps in samples.items()
    }


def own_time(event: Any, cuda: bool) -> float:
    """Returns an operator's own time in ms, on the device that did the work."""
    return (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000


def print_profile(times: dict[str, dict[str, float]]) -> None:
    """Prints the operators whose time differs most between PEFT LoRA and ours, in ms a step."""
    lora, ours = times["peft_lora"], times["strlora"]
    extra = {key: ours.get(key, 0) - lora.get(key, 0) for key in ours.keys() | lora.keys()}
    print(f"{'operator':44} {'peft_lora':>10} {'strlora':>10} {'extra':>10}   (ms a step)")
    for key in sorted(extra, key=lambda k: -abs(extra[k]))[:12]:
        print(f"{key[:44]:44} {lora.get(key, 0):10.2f} {ours.get(key, 0):10.2f} {extra[key]:10.2f}")
    print(f"{'sum':44} {sum(lora.values()):10.2f} {sum(ours.values()):10.2f}")


def print_table(
    figures: dict[str, dict[str, float]], relative: dict[str, dict[str, float]]
) -> None:
    """Prints every figure and its ratio to PEFT LoRA's; a dash where none was measured."""
    columns = {"step": ("step ms", 1e3), "decode": ("ms/token", 1e3), "memory": ("MB", 1.0)}
    print("method    " + "".join(f"{title:>12}  x LoRA" for title, _ in columns.values()))
    for name, values in figures.items():
        cells = [
            f"{values[key] * unit:12.2f} {relative[name][key]:7.3f}"
            if key in values
            else f"{'-':>20}"
            for key, (_, unit) in columns.items()
        ]
        print(f"{name:10}" + "".join(cells))


def main() -> int:
    """Command line: prints a table, and writes JSON when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda", "meta"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="sets the sizes of a real model")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=0, help="default: 3 x hidden")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--router-dim", type=int, default=64)
    parser.add_argument("--stability-weight", type=float, default=0.1)
    parser.add_argument("--new-tokens", type=int, default=32, help="0: do not measure decoding")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of one thread: what a busy machine still tells (CPU alone)",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--profile", action="store_true", help="also show where a step's time goes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    # argparse does not tell a default from the same value given.
    given = {a.lstrip("-").split("=")[0] for a in sys.argv[1:] if a.startswith("--")}
    options = parser.parse_args()
    for name, value in SHAPES.get(options.shape or "", {}).items():
        if name not in given:
            setattr(options, name, value)
    if not {"peft_lora", "strlora"} <= set(options.methods):
        parser.error("--methods: peft_lora and strlora must be among them")
    if options.cpu_time:
        torch.set_num_threads(1)
    methods = prepare(options)
    figures, rounds = measure(methods, options)
    base = figures["peft_lora"]
    relative = {
        name: {key: round(value / base[key], 4) for key, value in values.items()}
        for name, values in figures.items()
    }
    print_table(figures, relative)
    times = profile(methods, options) if options.profile else None
    if times is not None:
        print_profile(times)
    if options.json:
        settings: dict[str, Any] = {k: v for k, v in vars(options).items() if k != "json"}
        report = {"relative_to_peft_lora": relative, "figures": figures, "settings": settings}
        report |= {"rounds": rounds, "profile_ms": times, "torch": torch.__version__}
        report |= {"machine": hardware(), "git": git(REPO), "date": date.today().isoformat()}
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
