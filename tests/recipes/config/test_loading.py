"""Recipes are checked completely, and each mistake is told with its place and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from recipes.config.loading import FOLDER, load_recipe, shipped_recipes
from recipes.config.problems import Problem, RecipeError
from recipes.config.schema import Recipe
from recipes.config.swift_arguments import (
    OWNED,
    SHIPPED,
    TESTED_VERSION,
    installed_version,
    known_arguments,
    read_from_package,
)


def problems_of(name: str, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    return caught.value.problems


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_validates(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.folder == f"runs/{name}"


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_opens_with_what_it_needs(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    comment = text.split("\n\n", 1)[0]
    for heading in ("What it does", "What it needs", "Get the model", "Launch", "One override"):
        assert f"# {heading}" in text, heading
    assert comment.startswith("# ")
    override = re.search(r"# One override\s+bash recipes/run_stream.sh (\S+) (.+)", text)
    assert override is not None
    load_recipe(override[1], override[2].split())


PUBLISHED = {  # label, and from which chunk on the routers are frozen
    "internvl3.5-8b": ("released", 5),
    "internvl3.5-4b": ("released", 5),
    "gemma3-4b": ("released_gemma", 4),
    "internvl3.5-8b-pretrained": ("released", 5),
    "internvl3.5-4b-pretrained": ("released", 5),
    "gemma3-4b-pt": ("released_gemma", 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyper_parameters(name: str) -> None:
    recipe = load_recipe(name)
    tuner, schedule = recipe.tuner_options, recipe.schedule
    assert (recipe.preset_label, recipe.routers_frozen_from) == PUBLISHED[name]
    assert (tuner.num_experts, tuner.top_k, tuner.token_top_k, tuner.router_dim) == (4, 2, 1, 64)
    assert (tuner.rank, tuner.alpha, tuner.dropout, tuner.ema_decay) == (64, 128, 0.05, 0.999)
    assert (schedule.global_batch, schedule.per_device_batch, recipe.accumulation) == (32, 2, 4)
    assert (recipe.launcher.nproc, recipe.launcher.deepspeed) == (4, "zero2")
    assert (recipe.data.chunks, recipe.model.max_length, schedule.weight_decay) == (25, 4096, 0.1)
    first, later = schedule.first, schedule.later
    assert (first.learning_rate, first.lr_scheduler_type, first.warmup_ratio) == (
        1e-4,
        "cosine",
        0.05,
    )
    assert (later.learning_rate, later.lr_scheduler_type, later.warmup_ratio) == (
        2e-5,
        "constant",
        0,
    )
    assert (first.stability_weight, later.stability_weight) == (0, 0.1)
    rate = 1e-5 if recipe.model.aligner else None  # gemma3-4b-pt keeps it frozen, as published
    assert (recipe.model.aligner is None) is (name == "gemma3-4b-pt")
    assert (first.aligner_lr, later.aligner_lr) == (rate, rate)


MISSPELT = {
    "modle": "model",
    "extend": "extends",
    "methd": "method",
    "shedule": "schedule",
    "launch": "launcher",
    "model.pth": "path",
    "model.dtyp": "dtype",
    "data.chunk": "chunks",
    "data.strem": "stream",
    "tuner.num_expert": "num_experts",
    "tuner.topk": "top_k",
    "tuner.preset_": "preset",
    "schedule.globl_batch": "global_batch",
    "schedule.first.learning_rte": "learning_rate",
    "schedule.later.freeze_router_from_chunk": "freeze_routers_from_chunk",
    "schedule.later.lr_schduler_type": "lr_scheduler_type",
    "swift.atn_impl": "attn_impl",
    "eval.batchsize": "batch_size",
    "eval.max_tokens": "max_new_tokens",
    "launcher.nprocs": "nproc",
}


@pytest.mark.parametrize(("wrong", "right"), MISSPELT.items())
def test_misspelt_key_gives_one_message_with_the_right_key(
    tmp_path: Path, wrong: str, right: str
) -> None:
    values = yaml.safe_load((FOLDER / "internvl3.5-8b.yaml").read_text(encoding="utf-8"))
    block = values
    *path, leaf = wrong.split(".")
    for part in path:
        block = block[part]
    block[leaf] = block.pop(right, 1)  # an optional key that the recipe does not have: 1
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert problem.key == wrong
    assert f"did you mean '{right}'?" in problem.hint
    line = copy.read_text(encoding="utf-8").splitlines()[(problem.place.line or 0) - 1]
    assert leaf in line


def test_key_at_the_wrong_level_is_sent_to_the_right_one() -> None:
    (problem,) = problems_of("tiny", "num_experts=2")
    assert "did you mean 'tuner.num_experts'?" in str(problem)
    (problem,) = problems_of("tiny", "schedule.learning_rate=1e-3")
    assert "schedule.first.learning_rate" in problem.hint
    assert "schedule.later.learning_rate" in problem.hint


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    text = (FOLDER / "tiny.yaml").read_text(encoding="utf-8")
    text = text.replace("dtype: float32", "dtype: fp8").replace("router_dim: 16", "router_dm: 16")
    text = text.replace("logging_steps: 1", "loging_steps: 1")
    text = text.replace("global_batch: 4", "global_batch: four")
    copy = tmp_path / "copy.yaml"
    copy.write_text(text, encoding="utf-8")
    problems = problems_of(str(copy), "seed=-1", "eval.tasks=[]", "data.chunks=0", "oops")
    keys = {problem.key for problem in problems}
    expected = {"model.dtype", "tuner.router_dm", "swift.loging_steps", "schedule.global_batch"}
    assert keys == expected | {"seed", "eval.tasks", "data.chunks", "oops"}
    for problem in problems:
        if problem.key in expected:
            line = text.splitlines()[(problem.place.line or 0) - 1]
            assert problem.key.rpartition(".")[2] in line
        else:
            assert problem.place.source == "command line"
    message = next(str(problem) for problem in problems if problem.key == "model.dtype")
    assert "'fp8'" in message
    assert "'bfloat16', 'float16' or 'float32'" in message


@pytest.mark.parametrize("value", ["8.0", "'8'", "true"])
def test_an_option_of_the_tuner_is_of_its_own_type(value: str) -> None:
    (problem,) = problems_of("tiny", f"tuner.rank={value}")
    assert "should be a valid integer" in problem.message


def test_rules_over_several_keys_name_the_way_out() -> None:
    (problem,) = problems_of("internvl3.5-8b", "launcher.nproc=3")
    assert problem.key == "schedule.global_batch"
    assert "30 or 36" in problem.message
    (problem,) = problems_of("tiny", "tuner.rank=18")
    assert problem.key == "tuner.rank"
    assert "use rank 16 or 20" in problem.message
    (problem,) = problems_of("tiny", "schedule.first.aligner_lr=1e-5")
    assert "set model.aligner" in problem.message


def test_broken_rules_are_named_beside_keys_that_are_refused() -> None:
    broken = ["launcher.deepspeed=zero4", "schedule.global_batch=33"]
    refused = ["launcher.gpu=XYZ", "model.dtype=float8"]
    named = {problem.key for problem in problems_of("internvl3.5-8b", *broken, *refused)}
    assert named == {word.partition("=")[0] for word in (*broken, *refused)}
    # The batch of 16 that the schema would put in its place is nobody's mistake.
    (problem,) = problems_of("internvl3.5-8b", "schedule.global_batch=all", "launcher.nproc=3")
    assert problem.key == "schedule.global_batch"


def test_what_a_job_asks_for_is_told_in_words() -> None:
    slurm = {"binds": "[data]", "time": "soon", "partition": "a b", "logs": "my logs"}
    words = [f"launcher.slurm.{key}={value}" for key, value in slurm.items()]
    told = {problem.key.split(".")[2]: str(problem) for problem in problems_of("tiny", *words)}
    assert "found 'data', expected FOLDER, FROM:TO or FROM:TO:ro" in told["binds"]
    assert "found 'soon', expected minutes, H:MM:SS or D-H:MM:SS" in told["time"]
    assert "found 'a b', expected one word of letters" in told["partition"]
    assert "found 'my logs', expected a path without blanks" in told["logs"]


@pytest.mark.parametrize("key", sorted(OWNED))
def test_keys_of_the_orchestrator_are_refused_with_the_reason(key: str) -> None:
    (problem,) = problems_of("tiny", f"swift.{key}=1")
    assert "is set by the orchestrator" in problem.message
    assert OWNED[key] in problem.message


def test_owned_keys_exist_in_the_host_or_are_its_inference_arguments() -> None:
    assert set(OWNED) <= set(known_arguments())


@pytest.mark.slow
@pytest.mark.skipif(installed_version() != TESTED_VERSION, reason="another ms-swift is installed")
def test_shipped_table_is_the_installed_one() -> None:
    shipped = SHIPPED / f"ms-swift-{TESTED_VERSION}.json"
    assert shipped.read_text(encoding="utf-8") == read_from_package()


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("swift.logging_steps=often", "'often'"),
        ("swift.gradient_checkpointing=3.5", "3.5"),
        ("swift.dataset_shuffle=[1]", "[1]"),
    ],
)
def test_values_of_the_host_are_checked(override: str, found: str) -> None:
    (problem,) = problems_of("tiny", override)
    assert found in problem.message


@pytest.mark.parametrize("key", ["stability_weight", "freeze_routers", "require_teacher"])
def test_tuner_keys_of_the_schedule_are_sent_there(key: str) -> None:
    (problem,) = problems_of("tiny", f"tuner.{key}=1")
    assert "changes with the chunks" in problem.message


def test_presets() -> None:
    assert load_recipe("tiny", ["tuner.preset=released"]).tuner_options.task_router == "frozen"
    (problem,) = problems_of("tiny", "tuner.preset=relased")
    assert problem.hint == "did you mean 'released'?"


def test_overrides_are_typed() -> None:
    recipe = load_recipe(
        "tiny",
        [
            "schedule.later.learning_rate=1e-4",
            "seed=7",
            "eval.tasks=[Fin,VQAv2]",
            "method=lora",
        ],
    )
    assert recipe.schedule.later.learning_rate == 1e-4
    assert recipe.seed == 7
    assert recipe.eval.tasks == ["Fin", "VQAv2"]
    assert recipe.folder == "runs/tiny-lora"


def test_interpolation(tmp_path: Path) -> None:
    copy = tmp_path / "copy.yaml"
    text = (FOLDER / "tiny.yaml").read_text(encoding="utf-8")
    copy.write_text(text + "run_dir: runs/${name}-seed${seed}\n", encoding="utf-8")
    assert load_recipe(str(copy), ["seed=3"]).folder == "runs/tiny-seed3"
    copy.write_text(text + "run_dir: runs/${nme}\n", encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert problem.key == "run_dir"
    assert "nme" in problem.message


def test_extends_keeps_the_place_of_every_key(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text("extends: tiny\nname: mine\ntuner:\n  rank: 18\n", encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert (problem.place.source, problem.place.line) == (str(copy), 4)
    copy.write_text("extends: tinny\nname: mine\n", encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert problem.key == "extends"
    copy.write_text("extends: mine\nname: mine\n", encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert "cannot extend itself" in problem.message


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 1\na: 2\n", "- 1\n", "", "x: !!python/name:os.system"]
)
def test_yaml_that_cannot_be_a_recipe(tmp_path: Path, text: str) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(text, encoding="utf-8")
    assert problems_of(str(copy))


def test_unknown_recipe_names_the_shipped_ones() -> None:
    (problem,) = problems_of("tiney")
    assert problem.hint == "did you mean 'tiny'?"
    assert "internvl3.5-8b" in problem.message
    (problem,) = problems_of("nowhere/x.yaml")
    assert "no such file" in problem.message


def test_what_yaml_makes_of_words_and_times(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    text = "extends: tiny\nname: mine\nlauncher:\n  slurm: {time: 8:00:00}\n"
    copy.write_text(text + "tuner: {compile_routing: off}\n", encoding="utf-8")
    for recipe in (
        load_recipe(str(copy)),
        load_recipe("tiny", ["launcher.slurm.time=8:00:00", "tuner.compile_routing=off"]),
    ):
        assert recipe.launcher.slurm.time == "8:00:00"
        assert getattr(recipe.tuner_options, "compile_routing", None) == "off"
    (problem,) = problems_of("tiny", "replay=off")
    assert problem.hint == "write null for none"
    (problem,) = problems_of("tiny", "launcher.slurm.account=1_000")
    assert "put it in quotes" in problem.hint
    copy.write_text("extends: tiny\nname: mine\ntuner:\n\trank: 4\n", encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert (problem.place.line, problem.hint) == (4, "YAML indents with blanks: replace the tab")


@pytest.mark.parametrize("key", ["model", "tuner", "swift", "eval", "launcher", "schedule.later"])
def test_an_emptied_block_is_told_at_its_own_line(tmp_path: Path, key: str) -> None:
    copy = tmp_path / "mine.yaml"
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(key.split("."))]
    copy.write_text("\n".join(["extends: tiny", "name: mine", *lines, ""]), encoding="utf-8")
    (problem,) = problems_of(str(copy))
    assert (problem.place.source, problem.place.line) == (str(copy), 2 + len(lines))
    assert (problem.key, problem.message) == (key, "is empty")


@pytest.mark.parametrize("home", ["~", "$HOME", "${HOME}"])
def test_the_home_is_known_in_every_key(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("extends: tiny\nname: base\n", encoding="utf-8")
    copy = tmp_path / "mine.yaml"
    text = "extends: ~/base.yaml\nname: mine\nrun_dir: ~/runs/x\n"
    copy.write_text(text.replace("~", home), encoding="utf-8")
    keys = ["data.stream", "model.path", "launcher.deepspeed", "launcher.slurm.logs"]
    others = ["launcher.resident=false", f"swift.custom_dataset_info=['{home}/x']"]
    recipe = load_recipe(str(copy), [*others, *(f"{key}={home}/x" for key in keys)])
    assert recipe.folder == f"{tmp_path}/runs/x"
    found = [recipe.data.stream, recipe.model.path, recipe.launcher.deepspeed]
    found += [recipe.launcher.slurm.logs, *recipe.swift["custom_dataset_info"]]
    assert found == [f"{tmp_path}/x"] * 5


def test_a_date_is_a_seed() -> None:
    """NumPy takes 32 bits; the host adds each process's rank to the run's seed."""
    small = load_recipe("tiny", ["seed=4294967"])
    assert [small.chunk_seed(chunk) for chunk in (1, 295)] == [4294967001, 4294967295]
    for seed in ("4294968", "20241126", str(2**32 - 1)):
        recipe = load_recipe("internvl3.5-8b", [f"seed={seed}"])
        drawn = [recipe.chunk_seed(chunk) for chunk in range(26)]
        assert len(set(drawn)) == 26
        assert 0 <= min(drawn) <= max(drawn) < 2**32
        assert recipe.host_seed + recipe.processes - 1 < 2**32
    # printf 20241126/3 | sha256sum | head -c 8
    date = load_recipe("tiny", ["seed=20241126"])
    assert date.chunk_seed(3) == 0xEE3E857B
    assert date.host_seed == 20241126
    (problem,) = problems_of("tiny", f"seed={2**32}")
    assert "should be less than 4294967296" in problem.message


def test_recipe_is_immutable(toy: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy().seed = 3


def test_a_deepspeed_setting_is_a_name_of_the_hosts_or_a_file() -> None:
    (problem,) = problems_of("internvl3.5-8b", "launcher.deepspeed=zero4")
    assert problem.key == "launcher.deepspeed"
    assert "zero4 is no name of the host's: set one of zero0, " in problem.message
    for good in ("zero3_offload", "my.json", "folder/settings", '"{}"'):
        assert load_recipe("internvl3.5-8b", [f"launcher.deepspeed={good}"]).launcher.deepspeed
