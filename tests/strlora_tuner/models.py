"""Tiny random models for the tests, made in memory, and small adapters of every routed tuner.

`python -m tests.strlora_tuner.models` writes the golden file of the adapters' saved keys anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors import safe_open
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from strlora_tuner import StrLoraModel
from strlora_tuner.methods import config_class, folders
from strlora_tuner.methods.branchlora.keyed_model import KeyedModel
from strlora_tuner.methods.strlora.layer import MixtureOfExperts

STRLORA = "strlora"
METHODS = tuple(name for name in folders() if name != STRLORA)
# What a row is answered depends on its batch and pass, as published; and all others.
BY_BATCH = ("same_released",)
BY_ROW = tuple(name for name in METHODS if name not in BY_BATCH)
GOLDEN = Path(__file__).parents[1] / "fixtures" / "adapter_keys.json"
TOKENIZER = Path(__file__).parents[2] / "assets" / "tiny_base"
# Architectures whose costly tests are in CI's slow part only.
SLOW = ("gemma3", "qwen_vl")
# What keeps a method's adapter small, over its defaults.
SMALL: dict[str, dict[str, Any]] = {STRLORA: {"router_dim": 6}, "oracle": {"task_experts": 3}}
VOCAB, HIDDEN = 96, 32
USER, END, PAD, IMAGE = 90, 91, 0, 92
LANGUAGE_LINEARS = r".*(?:language_model|model)\.layers\.\d+\.(?:self_attn|mlp)\.[a-z]+_proj"

_TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=PAD,
    bos_token_id=None,
    eos_token_id=END,
)


def text_model(seed: int = 0, **changes: object) -> torch.nn.Module:
    """Returns a two-layer Qwen3 text model; `changes` override its configuration."""
    torch.manual_seed(seed)
    settings = {**_TEXT, "tie_word_embeddings": True, **changes}
    return Qwen3ForCausalLM(Qwen3Config(**settings)).float().eval()


def internvl_model(seed: int = 0) -> torch.nn.Module:
    """Returns an InternVL with 28x28 images of 4 tokens."""
    torch.manual_seed(seed)
    vision = InternVLVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[28, 28],
        patch_size=[7, 7],
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen3Config(**_TEXT, tie_word_embeddings=False),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return InternVLForConditionalGeneration(config).float().eval()


def gemma3_model(seed: int = 0) -> torch.nn.Module:
    """Returns a Gemma3 whose input embeddings are scaled, with 4 tokens an image."""
    torch.manual_seed(seed)
    text = {k: v for k, v in _TEXT.items() if k not in ("bos_token_id",)}
    config = Gemma3Config(
        text_config={**text, "bos_token_id": 1, "sliding_window": 64, "sliding_window_pattern": 2},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=93,
        eoi_token_index=94,
    )
    model = Gemma3ForConditionalGeneration(config).float().eval()
    # Zero at first: images would say nothing.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    return model


def qwen_vl_model(seed: int = 0) -> torch.nn.Module:
    """Returns a Qwen2.5-VL; the tests give it text only or one image."""
    torch.manual_seed(seed)
    text = {
        **_TEXT,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [1, 1, 2],
            "rope_theta": 10000.0,
        },
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "patch_size": 7,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "window_size": 28,
            "fullatt_block_indexes": [0],
        },
        image_token_id=IMAGE,
        video_token_id=95,
        vision_start_token_id=93,
        vision_end_token_id=94,
    )
    return Qwen2_5_VLForConditionalGeneration(config).float().eval()


MODELS = {
    "text": text_model,
    "internvl": internvl_model,
    "gemma3": gemma3_model,
    "qwen_vl": qwen_vl_model,
}


def base_model(name: str) -> Any:
    """Returns a tiny model that knows where its tokenizer is."""
    model = MODELS[name]()
    model.config.name_or_path = str(TOKENIZER)
    return model


def config(method: str = STRLORA, **changes: Any) -> Any:
    """Returns a method's small configuration with turn markers; `changes` override it."""
    settings: dict[str, Any] = dict(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=LANGUAGE_LINEARS,
        exclude_modules=r".*(?:vision|visual).*",
        turn_start=[USER],
        turn_end=[END],
        ignored_ids=[PAD, USER, END, IMAGE, 93, 94, 95],
        pad_id=PAD,
    )
    return config_class(method)(**{**settings, **SMALL.get(method, {}), **changes})


def adapted_linears() -> list[torch.nn.Linear]:
    """Returns the layers of the text model that `config` wraps."""
    layers = text_model().model.layers.modules()
    return [module for module in layers if isinstance(module, torch.nn.Linear)]


def adapted(
    base: torch.nn.Module, method: str = STRLORA, seed: int = 1, chunk: int = 1, **changes: Any
) -> Any:
    """Returns `base` with a method's adapter whose tensors are random, as after training.

    In chunk 3 a method that grows holds what two chunks left.
    """
    torch.manual_seed(seed)
    model = get_peft_model(base, config(method, **changes).at_chunk(chunk))
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: Any, adapter: str = "default") -> None:
    """Gives every tensor that an adapter has learnt or counted a random value."""
    tuner = model.base_model
    for _, bank in tuner.mixtures(adapter):
        if isinstance(bank, MixtureOfExperts):
            _randomise_strlora(bank)
            continue
        for tensor in bank.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.2)
    if isinstance(tuner, KeyedModel) and len(tuner.statistics(adapter).keys):
        for tensor in tuner.statistics(adapter).state_dict().values():
            tensor.normal_()
    if isinstance(tuner, StrLoraModel):
        statistics = tuner.statistics(adapter)
        statistics.count.fill_(50)
        statistics.mean.normal_(std=0.02)
        statistics.spread.fill_(0.5)
        statistics.teacher_steps.fill_(3)


def _randomise_strlora(mixture: MixtureOfExperts) -> None:
    """As above; the teacher stays near its routers."""
    mixture.A.normal_(std=0.2)
    mixture.B.normal_(std=0.2)
    mixture.task.normal_(std=0.3)
    mixture.prototypes.normal_()
    mixture.query.mul_(0.3)
    for name in ("query", "key", "prototypes"):
        teacher = getattr(mixture, f"ema_{name}")
        teacher.copy_(getattr(mixture, name) + 0.3 * torch.randn_like(teacher))


def prompts(batch: int = 3, seed: int = 2, image_tokens: int = 0) -> dict[str, torch.Tensor]:
    """Returns a right-padded training batch: a user turn of random length, then an answer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(batch):
        text = torch.randint(2, 80, (3 + 2 * index,), generator=generator).tolist()
        answer = torch.randint(2, 80, (2 + index % 2,), generator=generator).tolist()
        image = [93, *[IMAGE] * image_tokens, 94] if image_tokens else []
        rows.append(([USER, *image, *text, END], [*answer, END]))
    length = max(len(p) + len(a) for p, a in rows)
    ids = torch.full((batch, length), PAD)
    labels = torch.full((batch, length), -100)
    for index, (prompt, answer) in enumerate(rows):
        ids[index, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


@torch.no_grad()
def logits(model: Any, batch: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Returns what the model says to a batch, (batch, tokens, vocabulary)."""
    batch = batch or prompts()
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def for_training(
    name: str, batch: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Returns a batch with what the architecture asks for in training."""
    batch = batch or prompts()
    if name == "gemma3":
        return {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
    return batch


def with_an_empty_instruction(
    model: Any, name: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns a batch whose first row has none, and its loss."""
    ids = torch.tensor([[USER, END, 5, 6], [USER, 9, END, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch, model(**for_training(name, batch), labels=ids).loss


def golden_rows() -> list[tuple[str, str]]:
    """(tuner, architecture) of every adapter whose saved keys stand in the golden file."""
    return [*((STRLORA, name) for name in MODELS), *((method, "text") for method in METHODS)]


def saved_keys(method: str, name: str) -> list[str]:
    """Returns name and shape of every tensor that an adapter of the method saves."""
    with tempfile.TemporaryDirectory() as folder:
        adapted(base_model(name), method).save_pretrained(folder)
        with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
            return sorted(f"{key} {file.get_slice(key).get_shape()}" for key in file.keys())  # noqa: SIM118


if __name__ == "__main__":
    content = {f"{method}/{name}": saved_keys(method, name) for method, name in golden_rows()}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
