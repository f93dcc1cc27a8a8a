"""Runs that are compared, written as the orchestrator writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import write_json, write_jsonl
from eval.matrix import append_scores
from eval.predictions import chunk_scores, split_results
from tests.eval.make_run import host_results, make_stream

TASKS = ["VQAv2", "OCRVQA"]
CHUNKS = 3


def write_run(
    root: Path, stream: Path, skills: list[float], method: str = "strlora", seed: int = 0,
    tasks: list[str] | None = None, **manifest: Any,
) -> Path:  # fmt: skip
    """Write a run: base model and one chunk a skill, each answered right with that probability."""
    names = tasks or TASKS
    for chunk, skill in enumerate([0.05, *skills]):
        folder = root / "chunks" / f"{chunk:03d}"
        answers = host_results(stream, names, dict.fromkeys(names, skill), 1000 * seed + chunk)
        write_jsonl(folder / "answers.jsonl", answers)
        split_results(folder / "answers.jsonl", stream, folder / "predictions", names)
        scores = chunk_scores(folder / "predictions", stream)
        append_scores(root / "matrix.csv", chunk, scores)
    planned = manifest.pop("planned", len(skills))
    content = {
        "name": root.name,
        "seed": seed,
        "recipe": {"method": method, "seed": seed, "data": {"stream": str(stream)}},
        "data": {"stream": str(stream), "sha256": "1" * 64, "chunks": ["2" * 64] * planned},
    }
    write_json(root / "manifest.json", content | manifest)
    write_json(root / "state.json", {"done": len(skills), "finished": planned == len(skills)})
    (root / "recipe.yaml").write_text("name: x\n", "utf-8")
    return root


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream and two runs on it, to be copied."""
    root = tmp_path_factory.mktemp("compared")
    stream = make_stream(root / "stream", TASKS, chunks=CHUNKS, tests=60)
    write_run(root / "good", stream, [0.5, 0.9, 0.9])
    write_run(root / "poor", stream, [0.5, 0.6, 0.3], "lora", seed=1)
    return root


def copied(folder: Path, root: Path) -> Path:
    """A copy under `root`, whose manifest names the stream that lies there."""
    shutil.copytree(folder, root / folder.name)
    if (manifest := root / folder.name / "manifest.json").is_file():
        text = manifest.read_text("utf-8").replace(str(folder.parent), str(root))
        manifest.write_text(text, "utf-8")
    return root / folder.name


@pytest.fixture
def stream(made: Path, tmp_path: Path) -> Path:
    return copied(made / "stream", tmp_path)


@pytest.fixture
def good(made: Path, stream: Path, tmp_path: Path) -> Path:
    return copied(made / "good", tmp_path)


@pytest.fixture
def poor(made: Path, stream: Path, tmp_path: Path) -> Path:
    return copied(made / "poor", tmp_path)
