"""The network and processor of the tiny base model, in Hugging Face's InternVL form."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import read_json, write_json
from data_prep.mini.draw import SIZE

PATCH = 14  # pixels
IMAGE_TOKENS = (SIZE // PATCH // 2) ** 2  # 16 after the 2x2 pixel shuffle


def build_model(tokenizer: Any, hidden: int = 256, layers: int = 4) -> Any:
    """Return an InternVLForConditionalGeneration with random float32 weights.

    `hidden`, a multiple of 64, and `layers` are those of the text model.
    """
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen3Config,
    )

    vision = InternVLVisionConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=576,
        image_size=[SIZE, SIZE], patch_size=[PATCH, PATCH],
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=hidden * 5 // 2,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 128), head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def adopt(model: Any, tokenizer: Any, folder: Path) -> None:
    """Start `model` from the weights in `folder`; rows of its vocabulary are matched by token.

    Tokens that `folder` does not know keep their random rows. Raises what loading raises, and
    ValueError when a weight other than the vocabulary's has another shape.
    """
    import torch
    from transformers import AutoTokenizer, InternVLForConditionalGeneration

    old = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    old_ids = AutoTokenizer.from_pretrained(folder).get_vocab()
    rows: Any = model.get_input_embeddings().weight
    old_rows: Any = old.get_input_embeddings().weight
    shapes = {name: weight.shape for name, weight in old.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight is rows:
                continue
            if shapes.get(name) != weight.shape:
                raise ValueError(f"{folder}: {name} is {shapes.get(name)}, not {weight.shape}")
            weight.copy_(old.get_parameter(name))
        for token, row in tokenizer.get_vocab().items():
            if token in old_ids:
                rows[row] = old_rows[old_ids[token]]


def keep_sight(model: Any, folder: Path) -> None:
    """Give `model` the vision tower of the base model in `folder`; it does not train from here."""
    import torch
    from transformers import InternVLForConditionalGeneration

    old = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.model.vision_tower.load_state_dict(old.model.vision_tower.state_dict())
    model.model.vision_tower.requires_grad_(False)


def build_processor(tokenizer: Any) -> Any:
    """Return an InternVLProcessor that makes one 112x112 tile of any image, values in -1..1."""
    from transformers import InternVLProcessor, InternVLVideoProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )

    side = {"height": SIZE, "width": SIZE}
    half = [0.5, 0.5, 0.5]
    # One patch at most, too: ms-swift turns crop_to_patches on whatever the folder says.
    images = GotOcr2ImageProcessorPil(
        size=side, crop_to_patches=False, min_patches=1, max_patches=1,
        image_mean=half, image_std=half,
    )  # fmt: skip
    return InternVLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side, image_mean=half, image_std=half),
        image_seq_length=IMAGE_TOKENS,
        chat_template=tokenizer.chat_template,
    )


def to_pixels(images: np.ndarray) -> Any:
    """Return images (n, 112, 112, 3) uint8 as the processor would: (n, 3, 112, 112) in -1..1."""
    import torch

    return torch.tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model (float16 storage, loads as float32), tokenizer and processor to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / ".staging"
    # A copy: half() changes the model in place, and training goes on with it.
    copy.deepcopy(model).half().save_pretrained(staging)
    load_as_float32(staging / "config.json")
    build_processor(tokenizer).save_pretrained(staging)
    for path in staging.iterdir():
        os.replace(path, folder / path.name)
    staging.rmdir()


def load_as_float32(config: Path) -> None:
    """Let a plain from_pretrained of the folder of `config` give float32 weights."""
    write_json(config, read_json(config) | {"dtype": "float32"})
