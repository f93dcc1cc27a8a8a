"""Somebody's own LLaVA JSON: chunked, checked, trained and evaluated by the real host."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from recipes import REPO
from recipes.config.swift_arguments import installed_version
from tests.recipes.toy import recipe_values, write_recipe

BASE = REPO / "assets" / "tiny_base"
SAMPLES = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        installed_version() is None or not BASE.is_dir(), reason="needs ms-swift, assets/tiny_base"
    ),
]


def write_source(folder: Path, samples: int) -> Path:
    """Writes a LLaVA file as people have it: odd sizes, fields of its own, two questions."""
    draw = random.Random(0)
    (folder / "photos").mkdir(parents=True)
    records = []
    for number in range(samples):
        colour = draw.choice(["red", "green", "blue"])
        name = f"photos/{number:03d}.{'jpg' if number % 2 else 'png'}"
        Image.new("RGB", (40 + 7 * number, 90), colour).save(folder / name)
        turns = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": colour},
        ]
        if number % 5 == 0:
            turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "yes"}]
        record = {"id": number, "image": name, "conversations": turns}
        records.append(record | ({"camera": {"iso": 100}} if number % 3 else {}))
    path = folder / "mine.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_from_a_llava_file_to_scores(tmp_path: Path) -> None:
    source, stream = write_source(tmp_path / "source", SAMPLES), tmp_path / "stream"
    cut = ["--by", "count", "--size", SAMPLES, "--task", "colours"]
    run("data_prep.chunk", "--source", source, "--out", stream, *cut, "--holdout", 0.2)
    manifest = json.loads((stream / "stream.json").read_text("utf-8"))
    kept = manifest["tasks"]["colours"]["samples"]
    assert 0 < kept < SAMPLES
    assert [chunk["tasks"] for chunk in manifest["chunks"]] == [{"colours": SAMPLES - kept}]

    values = recipe_values(stream, tmp_path / "run", BASE, method="strlora")
    values["data"] |= {"source": "folder", "chunks": 1}
    values["schedule"] |= {"save_steps": 4}
    recipe = write_recipe(tmp_path / "mine.yaml", values)
    run("data_prep.check", stream, "--recipe", recipe)
    run("recipes.cli", recipe)

    with (tmp_path / "run" / "matrix.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["chunk"], row["task"], row["n"]) for row in rows] == [
        ("0", "colours", str(kept)),
        ("1", "colours", str(kept)),
    ]
    scores = json.loads((tmp_path / "run/chunks/001/scores.json").read_text("utf-8"))
    assert scores["tasks"]["colours"]["failed"] == 0
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "best constant answer" in report
