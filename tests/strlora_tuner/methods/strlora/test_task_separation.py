"""Centring is what lets stage 1 tell tasks apart, on the instructions of the embedded stream."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data_prep.mini.mini_stream import write_mini_stream
from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora.routing import select_experts

BASE = Path(__file__).parents[4] / "assets" / "tiny_base"


def mutual_information(first: list, second: list) -> float:
    """Returns the normalised mutual information of two labellings (over the mean entropy)."""
    total = len(first)

    def entropy(labels: list) -> float:
        return -sum(n / total * math.log(n / total) for n in Counter(labels).values())

    joint = entropy(list(zip(first, second, strict=True)))
    a, b = entropy(first), entropy(second)
    return 2 * (a + b - joint) / (a + b)


def read_instructions(stream: Path) -> tuple[list[str], list[str]]:
    """Returns tasks and user texts of all test samples, without the image placeholder."""
    tasks, texts = [], []
    for file in sorted((stream / "test").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            tasks.append(record["task"])
            texts.append(record["messages"][0]["content"].replace("<image>", "").strip())
    return tasks, texts


def instruction_vectors(texts: list[str]) -> torch.Tensor:
    """Returns mean input embeddings of the texts under the tiny base model, (N, H)."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tensors = load_file(BASE / "model.safetensors")
    table = next(v for k, v in tensors.items() if k.endswith("embed_tokens.weight")).float()
    encode = tokenizer.encode
    return torch.stack([table[encode(t, add_special_tokens=False)].mean(0) for t in texts])


def separation(tasks: list[str], vectors: torch.Tensor, seeds: int = 28) -> float:
    """Returns the mean mutual information of task and kept set over random stage-1 routers."""
    values = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        bound = vectors.shape[1] ** -0.5
        router = (torch.rand(4, vectors.shape[1], generator=generator) * 2 - 1) * bound
        kept = select_experts(router, vectors, top_k=2)[1]
        values.append(mutual_information(tasks, [tuple(row.tolist()) for row in kept]))
    return sum(values) / seeds


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    stream = tmp_path_factory.mktemp("separation") / "smoke"
    write_mini_stream(stream, "smoke", seed=0, workers=1)
    return read_instructions(stream)


def test_centred_instructions_separate_tasks(instructions, record_property):
    tasks, texts = instructions
    vectors = instruction_vectors(texts)
    statistics = InstructionStatistics(vectors.shape[1])
    statistics.observe(vectors, torch.ones(len(vectors), dtype=torch.bool))
    statistics.commit()
    plain = separation(tasks, vectors)
    centred = separation(tasks, statistics.normalise(vectors))
    for name, value in (("centred", centred), ("uncentred", plain)):
        record_property(name, round(value, 3))
    print(f"normalised mutual information: centred {centred:.3f}, uncentred {plain:.3f}")
    assert centred > 0.45, f"centred {centred:.2f}, uncentred {plain:.2f}"
    assert centred > plain + 0.1, f"centred {centred:.2f}, uncentred {plain:.2f}"
