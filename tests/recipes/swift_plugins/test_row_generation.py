"""Rows that leave a batch as their answers end: the answers stay those of the host's own loop."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen3_5ForCausalLM, Qwen3_5TextConfig, StoppingCriteria

from recipes import REPO
from recipes.swift_plugins.row_generation import RowGeneration, applies_to
from tests.strlora_tuner.models import (
    BY_ROW,
    END,
    MODELS,
    USER,
    VOCAB,
    adapted,
    base_model,
    prompts,
)

ROWS, STEPS = 12, 24
CONFIG = GenerationConfig(
    max_new_tokens=STEPS, do_sample=False, eos_token_id=END, pad_token_id=0, use_cache=True
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads would only wait for each other on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class EndsByPrompt(StoppingCriteria):
    """A row ends after 1 to 20 tokens, which its prompt alone decides."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Returns (rows,) bool."""
        wanted = 1 + input_ids[:, : self.width].sum(1) % 20
        return input_ids.shape[1] - self.width >= wanted


def questions() -> dict[str, Any]:
    """Left-padded prompts (rows, tokens) of different lengths."""
    ids = prompts(batch=ROWS)["input_ids"].flip(1)
    ids[:, -1] = USER
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


class Widths(RowGeneration):
    """Notes how many rows every step of the model computes."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__(whole)
        self.widths: list[int] = []

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        def note(module: Any, inputs: Any, named: dict[str, Any]) -> None:
            self.widths.append(len(named["input_ids"]))

        handle = model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            return super().__call__(model, *args, **kwargs)
        finally:
            handle.remove()


def both(model: Any) -> tuple[Tensor, Tensor, list[int]]:
    """The sequences by the host's loop and by ours, and the rows of each of our steps."""
    assert applies_to(model, CONFIG)
    ours = Widths(model)
    asked = questions() | {"generation_config": CONFIG}
    asked["stopping_criteria"] = [EndsByPrompt(asked["input_ids"].shape[1])]
    with torch.inference_mode():
        expected = model.generate(**asked)
        found = model.generate(**asked, custom_generate=ours)
    return expected, found.sequences, ours.widths


def linear_attention() -> nn.Module:
    """A small Qwen3.5, whose recurrent states stand beside keys and values."""
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
    )  # fmt: skip
    return Qwen3_5ForCausalLM(config).eval()


FAMILIES = MODELS | {"linear attention": linear_attention}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("adapter", ["none", "lora", "strlora"])
def test_sequences_are_those_of_the_hosts_loop(family: str, adapter: str) -> None:
    model: Any = FAMILIES[family]()
    if adapter == "strlora":
        model = adapted(model)
    elif adapter == "lora":
        torch.manual_seed(3)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    expected, found, widths = both(model)
    assert torch.equal(found, expected)
    assert widths[0] == ROWS
    assert len(set(widths)) > 2, widths  # rows left more than once
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("method", BY_ROW)
def test_every_method_follows_the_rows(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = "strlora_tuner.methods.oracle.model.task_label"  # which the orchestrator writes
    monkeypatch.setattr(table, lambda text: f"{len(text) % 3} a task")
    expected, found, widths = both(adapted(base_model("text"), method).eval())
    assert torch.equal(found, expected)
    assert len(set(widths)) > 2, widths


def test_an_adapter_that_would_not_notice_keeps_its_rows() -> None:
    class Forgetful(nn.Module):
        peft_config: dict[str, Any] = {}

        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.Linear(1, 1)

    assert not applies_to(Forgetful(), CONFIG)


@pytest.mark.parametrize(
    "change",
    [{"do_sample": True}, {"num_beams": 2}, {"use_cache": False}, {"output_logits": True}],
)
def test_other_ways_to_generate_are_the_hosts(change: dict[str, Any]) -> None:
    config = GenerationConfig(**{**CONFIG.to_diff_dict(), **change})
    assert not applies_to(MODELS["text"](), config)


def test_nothing_is_left_of_a_batch() -> None:
    model = adapted(MODELS["text"]())
    both(model)
    gc.collect()
    expected, found, _ = both(model)  # the next batch has all its rows again
    assert torch.equal(found, expected)


def test_all_rows_end_at_once() -> None:
    model: Any = MODELS["text"]()
    config = GenerationConfig(**{**CONFIG.to_diff_dict(), "eos_token_id": list(range(VOCAB))})
    with torch.inference_mode():
        found = model.generate(
            **questions(), generation_config=config, custom_generate=RowGeneration(model)
        )
    assert found.sequences.shape == (ROWS, questions()["input_ids"].shape[1] + 1)


@pytest.mark.slow
def test_the_engines_answers_stay_the_same(tmp_path: Path) -> None:
    script, figures = REPO / "benchmarks" / "eval_speed.py", tmp_path / "figures.json"
    options = ["--samples", "4", "--repeats", "1", "--threads", "1", "--json", str(figures)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), *options], check=True, env=environment)
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["same_answers"] == found["samples"] == 24
