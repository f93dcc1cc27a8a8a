"""A base model of a real shape with random weights, and a stream with pictures of real sizes."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import time
from pathlib import Path
from typing import Any

from step import ROOT  # isort: skip (it sets the import path)

from eval_speed import SHAPES, sized_model

TINY = ROOT / "assets" / "tiny_base"
FULL = SHAPES["internvl3.5-8b"]  # the config.json of OpenGVLab/InternVL3_5-8B-HF, sizes only
SMALL: dict[str, dict[str, Any]] = {
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
               "num_attention_heads": 2},
}  # fmt: skip
# InternVL's own tokens, behind the 151,669 of Qwen3, in the order of its tokenizer.
ADDED = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>",
         "</box>", "<video>")  # fmt: skip
PHOTOS = ((640, 480), (500, 375), (640, 427), (480, 640), (640, 480), (333, 500), (512, 512))
SMALL_PHOTOS = ((256, 256), (448, 448), (300, 300))
TASKS = ("describe", "count")


def write_tokenizer(folder: Path, source: Path | None) -> dict[str, int]:
    """Writes a tokenizer with InternVL's tokens and returns the ids that a config needs.

    Args:
        source: a folder with Qwen3's tokenizer.json, or tokenizer.json.xz; None: the tiny model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    if source is None:
        tokenizer = json.loads((TINY / "tokenizer.json").read_text("utf-8"))
    else:
        packed = source / "tokenizer.json.xz"
        raw = (
            lzma.decompress(packed.read_bytes())
            if packed.is_file()
            else (source / "tokenizer.json").read_bytes()
        )
        tokenizer = json.loads(raw)
        first = 1 + max(token["id"] for token in tokenizer["added_tokens"])
        flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        tokenizer["added_tokens"] += [
            {"id": first + n, "content": token, **flags} for n, token in enumerate(ADDED)
        ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["model_max_length"] = 40960
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return {"image": ids["<IMG_CONTEXT>"], "end": ids["<|im_end|>"], "pad": ids["<|endoftext|>"]}


def write_model(
    folder: Path, tokenizer: Path | None, full: bool, device: str, dtype: str
) -> dict[str, float]:
    """Makes the model on `device` and saves it with its processor; returns seconds and sizes."""
    import torch
    from transformers import AutoConfig

    started = time.monotonic()
    ids = write_tokenizer(folder, tokenizer)
    processor = json.loads((TINY / "processor_config.json").read_text("utf-8"))
    processor["image_seq_length"] = 256
    for part in ("image_processor", "video_processor"):
        processor[part]["size"] = {"height": 448, "width": 448}
    processor["image_processor"] |= {"min_patches": 1, "max_patches": 12}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1), "utf-8")
    config = AutoConfig.from_pretrained(TINY)
    config.vision_config.attention_bias = True
    config.image_token_id = ids["image"]
    torch.manual_seed(0)
    model = sized_model(
        config, FULL if full else SMALL, device, dtype,
        max_position_embeddings=40960, eos_token_id=ids["end"], pad_token_id=ids["pad"],
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
    )  # fmt: skip
    model.generation_config.eos_token_id = ids["end"]
    model.generation_config.pad_token_id = ids["pad"]
    if device == "cuda":
        torch.cuda.synchronize()
    made = time.monotonic()
    model.save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30
    count = sum(parameter.numel() for parameter in model.parameters())
    saved = time.monotonic()
    return {
        "make_s": made - started,
        "save_s": saved - made,
        "file_gib": size,
        "parameters_billions": count / 1e9,
    }


def write_stream(folder: Path, chunks: int, samples: int, questions: int, full: bool) -> None:
    """Writes a stream of `chunks` x `samples`, and `questions` test questions for each task."""
    import numpy as np
    from PIL import Image

    state = np.random.RandomState(0)
    for name in ("images", "chunks", "test"):
        (folder / name).mkdir(parents=True)
    photos = PHOTOS if full else SMALL_PHOTOS

    def sample(name: str, number: int, task: str) -> dict[str, Any]:
        width, height = photos[number % len(photos)]
        coarse = state.randint(0, 256, (height // 8, width // 8, 3)).astype("uint8")
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        file = f"images/{name}-{number:04d}.jpg"
        picture.save(folder / file, quality=90)
        if task == "count":
            question, answer = "How many bright spots are there? Answer with a number.", "7"
        else:
            question = "Describe this picture in one sentence, as if to a friend on the telephone."
            answer = " ".join(["It shows soft patches of colour that run into each other,"]
                              + ["bright ones and dark ones,"] * (1 + number % 6))  # fmt: skip
        turns = [
            {"role": "user", "content": f"<image>{question}"},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": turns, "images": [file], "task": task, "id": f"{name}-{number}"}

    def write(path: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / path).write_text(text, "utf-8")
        return {"samples": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    entries = []
    for chunk in range(1, chunks + 1):
        rows = [sample(f"c{chunk}", n, TASKS[n % len(TASKS)]) for n in range(samples)]
        file = f"chunks/{chunk:03d}.jsonl"
        counts = {task: sum(row["task"] == task for row in rows) for task in TASKS}
        entries.append({"index": chunk, "file": file, "tasks": counts, **write(file, rows)})
    tasks: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        rows = [sample(f"t-{task}", n, task) for n in range(questions)]
        tasks[task] = {"scorer": "exact", "test": f"test/{task}.jsonl"}
        tasks[task] |= write(f"test/{task}.jsonl", rows)
    manifest = {
        "format": "strlora-stream/1",
        "name": "sized",
        "generator": {"name": "benchmarks.gpu", "version": "1"},
        "seed": 0,
        "tasks": tasks,
        "chunks": entries,
    }
    (folder / "stream.json").write_text(json.dumps(manifest, indent=1), "utf-8")
