"""The measured floors and ceilings of the eleven tasks: of this base model, wide enough apart."""

from __future__ import annotations

import json

from data_prep.files import sha256_file
from data_prep.mini.assets import REPO_ROOT
from data_prep.mini.tasks import TASKS
from tests.data_prep.mini.test_mini_stream import GOLDEN_MINI

LEVELS = json.loads((REPO_ROOT / "data_prep" / "mini" / "levels.json").read_text())
APART = 0.30  # a task with less between floor and ceiling measures nothing


def test_levels_are_of_the_shipped_model_and_stream():
    assert LEVELS["base_sha256"] == sha256_file(REPO_ROOT / "assets/tiny_base/model.safetensors")
    assert LEVELS["stream_sha256"] == GOLDEN_MINI


def test_every_task_has_room_to_learn():
    assert set(LEVELS["tasks"]) == set(TASKS)
    for name, row in LEVELS["tasks"].items():
        assert row["test"] >= 100, name
        assert row["ceiling"] - max(row["base"], row["majority"]) >= APART, (name, row)


def test_readme_shows_the_levels():
    lines = (REPO_ROOT / "data_prep" / "README.md").read_text().splitlines()
    for name, row in LEVELS["tasks"].items():
        figures = " | ".join(f"{100 * row[key]:.0f}" for key in ("base", "majority", "ceiling"))
        assert f"| {name} | {figures} |" in lines, name
