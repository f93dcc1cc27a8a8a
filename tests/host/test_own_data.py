"""Somebody's own LLaVA JSON: chunked, checked, trained and evaluated by the real host."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk
from tests.recipes.real_host import BASE, gone_on, needs_host
from tests.recipes.toy import recipe_values, write_recipe

SAMPLES = 20

pytestmark = [pytest.mark.slow, needs_host]


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


def test_from_a_llava_file_to_scores(tmp_path: Path) -> None:
    source, stream = write_source(tmp_path / "source", SAMPLES), tmp_path / "stream"
    cut = ["--by", "count", "--size", str(SAMPLES), "--task", "colours", "--holdout", "0.2"]
    assert chunk(["--source", str(source), "--out", str(stream), *cut]) == 0
    manifest = json.loads((stream / "stream.json").read_text("utf-8"))
    kept = manifest["tasks"]["colours"]["samples"]
    assert 0 < kept < SAMPLES
    assert [chunk["tasks"] for chunk in manifest["chunks"]] == [{"colours": SAMPLES - kept}]

    values = recipe_values(stream, tmp_path / "run", BASE, method="strlora")
    values["data"] |= {"source": "folder", "chunks": 1}
    values["schedule"] |= {"save_steps": 4}
    values["launcher"]["resident"] = True
    recipe = write_recipe(tmp_path / "mine.yaml", values)
    assert check([str(stream), "--recipe", str(recipe)]) == 0
    gone_on(recipe)

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
