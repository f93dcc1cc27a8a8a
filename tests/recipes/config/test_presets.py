"""A preset means what it says in every recipe, and what changes it is named."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from recipes.arguments import shipped_recipes
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.run.commands import train_command
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import resolved
from strlora_tuner.core.carry import carried_config, options_from_environment
from strlora_tuner.methods.strlora.config import Config
from strlora_tuner.methods.strlora.layer import MixtureOfExperts
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.options import options_from_host, preset_table
from tests.recipes.run.test_commands import flags

# From the published code's behaviour, not from our tables: when the routers freeze, and values.
FROZEN_FROM = {"paper": None, "released": 5, "released_gemma": 4}
VALUES: dict[str, dict[str, Any]] = {
    "paper": {"token_top_k": 2, "task_router": "prior", "padding": "mask", "gate_scale": "one"},
    "released": {"token_top_k": 1, "task_router": "frozen", "padding": "include"},
}
VALUES["released_gemma"] = VALUES["released"]
RUN = RunLayout(Path("runs/x"))


def host_keywords(recipe: Recipe, chunk: int) -> dict[str, Any]:
    """What the plug-in is given in a chunk, as the host parses it."""
    command = train_command(recipe, RUN, Path("c.jsonl"), chunk)
    return dict(json.loads(flags(command)["model_kwargs"]))


def layer_at(recipe: Recipe, chunk: int) -> MixtureOfExperts:
    """A layer as the plug-in makes it in chunk 1 and carries it into a later one."""
    sizes = {name: getattr(recipe.tuner_options, name) for name in ("rank", "alpha", "dropout")}
    config = Config.from_options(options_from_host(host_keywords(recipe, 1), Options, **sizes))
    if chunk > 1:
        environment = {k.upper(): str(v) for k, v in host_keywords(recipe, chunk).items()}
        given = options_from_environment(environment, Options, config.r)
        config, _ = carried_config(config, given, "a")
    layer = MixtureOfExperts(8, 8, 8, config)
    layer.freeze_untrained()
    return layer


@pytest.mark.parametrize("preset", sorted(Options.presets))
@pytest.mark.parametrize("name", shipped_recipes())
def test_the_layer_gets_what_the_preset_says(name: str, preset: str) -> None:
    recipe = load_recipe(name, [f"tuner.preset={preset}"])
    assert recipe.preset_label == preset
    for chunk in {1, 2, 3, 4, 5, recipe.data.chunks}:
        layer = layer_at(recipe, chunk)
        found = {key: getattr(layer.config, key) for key in preset_table(Options, preset)}
        assert found == preset_table(Options, preset), chunk
        assert found.items() >= VALUES[preset].items()
        start = FROZEN_FROM[preset]
        frozen = start is not None and chunk >= start
        assert layer.config.freeze_routers is frozen, chunk
        assert layer.query.requires_grad is not frozen
        assert layer.stability_on is (chunk > 1 and not frozen)


def test_every_option_belongs_to_the_presets_or_is_a_size_or_of_a_run() -> None:
    sizes = {"rank", "alpha", "dropout", "num_experts", "top_k", "router_dim"}
    of_the_schedule = {"stability_weight", "freeze_routers"}
    of_a_run = {"compile_routing", "require_teacher", "targets"}
    owned = set(preset_table(Options, "paper"))
    assert owned | sizes | of_the_schedule | of_a_run == {item.name for item in fields(Options)}
    assert not owned & (sizes | of_the_schedule | of_a_run)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["tiny"], "paper, modified: gate_scale=num_experts"),
        (["smoke", "tuner.padding=mask"], "paper, modified: gate_scale=num_experts"),
        (["tiny", "tuner.preset=released", "tuner.gate_scale=num_experts"],
         "released, modified: gate_scale=num_experts"),
        (["tiny", "tuner.gate_scale=num_experts", "tuner.preset=released"],
         "released, modified: gate_scale=num_experts"),
        (["tiny", "tuner={preset: released, ema_decay: 0.9}"],
         "released, modified: ema_decay=0.9"),
        (["internvl3.5-8b", "schedule.later.freeze_routers_from_chunk=0"],
         "released, modified: freeze_routers_from_chunk=0"),
        (["internvl3.5-8b", "schedule.later.freeze_routers_from_chunk=5"], "released"),
        (["tiny", "tuner.preset=paper", "tuner.top_k=3"], "paper"),
        (["tiny", "tuner.top_k=3", "tuner.gate_scale=one", "tuner.token_top_k=2"],
         "paper, modified: token_top_k=2"),
        (["gemma3-4b", "method=strlora_released"], "released_gemma"),
        (["tiny", "method=strlora_released"], "released"),
        (["tiny", "method=lora"], None),
    ],
)  # fmt: skip
def test_what_changes_a_preset_is_in_its_label(words: list[str], label: str | None) -> None:
    assert load_recipe(words[0], words[1:]).preset_label == label


def test_soft_weights_are_soft_whatever_stage_1_keeps() -> None:
    for kept in (1, 3):
        layer = layer_at(load_recipe("tiny", ["tuner.preset=paper", f"tuner.top_k={kept}"]), 2)
        assert (layer.config.top_k, layer.config.token_top_k) == (kept, kept)


def test_a_recipe_that_extends_another_names_its_own_preset(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: internvl3.5-8b\ntuner: {preset: paper}\n", encoding="utf-8")
    assert load_recipe(str(own)).preset_label == "paper"
    own.write_text(
        "extends: gemma3-4b\nschedule: {later: {freeze_routers_from_chunk: 7}}\n", encoding="utf-8"
    )
    label = "released_gemma, modified: freeze_routers_from_chunk=7"
    assert load_recipe(str(own)).preset_label == label
    assert load_recipe(str(own), ["tuner.preset=paper"]).preset_label == "paper"


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("", ["tuner.gate_scale=num_experts"], "command line: tuner.gate_scale: tuner.gate_scale"),
        ("", ["tuner.preset=paper"], "tuner.preset = paper makes method strlora_released another"),
        ("", ["schedule.later.freeze_routers_from_chunk=9"], "chunk = 9 modifies the preset rel"),
        ("tuner: {preset: paper}\n", [], "tuner.preset = paper makes method strlora_released"),
        ("tuner: {padding: mask}\n", [], "own.yaml:3: tuner.padding: tuner.padding = mask modif"),
    ],
)
def test_the_published_method_refuses_changes(
    tmp_path: Path, text: str, words: list[str], told: str
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: tiny\nmethod: strlora_released\n{text}", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(own), words)
    assert told in str(caught.value)


def test_a_run_that_an_older_version_started_keeps_its_meaning(tmp_path: Path) -> None:
    """`released` without a chunk to freeze at meant routers that never freeze."""
    values = resolved(load_recipe("tiny", ["tuner.preset=released", "method=strlora"]))
    assert values["schedule"]["later"]["freeze_routers_from_chunk"] == 5
    values["schedule"]["later"]["freeze_routers_from_chunk"] = None
    values["tuner"] |= {"token_top_k": 2, "gate_scale": "num_experts"}
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")
    label = load_recipe(str(file)).preset_label
    assert label is not None
    changes = "token_top_k=2, gate_scale=num_experts, freeze_routers_from_chunk=0"
    assert label == f"released, modified: {changes}"
    assert load_recipe(str(file), ["tuner.preset=released"]).preset_label == "released"
