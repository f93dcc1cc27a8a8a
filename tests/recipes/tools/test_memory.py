"""`plan`'s memory: which batch is the worst, how a stage of DeepSpeed shares it, what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from recipes.config.loading import load_recipe
from recipes.config.schema import Recipe
from recipes.tools.memory.prediction import GIB, heavy_rows, plan_memory, shared, worst_batches
from recipes.tools.memory.prediction import step_words as step
from recipes.tools.plan import make_plan
from recipes.tools.plan_text import as_text
from recipes.tools.token_counts import ask_host, count_tokens
from tests.recipes.real_host import needs_host

Row = dict[str, Any]
FOUND = {"base": 8 * GIB, "adapter": 4 * GIB, "optimizer": 8 * GIB, "gradients": 4 * GIB,
         "pictures": GIB, "text": 2 * GIB, "update": 3 * GIB, "largest": GIB // 2,
         "hidden": 1024}  # fmt: skip


def row(name: str, question: int = 1, answer: int = 1, images: tuple[str, ...] = ()) -> Row:
    turns = [
        {"role": "user", "content": "q" * question},
        {"role": "assistant", "content": "a" * answer},
    ]
    return {"messages": turns, "images": list(images), "id": name}


def names(rows: list[Row]) -> list[str]:
    return [each["id"] for each in rows]


def test_the_worst_batches_are_mixed_and_long(toy: Callable[..., Recipe]) -> None:
    rows = [row("long", answer=1), row("wordy", answer=9), row("short", answer=2), row("over")]
    tokens = [300, 200, 10, 9999]
    size = "schedule.per_device_batch=2"
    half = toy(size, "model.dtype=bfloat16")
    assert names(worst_batches(half, rows, tokens)) == ["long", "wordy", "long", "wordy"]
    # In float32 the host keeps all logits from the first answer on: that of the short row.
    assert names(worst_batches(toy(size), rows, tokens)) == ["long", "short", "long", "wordy"]
    one = toy("schedule.per_device_batch=1", "model.dtype=bfloat16")
    assert names(worst_batches(one, rows, tokens)) == ["wordy", "long"]
    cut = toy(size, "data.too_long=cut")
    assert "over" in names(worst_batches(cut, rows, tokens))
    assert worst_batches(toy(size), rows[3:], tokens[3:]) == []


def test_rows_that_may_be_the_worst_are_found_among_many(tmp_path: Path) -> None:
    for name, size in (("wide", (64, 8)), ("large", (64, 64)), ("usual", (8, 8))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    many = [row(f"u{n}", 5, 1 + n % 3, ("usual.png",)) for n in range(2000)]
    rare = [
        row("asked", question=99, images=("usual.png",)),
        row("answered", answer=50, images=("usual.png",)),
        row("wide", images=("wide.png",)),
        row("large", images=("large.png",)),
        row("two", images=("usual.png", "usual.png")),
        row("none"),
        row("gone", images=("not-there.png",)),
    ]
    for at, each in enumerate(rare):
        many.insert(300 * at + 7, each)
    found = names(heavy_rows(many, tmp_path))
    assert {each["id"] for each in rare} - {"gone"} <= set(found)
    assert len(found) == len(set(found)) < 60


@pytest.mark.parametrize(
    ("deepspeed", "total"),
    [
        ("null", 8 + 4 + 4 + 8 + 3),
        # Halves: gradients, moments and masters; a bucket of 2e8 float32.
        ("zero2", 8 + 4 + 2 + 4 + 3 + 2 + 4 * 2e8 / GIB),
        # All halves; a bucket of hidden x hidden; two modules of the largest, gathered.
        ("zero3", 4 + 2 + 2 + 4 + 3 + 2 + 4 * 1024**2 / GIB + 1),
        ("zero2_offload", 8 + 4 + 3 + 4 * 2e8 / GIB),
        # As JSON in the recipe; the bucket is DeepSpeed's default of 5e8.
        ('\'{"zero_optimization": {"stage": 1}}\'', 8 + 4 + 4 + 4 + 3 + 2 + 4 * 5e8 / GIB),
    ],
)
def test_a_stage_divides_what_it_says(
    toy: Callable[..., Recipe], deepspeed: str, total: float
) -> None:
    words = "launcher.nproc=2", "schedule.per_device_batch=1", f"launcher.deepspeed={deepspeed}"
    parts = shared(toy(*words), FOUND)
    assert sum(parts.values()) == pytest.approx(total)
    assert all(parts[name] >= 0 for name in parts)


def test_slow_weights_and_ewc_keep_copies_of_what_trains() -> None:
    plain = shared(load_recipe("tiny", ["method=lora"]), FOUND)
    slow = shared(load_recipe("tiny", ["method=lora", "slow_weights={}"]), FOUND)
    ewc = shared(load_recipe("tiny", ["method=ewc"]), FOUND)
    assert slow == plain | {"slow": 4.0}
    assert ewc == plain | {"ewc": 12.0}  # what the pull is to, its gradient, the information


def test_it_says_what_fits_and_what_to_change(
    toy: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.tools.memory.prediction.ask_host", lambda *_: FOUND)
    monkeypatch.setattr(
        "recipes.tools.memory.prediction.gpus",
        lambda: ("A, 81559 MiB", "B, 24576 MiB", "C, [N/A]"),
    )
    words = ("launcher.cpu=false", "schedule.per_device_batch=2", "launcher.nproc=2")

    def verdict(*more: str) -> str:
        plan = plan_memory(toy(*words, *more), [row("a")], [5], Path())
        assert plan is not None
        assert plan.fits is (None if plan.room is None else plan.total + 2 <= plan.room)
        return plan.verdict

    fits = "fits: 29.0 of 29.5 GiB (launcher.gpu_gib; here 24.0)"
    assert verdict("launcher.gpu_gib=29.5") == fits
    told = verdict()  # the smaller of the machine's two
    assert told.startswith("does not fit: 29.0 GiB are 5.0 more than 24.0 (a GPU of this machine).")
    assert "launcher.deepspeed=zero3 saves about 4.0, schedule.per_device_batch=1" in told
    monkeypatch.setattr("recipes.tools.memory.prediction.gpus", lambda: ())
    assert "needs a GPU of 29.0 GiB; launcher.gpu_gib says" in verdict()


@pytest.mark.slow
@needs_host
def test_plan_predicts_what_a_step_takes(toy: Callable[..., Recipe], stream: Path) -> None:
    """Against torch's own count of what it allocates in a real step of the tiny model."""
    words = "schedule.per_device_batch=2", "schedule.global_batch=4"
    recipe = toy(*words).model_copy(update={"model": load_recipe("tiny").model})
    plan = make_plan(recipe, count=True)
    assert plan.memory is not None, plan.sources["memory"]
    assert "a step" in "\n".join(as_text(plan))
    rows = [json.loads(text) for text in (stream / "chunks/001.jsonl").read_text().splitlines()]
    batches = worst_batches(recipe, rows, count_tokens(recipe, rows, stream))
    twice = [*step(recipe), "--max_steps", "2", "--num_train_epochs", "2"]
    real = ask_host(recipe, "benchmarks.measured_step", batches, stream, twice)
    assert plan.memory.total * GIB == pytest.approx(real["before"] + real["peak"], rel=0.1)


@pytest.mark.slow
@needs_host
def test_a_head_of_its_own_counts_though_the_configuration_ties_it(
    toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    """As in the published InternVL folders, whose text is not tied and whose whole is."""
    tiny = load_recipe("tiny").model
    folder = shutil.copytree(tiny.path, tmp_path / "untied")
    weights = load_file(folder / "model.safetensors")
    embedding = weights["language_model.model.embed_tokens.weight"]
    weights["language_model.lm_head.weight"] = embedding + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = tiny.model_copy(update={"path": str(folder)})
    plan = make_plan(
        toy("schedule.per_device_batch=1").model_copy(update={"model": model}), count=True
    )
    assert plan.memory is not None, plan.sources["memory"]
    stored = sum(4 * value.size for value in weights.values())
    assert plan.memory.parts["base"] * GIB == pytest.approx(stored, rel=5e-3)
