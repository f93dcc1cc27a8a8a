"""`budget: match(NAME)`: counted as the real adapters are, derived as near as ranks allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import adapter_size, model_shape, tuner_size
from recipes.config.sizes.parameter_matching import TOLERANCE
from recipes.run.commands import train_command, tuner_arguments
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import resolved
from recipes.tools.method_sizes import sizes_of_methods, stored_at_end
from recipes.tools.plan import make_plan
from recipes.tools.plan_text import as_text

BASE = REPO / "assets" / "tiny_base"


def real_parameters(recipe: Recipe) -> tuple[int, int]:
    """Trainable parameters, and numbers in the saved file, of the recipe's adapter on the model."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import InternVLForConditionalGeneration

    from strlora_tuner import StrLoraConfig

    model = InternVLForConditionalGeneration.from_pretrained(BASE)
    options = recipe.tuner_options
    where = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    config: Any
    if recipe.tuner_type == "lora":
        config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=where)
    else:
        own = {k: v for k, v in vars(options).items() if k not in ("rank", "alpha", "dropout")}
        own = {k: v for k, v in own.items() if k in StrLoraConfig.__dataclass_fields__}
        config = StrLoraConfig(
            r=options.rank, lora_alpha=options.alpha, target_modules=where, **own
        )
    adapted = get_peft_model(model, config)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    stored = sum(tensor.numel() for tensor in get_peft_model_state_dict(adapted).values())
    return trained, stored


@pytest.mark.skipif(not BASE.is_dir(), reason="needs assets/tiny_base")
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=lora"],
        ["method=lora", "budget=match(strlora)"],
        ["method=strlora"],
        ["method=strlora_released"],
    ],
)
def test_sizes_are_those_of_the_real_adapters(overrides: list[str]) -> None:
    recipe = load_recipe("tiny", overrides)
    shape = model_shape(recipe)
    assert shape is not None
    assert tuple(adapter_size(recipe, shape)) == real_parameters(recipe)


def test_the_rank_is_derived_and_the_scale_stays() -> None:
    recipe = load_recipe("tiny", ["method=lora", "budget=match(strlora)"])
    assert recipe.matched is not None
    assert recipe.matched.gap <= TOLERANCE
    options = recipe.tuner_options
    assert options.rank > 16
    assert options.alpha / options.rank == 32 / 16
    words = train_command(recipe, RunLayout(Path("r")), Path("c.jsonl"), 1).arguments
    assert words[words.index("--lora_rank") + 1] == str(options.rank)
    shape = model_shape(recipe)
    assert shape is not None
    best = abs(recipe.matched.trained - recipe.matched.wanted)
    for rank in (options.rank - 1, options.rank + 1):
        other = load_recipe("tiny", ["method=lora", f"tuner.rank={rank}"])
        size = tuner_size(other, shape).trained
        assert abs(size - recipe.matched.wanted) >= best, "no other rank is nearer"


def test_experts_divide_the_derived_rank() -> None:
    recipe = load_recipe("tiny", ["method=moelora", "budget=match(strlora)"])
    options = recipe.tuner_options
    assert options.rank % options.num_experts == 0
    assert options.num_experts == 3, "with the recipe's own 4 no rank comes within the tolerance"
    assert tuner_arguments(recipe, 1)["num_experts"] == 3
    kept = load_recipe("tiny", ["method=moelora", "tuner.rank=64", "budget=match(lora)"])
    assert kept.tuner_options.num_experts == 4
    assert kept.tuner_options.rank == 64


@pytest.mark.parametrize(
    ("more", "rank"),
    [
        (["tuner.rank=64"], 80),  # 1,431,296 of 17,920 a rank: 79.9; 32 experts would want 3 rows
        (["tuner.expert_rank=4"], 32),  # rank 1 and 2 have no expert of 4 rows
    ],
)
def test_the_rank_of_fixed_gates_is_derived(more: list[str], rank: int) -> None:
    recipe = load_recipe("tiny", ["method=strlora_signed", *more, "budget=match(strlora)"])
    assert recipe.tuner_options.rank == rank


def test_what_cannot_be_matched_is_refused_with_its_numbers() -> None:
    with pytest.raises(RecipeError, match=r"lora trains 286,720 parameters at rank 16; the neare"):
        load_recipe("tiny", ["method=strlora", "budget=match(lora)"])
    with pytest.raises(RecipeError, match="zero_shot trains nothing"):
        load_recipe("tiny", ["method=lora", "budget=match(zero_shot)"])
    with pytest.raises(RecipeError, match="did you mean 'lora'"):
        load_recipe("tiny", ["method=strlora", "budget=match(lorra)"])
    with pytest.raises(RecipeError, match="budget"):
        load_recipe("tiny", ["budget=lora"])
    with pytest.raises(RecipeError, match=r"sizes of models/none are unknown"):
        load_recipe("tiny", ["method=lora", "budget=match(strlora)", "model.path=models/none"])


def test_a_runs_own_recipe_keeps_what_was_derived(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ["method=lora", "budget=match(strlora)"])
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(resolved(recipe)), encoding="utf-8")
    assert resolved(load_recipe(str(path))) == resolved(recipe)


def test_a_large_model_is_matched_by_its_published_sizes() -> None:
    recipe = load_recipe("internvl3.5-8b", ["method=strlora", "budget=match(lora)"])
    assert recipe.matched is not None
    assert recipe.tuner_options.rank < 64
    assert recipe.matched.gap <= TOLERANCE


def test_plan_shows_the_budget_and_every_method() -> None:
    rows = sizes_of_methods("tiny", ["method=er", "tuner.rank=8", "budget=match(lora)"])
    by_name = {row.method: row for row in rows}
    assert by_name["lora"].trained == 286_720 // 2
    assert by_name["zero_shot"].trained == 0
    assert by_name["strlora"].ratio > 1
    pool = load_recipe("tiny", ["method=mr_lora", "tuner.rank=8"])
    shape = model_shape(pool)
    assert shape is not None
    assert by_name["mr_lora"].stored == stored_at_end(pool, shape) == 9 * (286_720 // 2)
    assert by_name["olora"].stored == 8 * (286_720 // 2), "a pair a chunk stays in the file"
    recipe = load_recipe("tiny", ["method=lora", "budget=match(strlora)"])
    text = "\n".join(as_text(make_plan(recipe, methods=rows)))
    assert "match(strlora): rank" in text
    assert "methods at these settings" in text


@pytest.mark.skipif(not BASE.is_dir(), reason="needs assets/tiny_base")
@pytest.mark.parametrize(
    "words",
    [
        ["method=mr_lora", "pool.samples=10", "budget=match(lora)"],
        ["method=ewc", "ewc.weight=10", "budget=match(branchlora)"],
        ["method=er", "replay.memory=10", "budget=match(joint)"],
    ],
)
def test_what_goes_beside_a_method_is_no_part_of_the_other_ones_size(words: list[str]) -> None:
    matched = load_recipe("tiny", words).matched
    assert matched is not None
    assert matched.gap <= TOLERANCE


@pytest.mark.skipif(not BASE.is_dir(), reason="needs assets/tiny_base")
def test_one_expert_is_tried_when_the_recipe_has_one() -> None:
    words = ["method=moelora", "tuner.num_experts=1", "tuner.rank=24", "budget=match(lora)"]
    recipe = load_recipe("tiny", words)
    assert recipe.matched is not None
    assert recipe.tuner_options.num_experts == 1
    assert recipe.tuner_options.rank == 24
