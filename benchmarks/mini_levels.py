"""Floors and ceilings of Mini-StrCVIT's tasks on the tiny base model: what a method can reach.

    python -m data_prep.mini --out data/mini --size mini
    python benchmarks/mini_levels.py --stream data/mini --json data_prep/mini/levels.json

Floors: the base model as it is, and the best constant answer of the training samples. Ceiling: one
LoRA on every linear layer of the language model, trained on all chunks at once for several epochs
at a learning rate of its own. Scored on the test sets with the `fixed` scorers. Vision is frozen,
so the image features are computed once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from assets.tiny_base.make import measure, network
from assets.tiny_base.make.sequences import IGNORE, Layout
from data_prep.files import read_jsonl, sha256_file, write_json
from eval.scorers.registry import find_scorer

ROOT = Path(__file__).resolve().parents[1]
LINEARS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
CONSTANTS = 30  # most frequent train answers that are tried as the best constant
Record = dict[str, Any]


def pictures(folder: Path, records: list[Record]) -> np.ndarray:
    """Return the images of the records, (n, 112, 112, 3) uint8."""
    return np.stack([np.asarray(Image.open(folder / row["images"][0])) for row in records])


def prompt_of(record: Record) -> str:
    """Return the user's text without the image mark."""
    return record["messages"][0]["content"].removeprefix("<image>")


def features(model: Any, folder: Path, records: list[Record]) -> torch.Tensor:
    """Return the image tokens of the records as the language model gets them, (n, 16, hidden)."""
    parts = []
    for start in range(0, len(records), 100):
        pixels = network.to_pixels(pictures(folder, records[start : start + 100]))
        with torch.inference_mode():
            out = model.model.get_image_features(pixel_values=pixels)
            parts.append(getattr(out, "pooler_output", out).reshape(len(pixels), -1, 256))
    return torch.cat(parts).clone()


def loss_of(model: Any, inputs: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over the answers of a batch; `images`: (rows, 16, hidden)."""
    labels = inputs["labels"][:, 1:]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    marks = inputs["input_ids"] == model.config.image_token_id
    embeds = embeds.masked_scatter(marks[..., None], images)
    out = model.model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    answers = labels != IGNORE
    logits = model.lm_head(out.last_hidden_state[:, :-1][answers])
    return torch.nn.functional.cross_entropy(logits, labels[answers])


def batches(rows: list[tuple[list[int], list[int]]], size: int, rng: Random) -> list[list[int]]:
    """Return the rows of one epoch in batches of about equal length, in random order."""
    order = rng.sample(range(len(rows)), len(rows))
    out = []
    # Sorted in windows only: sorted as a whole, the batches of all epochs would be much the same.
    for start in range(0, len(order), 32 * size):
        near = sorted(order[start : start + 32 * size], key=lambda row: len(rows[row][0]))
        out += [near[at : at + size] for at in range(0, len(near), size)]
    rng.shuffle(out)
    return out


def train_jointly(
    model: Any, layout: Layout, folder: Path, records: list[Record], options: argparse.Namespace
) -> Any:
    """Return the PEFT model, trained on all records for `options.epochs` epochs (cosine rate)."""
    images = features(model, folder, records)
    pairs = [(prompt_of(row), row["messages"][1]["content"]) for row in records]
    rows = [layout.conversation([pair], image=True) for pair in pairs]
    adapted = get_peft_model(
        model,
        LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=LINEARS),
    )
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0.0)
    rng, started, losses = Random(options.seed), time.monotonic(), []
    steps = [part for _ in range(options.epochs) for part in batches(rows, options.batch, rng)]
    adapted.train()
    for number, part in enumerate(steps):
        share = number / len(steps)
        rate = options.rate * min(1.0, (number + 1) / 50) * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = rate
        inputs = layout.batch([rows[row] for row in part], max(len(rows[row][0]) for row in part))
        loss = loss_of(adapted.base_model.model, inputs, images[part])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if number % 200 == 199:
            minutes = (time.monotonic() - started) / 60
            recent = sum(losses[-200:]) / 200
            print(f"step {number + 1} of {len(steps)}  {minutes:.1f} min  loss {recent:.3f}")
            sys.stdout.flush()
    return adapted


def answers(model: Any, tokenizer: Any, folder: Path, records: list[Record]) -> list[str]:
    """Return the greedy answers, at most 32 tokens, as the recipes ask for."""
    model.eval()
    layout, out = Layout(tokenizer), []
    for start in range(0, len(records), 100):
        part = records[start : start + 100]
        prompts = [prompt_of(row) for row in part]
        out += measure.greedy(model, layout, tokenizer, pictures(folder, part), prompts, 32)
    return out


def score(scorer: str, predictions: list[str], records: list[Record]) -> float:
    """Return the task's score in 0..1."""
    golds = [{**row, "gold": row["messages"][1]["content"]} for row in records]
    found = find_scorer(scorer)
    return round(found.aggregate(found.score_all(predictions, golds)), 4)


def constant(scorer: str, train: list[Record], test: list[Record]) -> float:
    """Return the test score of the constant that scores best on (up to 500) training samples."""
    counts = Counter(row["messages"][1]["content"] for row in train)
    some = train[:500]
    common = [answer for answer, _ in counts.most_common(CONSTANTS)]
    best = max(common, key=lambda answer: score(scorer, [answer] * len(some), some))
    return score(scorer, [best] * len(test), test)


def measure_levels(options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of levels.json."""
    manifest = json.loads((options.stream / "stream.json").read_text())
    tests = {name: read_jsonl(options.stream / e["test"]) for name, e in manifest["tasks"].items()}
    train = [row for e in manifest["chunks"] for row in read_jsonl(options.stream / e["file"])]
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = InternVLForConditionalGeneration.from_pretrained(options.base).eval()

    def all_scores(current: Any) -> dict[str, float]:
        return {
            name: score(
                e["scorer"], answers(current, tokenizer, options.stream, tests[name]), tests[name]
            )
            for name, e in manifest["tasks"].items()
        }

    base = all_scores(model)
    print(f"base: {base}", flush=True)
    started = time.monotonic()
    adapted = train_jointly(model, Layout(tokenizer), options.stream, train, options)
    ceiling = all_scores(adapted)
    tasks = {
        name: {
            "ceiling": ceiling[name],
            "base": base[name],
            "majority": constant(e["scorer"], [r for r in train if r["task"] == name], tests[name]),
            "train": sum(row["task"] == name for row in train),
            "test": len(tests[name]),
        }
        for name, e in manifest["tasks"].items()
    }
    keys = ("epochs", "rate", "batch", "rank", "seed")
    return {
        "base_sha256": sha256_file(options.base / "model.safetensors"),
        "stream": manifest["name"],
        "stream_sha256": sha256_file(options.stream / "stream.json"),
        "joint": {key: getattr(options, key) for key in keys},
        "minutes": round((time.monotonic() - started) / 60, 1),
        "tasks": dict(sorted(tasks.items())),
    }


def main() -> None:
    """Measure, print the table, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stream", type=Path, default=ROOT / "data" / "mini")
    parser.add_argument("--base", type=Path, default=ROOT / "assets" / "tiny_base")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    levels = measure_levels(options)
    print("| task | base | constant | ceiling |\n|---|---|---|---|")
    for name, row in levels["tasks"].items():
        figures = " | ".join(f"{100 * row[key]:.0f}" for key in ("base", "majority", "ceiling"))
        print(f"| {name} | {figures} |")
    if options.json:
        write_json(options.json, levels)


if __name__ == "__main__":
    main()
