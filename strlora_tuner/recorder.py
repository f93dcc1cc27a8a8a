"""Writes which experts a run of inference used, by instruction: the report's routing diagnosis."""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from strlora_tuner.api import tuner_of
from strlora_tuner.config import StrLoraConfig
from strlora_tuner.instruction import instruction_mask


class RoutingRecorder:
    """Sums gates by distinct instruction over the prompts that a model reads."""

    def __init__(self, model: nn.Module) -> None:
        self.tuner = tuner_of(model)
        self.config = cast(StrLoraConfig, self.tuner.peft_config[self.tuner.active_adapters[0]])
        self.rows: dict[tuple[int, ...], int] = {}
        self.use: dict[tuple[int, ...], Tensor] = {}
        self.selected: dict[tuple[int, ...], Tensor] = {}
        self.tuner.routing.recording = True
        self.tuner.model.register_forward_hook(self._after_forward)

    @torch.no_grad()
    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        routing = self.tuner.routing
        ids = routing.take_prompt()
        if ids is None:  # a decoding step
            return
        adapter = self.tuner.active_adapters[0]
        records = [m.record for _, m in self.tuner.mixtures(adapter) if m.record is not None]
        weights = torch.stack([w for _, _, _, w in records])  # (layers, B, L)
        gates = torch.stack([g for g, _, _, _ in records])  # (layers, B, L, E)
        share = torch.einsum("nble,nbl->bne", gates, weights)
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-12)
        kept = torch.stack([k for _, k, _, _ in records]).transpose(0, 1).float()
        mask = instruction_mask(ids, self.config)
        for row, used, chosen, text in zip(ids, share, kept, mask, strict=True):
            key = tuple(row[text].tolist())
            self.rows[key] = self.rows.get(key, 0) + 1
            self.use[key] = self.use.get(key, 0) + used.cpu()
            self.selected[key] = self.selected.get(key, 0) + chosen.cpu()

    def result(self, tokenizer: Any) -> dict[str, Any]:
        """Returns the JSON object: layers, num_experts, and use and selection by instruction."""
        instructions = [
            {
                "text": tokenizer.decode(list(key)).strip(),
                "rows": rows,
                "use": _rounded(self.use[key] / rows),
                "selected": _rounded(self.selected[key] / rows),
            }
            for key, rows in self.rows.items()
        ]
        return {
            "layers": [name for name, _ in self.tuner.mixtures()],
            "num_experts": self.config.num_experts,
            "instructions": instructions,
        }


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(v, 5) for v in row] for row in values.tolist()]


def record_routing(model: Any, path: Path) -> None:
    """Records from now on and writes `path` when the process ends, whole or not at all."""
    recorder = RoutingRecorder(model)

    def write() -> None:
        from transformers import AutoTokenizer

        folder = getattr(model.config, "name_or_path", "") or getattr(model, "model_dir", "")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(recorder.result(tokenizer)))
        os.replace(temporary, path)

    atexit.register(write)
