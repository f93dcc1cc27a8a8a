"""Adapters as the published code saves them, with what it computes, for any size.

A plain loop over experts, written from the description of the released code; it shares nothing
with the package. The stored fixture checks it (test_released_checkpoint.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Settings:
    """What a published run can choose."""

    experts: int = 4
    rank: int = 8
    alpha: float = 16
    top_k: int = 2
    token_top_k: int = 1
    width: int = 16
    stability_weight: float = 0.1
    temperature: float = 1.0
    ema: bool = True

    def config(self) -> dict[str, object]:
        """Returns adapter_config.json."""
        return {
            "peft_type": "STRLORA",
            "task_type": "CAUSAL_LM_STRLORA",
            "base_model_name_or_path": "",
            "bias": "none",
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "expert_num": self.experts,
            "topk": self.top_k,
            "subtopk": self.token_top_k,
            "attn_proj_dim": self.width,
            "freeze_qk": False,
            "sample_router_distill_beta": 0.999,
            "sample_router_distill_lambda": self.stability_weight,
            "sample_router_distill_tau": self.temperature,
            "target_modules": list(TARGETS),
        }


class PublishedLinear(nn.Module):
    """One wrapped layer; parameters carry the published names' order of things."""

    def __init__(self, base: nn.Linear, s: Settings, hidden: int, shared: dict) -> None:
        super().__init__()
        self.base, self.s, self.shared = base, s, shared
        each = s.rank // s.experts
        new = lambda *shape: nn.Parameter(0.05 * torch.randn(*shape))  # noqa: E731
        self.A = nn.ParameterList([new(each, base.in_features) for _ in range(s.experts)])
        self.B = nn.ParameterList([new(base.out_features, each) for _ in range(s.experts)])
        self.wq = new(s.width, base.in_features)
        self.wk = new(s.width, hidden)
        self.proto = nn.Parameter(torch.randn(s.experts, s.width))
        self.router = nn.Parameter(torch.randn(s.experts, hidden))
        self.ema = [(p + 0.1 * torch.randn_like(p)).detach() for p in self.routers()]
        if not s.ema:
            self.ema = [p.detach().clone() for p in self.routers()]

    def routers(self) -> list[Tensor]:
        return [self.wq, self.wk, self.proto]

    def scores(self, x: Tensor, t: Tensor, wq: Tensor, wk: Tensor, proto: Tensor) -> Tensor:
        condition = F.linear(F.layer_norm(t, t.shape[-1:]), wk)
        keyed = condition[:, None, :] * F.normalize(proto, dim=-1)[None]
        return torch.einsum("bld,bed->ble", F.linear(x, wq), keyed) / self.s.width**0.5

    def forward(self, x: Tensor) -> Tensor:
        t, s = self.shared["t"], self.s
        kept = F.linear(t, self.router).softmax(-1).topk(s.top_k).indices
        outside = torch.ones(len(t), s.experts, dtype=torch.bool).scatter(1, kept, False)[:, None]
        z = self.scores(x, t, *self.routers()).masked_fill(outside, float("-inf"))
        gates = z.softmax(-1)
        if s.token_top_k < s.top_k:
            top = gates.topk(s.token_top_k)
            hard = torch.zeros_like(gates).scatter(-1, top.indices, top.values)
            hard = hard / hard.sum(-1, keepdim=True)
            gates = hard.detach() + gates - gates.detach()
        result = self.base(x)
        for e in range(s.experts):
            if bool((gates[..., e] > 0).any()):
                expert = F.linear(F.linear(x, self.A[e]), self.B[e])
                result = result + gates[..., e, None] * expert * (s.alpha / s.rank)
        if self.training:
            self.shared["terms"].append(self.term(x.detach(), t.detach(), outside))
        return result

    def term(self, x: Tensor, t: Tensor, outside: Tensor) -> Tensor:
        """KL(teacher || student) inside the kept set, mean over all positions."""
        logs = [
            (self.scores(x, t, *w) / self.s.temperature).masked_fill(outside, -1e9).log_softmax(-1)
            for w in (self.ema, self.routers())
        ]
        return (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()


class Published:
    """A base model with wrapped layers, as the published code runs it."""

    def __init__(self, base: nn.Module, settings: Settings, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.base, self.settings, self.shared = base, settings, {"terms": []}
        hidden = base.get_input_embeddings().embedding_dim
        self.layers: dict[str, PublishedLinear] = {}
        for name, module in list(base.named_modules()):
            if name.rsplit(".", 1)[-1] in TARGETS and "vision" not in name:
                layer = PublishedLinear(module, settings, hidden, self.shared)
                parent, _, child = name.rpartition(".")
                setattr(base.get_submodule(parent), child, layer)
                self.layers[name] = layer

    def see(self, text_ids: Tensor) -> None:
        """Takes the instruction vectors: means over all positions, padding included."""
        self.shared["t"] = self.base.get_input_embeddings()(text_ids).detach().mean(1)

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Runs forward and backward in training mode; returns both losses, the second weighted."""
        self.base.train()
        self.shared["terms"] = []
        loss = self.base(**batch).loss
        term = self.settings.stability_weight * torch.stack(self.shared["terms"]).mean()
        (loss + term).backward()
        return loss.detach(), term.detach()

    def save(self, folder: Path, rename=lambda name: name, others=None) -> None:
        """Writes the published layout; `rename` maps module names, `others` are non-LoRA ones."""
        folder.mkdir(parents=True)
        tensors, averages = {}, {}
        for name, layer in self.layers.items():
            key = f"base_model.model.{rename(name)}."
            for e in range(self.settings.experts):
                tensors[f"{key}lora_A.loraA.{e}.weight"] = layer.A[e].detach()
                tensors[f"{key}lora_B.loraB.{e}.weight"] = layer.B[e].detach()
            tensors[f"{key}lora_attn_wq.weight"] = layer.wq.detach()
            tensors[f"{key}lora_attn_wk.weight"] = layer.wk.detach()
            tensors[f"{key}lora_attn_expert_proto"] = layer.proto.detach()
            tensors[f"{key}lora_sub_router.weight"] = torch.randn(self.settings.experts, 4)
            tensors[f"{key}lora_router.weight"] = layer.router.detach()
            names = ("attn_wq_weight", "attn_wk_weight", "attn_expert_proto")
            averages[rename(name)] = dict(zip(names, layer.ema, strict=True))
        torch.save(tensors, folder / "adapter_model.bin")
        torch.save(others or {}, folder / "non_lora_trainables.bin")
        if self.settings.ema:
            torch.save(averages, folder / "router_distill_ema.bin")
        (folder / "adapter_config.json").write_text(json.dumps(self.settings.config()))

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Returns a layer's gradients under our parameters' names; a skipped expert's are zero."""
        layer = self.layers[name]
        grad = lambda p: torch.zeros_like(p) if p.grad is None else p.grad  # noqa: E731
        return {
            "A": torch.cat([grad(p) for p in layer.A]),
            "B": torch.cat([grad(p) for p in layer.B], dim=1),
            "query": grad(layer.wq),
            "key": grad(layer.wk),
            "prototypes": grad(layer.proto),
        }


def text_base(seed: int, hidden: int = 48) -> Qwen3ForCausalLM:
    """Returns a random two-layer Qwen3 with `hidden` dimensions."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=120, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, pad_token_id=0,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).float()


def read_fixture(folder: Path, settings: Settings) -> Published:
    """Returns the stored adapter in `folder`, loaded into the loop implementation."""
    published = Published(AutoModelForCausalLM.from_pretrained(folder / "base"), settings)
    read = lambda file: torch.load(folder / "adapter" / file, weights_only=True)  # noqa: E731
    tensors, averages = read("adapter_model.bin"), read("router_distill_ema.bin")
    with torch.no_grad():
        for name, layer in published.layers.items():
            key = f"base_model.model.{name}."
            for e in range(settings.experts):
                layer.A[e].copy_(tensors[f"{key}lora_A.loraA.{e}.weight"])
                layer.B[e].copy_(tensors[f"{key}lora_B.loraB.{e}.weight"])
            layer.wq.copy_(tensors[f"{key}lora_attn_wq.weight"])
            layer.wk.copy_(tensors[f"{key}lora_attn_wk.weight"])
            layer.proto.copy_(tensors[f"{key}lora_attn_expert_proto"])
            layer.router.copy_(tensors[f"{key}lora_router.weight"])
            layer.ema = [
                averages[name][f"attn_{n}"] for n in ("wq_weight", "wk_weight", "expert_proto")
            ]
    return published
