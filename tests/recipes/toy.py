"""A stream of two toy tasks and a recipe on it: what the orchestrator's tests run on."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

QUESTIONS = {
    "VQAv2": "<image>What colour is the shape? Answer with one word.",
    "Fin": "<image>How many shapes are there? Answer with a number.",
}
SCORERS = {"VQAv2": "vqa", "Fin": "exact"}


def write_stream(root: Path, chunks: int = 2, samples: int = 12, tests: int = 4) -> Path:
    """Writes a stream folder with real images; returns it."""
    for name in ("chunks", "test", "images"):
        (root / name).mkdir(parents=True)
    draw = random.Random(0)
    tasks = {}
    for task, scorer in SCORERS.items():
        file = f"test/{task}.jsonl"
        rows = [_sample(root, draw, task, f"{task}-test-{i:06d}") for i in range(tests)]
        digest = _write(root / file, rows)
        tasks[task] = {
            "scorer": scorer,
            "test": file,
            "samples": tests,
            "sha256": digest,
            "majority": 0.25,
        }
    entries = []
    for index in range(1, chunks + 1):
        names = [draw.choice(list(QUESTIONS)) for _ in range(samples)]
        rows = [
            _sample(root, draw, task, f"{task}-train-{index:03d}{i:03d}")
            for i, task in enumerate(names)
        ]
        file = f"chunks/{index:03d}.jsonl"
        digest = _write(root / file, rows)
        counts = {task: names.count(task) for task in QUESTIONS}
        entries.append(
            {"index": index, "file": file, "samples": samples, "sha256": digest, "tasks": counts}
        )
    manifest = {
        "format": "strlora-stream/1",
        "name": "toy",
        "generator": {"name": "tests.recipes.toy", "version": "1"},
        "seed": 0,
        "tasks": tasks,
        "chunks": entries,
    }
    (root / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


def _sample(root: Path, draw: random.Random, task: str, name: str) -> dict[str, Any]:
    colour, count = draw.choice(["red", "green", "blue"]), draw.randint(1, 3)
    image = Image.new("RGB", (56, 56), "white")
    pen = ImageDraw.Draw(image)
    for i in range(count):
        pen.rectangle([4 + 16 * i, 8, 14 + 16 * i, 40], fill=colour)
    image.save(root / "images" / f"{name}.png")
    return {
        "messages": [
            {"role": "user", "content": QUESTIONS[task]},
            {"role": "assistant", "content": colour if task == "VQAv2" else str(count)},
        ],
        "images": [f"images/{name}.png"],
        "task": task,
        "id": name,
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def write_model(folder: Path) -> Path:
    """Writes a folder that passes for a model as long as nothing loads it; returns it."""
    folder.mkdir()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    for name, content in (
        ("config.json", {**sizes, "intermediate_size": 8}),
        ("vocab.json", {}),
        ("preprocessor_config.json", {}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    save_file({"weight": np.zeros(4, np.float32)}, folder / "model.safetensors")
    return folder


def recipe_values(stream: Path, run_dir: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """Values of a small recipe; `changes` replace whole blocks."""
    values: dict[str, Any] = {
        "name": "toy",
        "method": "lora",
        "run_dir": str(run_dir),
        "model": {"path": str(model), "dtype": "float32", "max_length": 512},
        "data": {"stream": str(stream), "chunks": 2},
        "tuner": {"rank": 8, "alpha": 16, "dropout": 0.0, "num_experts": 4, "router_dim": 8},
        "schedule": {
            "global_batch": 4,
            "per_device_batch": 4,
            "save_steps": 1,
            "first": {"learning_rate": 1e-3, "stability_weight": 0},
            "later": {"learning_rate": 1e-3, "stability_weight": 0.1},
        },
        "swift": {
            "gradient_checkpointing": False,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "report_to": "none",
        },
        "eval": {"batch_size": 8, "max_new_tokens": 4},
        "launcher": {"cpu": True, "omp_threads": 1},
    }
    return {**values, **changes}


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    """Writes `values` as YAML; returns the path."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path
