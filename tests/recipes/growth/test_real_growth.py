"""The real host: a stream that grows under a run ends in the same weights as one run over it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from data_prep.chunk.__main__ import main as chunk
from tests.recipes.growth.test_growth import cells, weights
from tests.recipes.growth.test_start_from import only_chunk
from tests.recipes.real_host import BASE, gone_on, needs_host
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = [pytest.mark.slow, needs_host]
SAMPLES = 8  # one step a chunk
# In `make methods`; growth by the stand-in host is in test_growth.py.
OTHERS = ["branchlora", "smolora", "er", "ewc", "lwf", "oracle", "olora", "mr_lora", "hide_llava"]
OTHERS = [*OTHERS, "strlora_signed"] if os.environ.get("FULL_METHODS") else []


def write_month(folder: Path, month: int) -> Path:
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = [("photo", "question", "answer", "day")]
    for day in range(1, SAMPLES + 1):
        name, colour = f"{month}-{day}.png", ("red", "green", "blue")[(month + day) % 3]
        Image.new("RGB", (56, 56 + day), colour).save(folder / "photos" / name)
        rows.append((name, "What colour is it?", colour, f"2026-{month:02d}-{day:02d}"))
    path = folder / f"month{month}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def grow(tmp_path: Path, method: str) -> Callable[..., Path]:
    """Trains two months, then a third; and all three at once. Returns the maker of the recipes."""
    stream, photos = tmp_path / "shop", str(tmp_path / "photos")
    options = ["--by", "time", "--column", "day", "--every", "1mo", "--holdout", "0.2"]
    source = ["--source", *(str(write_month(tmp_path, month)) for month in (1, 2))]
    assert chunk([*source, "--images", photos, "--out", str(stream), *options]) == 0

    def recipe(run: str, stream: Path = stream, **changes: str) -> Path:
        values = recipe_values(stream, tmp_path / run, BASE, method=method, **changes)
        del values["data"]["chunks"]
        values["schedule"] |= {"global_batch": SAMPLES, "per_device_batch": SAMPLES}
        values["launcher"] |= {"resident": True}
        return write_recipe(tmp_path / f"{run}.yaml", values)

    gone_on(recipe("grown"))
    before = cells(tmp_path / "grown")
    assert chunk(["--append", str(stream), "--source", str(write_month(tmp_path, 3))]) == 0
    assert "chunk 3/3 (2026-03) trained" in gone_on(recipe("grown"))
    gone_on(recipe("at-once"))
    assert weights(tmp_path / "grown") == weights(tmp_path / "at-once")
    assert len(weights(tmp_path / "grown")) == 3
    after, whole = cells(tmp_path / "grown"), cells(tmp_path / "at-once")
    assert before.items() < after.items() <= whole.items()
    return recipe


@pytest.mark.parametrize("method", OTHERS)
def test_every_way_to_remember_grows_exactly(method: str, tmp_path: Path) -> None:
    """Keys of chunks, tables of texts, Fisher information, past samples, averages, routers."""
    grow(tmp_path, method)


def test_two_chunks_and_a_third_are_three_at_once(tmp_path: Path) -> None:
    recipe, stream = grow(tmp_path, "strlora"), tmp_path / "shop"
    # The third chunk alone, from the adapter of the second: the same step but for rounding, since
    # the order inside the batch is drawn by the number of the chunk.
    start = str(tmp_path / "grown/chunks/002/adapter")
    gone_on(recipe("alone", only_chunk(stream, 3), start_from=start))
    alone = load_file(tmp_path / "alone/chunks/001/adapter/adapter_model.safetensors")
    third, second = (
        load_file(tmp_path / f"grown/chunks/00{n}/adapter/adapter_model.safetensors")
        for n in (3, 2)
    )
    assert max(np.abs(alone[name] - third[name]).max() for name in third) < 1e-5
    assert max(np.abs(second[name] - third[name]).max() for name in third) > 1e-4
    assert "chunk 3 (2026-03)" in (tmp_path / "grown/report.html").read_text(encoding="utf-8")


def test_a_chunk_of_one_step_learns_also_where_a_rate_warms_up(tmp_path: Path) -> None:
    """Its only step would be the first of the warm-up, whose rate is 0."""
    values = recipe_values(write_stream(tmp_path / "s", samples=4), tmp_path / "run", BASE)
    phase = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05}
    values["schedule"] |= {"first": phase, "later": phase}
    values["launcher"] |= {"resident": True}
    gone_on(write_recipe(tmp_path / "run.yaml", values))
    names = [tmp_path / f"run/chunks/00{n}/adapter/adapter_model.safetensors" for n in (1, 2)]
    first, second = map(load_file, names)
    # AdamW's first step is the rate itself, whatever the gradient.
    b = [name for name in first if "lora_B" in name]
    assert b
    assert max(np.abs(first[name]).max() for name in b) == pytest.approx(1e-3, rel=1e-3)
    assert max(np.abs(second[name] - first[name]).max() for name in b) > 5e-4
