"""A real stream of two chunks through ms-swift: killed in chunk 2, it ends bit for bit the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from recipes.config.loading import load_recipe
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import train_command
from recipes.run_folder.layout import RunLayout
from tests.recipes.real_host import BASE, gone_on, killed_inside, needs_host, sha256, undisturbed
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]


def test_a_real_stream_survives_sigkill_bit_for_bit(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=2, samples=48)
    values = recipe_values(stream, tmp_path / "run", BASE, method="strlora")
    values["tuner"] |= {"dropout": 0.05}
    values["model"] |= {"aligner": "multi_modal_projector"}
    values["schedule"] |= {"save_steps": 2}
    values["eval"] |= {"every": 2}
    path = write_recipe(tmp_path / "toy.yaml", values)
    layout = RunLayout(tmp_path / "run")

    killed_inside(path, layout.host(2), step=2)
    assert "resuming at step" in gone_on(path)

    # The same chunk, undisturbed, from the same adapter of chunk 1.
    recipe = load_recipe(str(path))
    other = RunLayout(tmp_path / "other")
    other.chunk(1).mkdir(parents=True)
    other.adapter(1).symlink_to(layout.adapter(1))
    command = train_command(recipe, other, open_recipe_stream(recipe).chunk_file(2), 2)
    reference = undisturbed(command, other.host(2), tmp_path / "reference.log")
    assert reference.step == reference.max_steps == 12
    name = "adapter_model.safetensors"
    assert sha256(layout.adapter(2) / name) == sha256(reference.path / name)
    assert sha256(layout.adapter(2) / name) != sha256(layout.adapter(1) / name)

    with layout.matrix.open(encoding="utf-8") as file:
        rows = [(row["chunk"], row["task"], row["n"]) for row in csv.DictReader(file)]
    assert rows == [(chunk, task, "4") for chunk in ("0", "2") for task in ("VQAv2", "Fin")]
    metrics = layout.train_metrics(2).read_text(encoding="utf-8").splitlines()
    steps = [json.loads(row)["global_step/max_steps"] for row in metrics]
    assert steps == [f"{step}/12" for step in range(1, 13)]
    assert "stability_loss" in json.loads(metrics[-1])
    routing = json.loads(layout.routing(2).read_text(encoding="utf-8"))
    assert routing["num_experts"] == 4
    assert [(group["name"], group["rows"]) for group in routing["groups"]] == [
        ("VQAv2", 4),
        ("Fin", 4),
    ]
    assert layout.report.is_file()
