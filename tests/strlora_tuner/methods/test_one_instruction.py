"""An adapter of fixed gates, written as plain LoRA for one instruction, in PEFT's own loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from strlora_tuner.methods.strlora_signed.one_instruction import (
    lora_tensors,
    write_after_prompt,
    write_lora,
)
from tests.strlora_tuner.models import END, USER, adapted, logits, text_model

METHOD = "strlora_signed"
TOLD, OTHER = [5, 6, 7], [40, 41]


def prompts(instruction: list[int], *answers: list[int]) -> dict[str, Tensor]:
    """One prompt a row: the instruction and an answer of the same length as the others'."""
    ids = torch.tensor([[USER, *instruction, END, *answer] for answer in answers])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module", params=["sign", "topk"])
def model(request: pytest.FixtureRequest) -> PeftModel:
    return adapted(text_model(), METHOD, gate=request.param)


def test_it_is_the_routed_adapter_on_prompts_of_that_instruction(
    model: PeftModel, tmp_path: Path
) -> None:
    batch = prompts(TOLD, [9, 10, 11], [12, 13, 14])
    wanted = logits(model, batch)
    write_lora(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    plain = PeftModel.from_pretrained(text_model(), tmp_path)
    torch.testing.assert_close(logits(plain, batch), wanted, rtol=1e-5, atol=1e-5)
    assert float((wanted - logits(text_model(), batch)).abs().max()) > 0.1
    greedy = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    start = prompts(TOLD, [])
    assert torch.equal(plain.generate(**start, **greedy), model.generate(**start, **greedy))

    other = prompts(OTHER, [9, 10, 11])
    assert float((logits(plain, other) - logits(model, other)).abs().max()) > 1e-2
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), wanted, rtol=1e-4, atol=1e-4)


def test_what_trains_in_full_goes_with_it(tmp_path: Path) -> None:
    """As an aligner does."""
    model = adapted(text_model(), METHOD, modules_to_save=["model.norm"])
    name, norm = next((n, p) for n, p in model.named_parameters() if "norm.modules_to_save" in n)
    with torch.no_grad():
        norm.copy_(torch.linspace(0.5, 2.0, len(norm)))
    batch = prompts(TOLD, [9, 10, 11])
    wanted = logits(model, batch)
    write_lora(model, tmp_path)
    plain = PeftModel.from_pretrained(text_model(), tmp_path)
    assert torch.equal(dict(plain.named_parameters())[name], norm)
    torch.testing.assert_close(logits(plain, batch), wanted, rtol=1e-5, atol=1e-5)


def test_the_first_prompt_is_written_and_no_other(model: PeftModel, tmp_path: Path) -> None:
    write_after_prompt(model, tmp_path / "lora")
    logits(model, prompts(TOLD, [9]))
    first = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    logits(model, prompts(OTHER, [9]))
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == first


def test_two_instructions_are_no_single_lora(model: PeftModel) -> None:
    two = {k: torch.cat([prompts(t, [9])[k] for t in (TOLD, [50, 51, 52])]) for k in
           ("input_ids", "attention_mask")}  # fmt: skip
    logits(model, two)
    with pytest.raises(ValueError, match="have different instructions"):
        lora_tensors(model)
    with pytest.raises(ValueError, match="has read no prompt"):
        lora_tensors(adapted(text_model(), METHOD))
