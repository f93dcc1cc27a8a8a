"""Keys that do nothing beside others, and values that only look like what a key wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.rules import idle_keys
from recipes.config.sizes.stored import left_by_chunk
from strlora_tuner.options import Size

CONSTANT = "schedule.later.lr_scheduler_type=constant"
LATER = "schedule.later."


@pytest.mark.parametrize(
    ("method", "overrides", "key", "why"),
    [
        ("lora", [CONSTANT], f"{LATER}warmup_ratio", f" with {CONSTANT.replace('=', ' ')}"),
        ("moelora", [], f"{LATER}stability_weight", ": method moelora has no stability term"),
        (
            "lora",
            [f"{LATER}freeze_routers_from_chunk=3"],
            f"{LATER}freeze_routers_from_chunk",
            ": method lora has no routers that freeze",
        ),
        (
            "joint",
            [],
            f"{LATER}rate_factor",
            ": with method joint no chunk goes on from the one before",
        ),
        (
            "mr_lora",
            ["slow_weights={start_next_from: slow}"],
            "slow_weights.start_next_from",
            ": with method mr_lora no chunk goes on from the one before",
        ),
        (
            "lora",
            ["start_from=runs/x"],
            "schedule.first.learning_rate",
            " with start_from: its first chunk goes on under schedule.later, too",
        ),
        ("l2", [], "ewc.decay", " with ewc.fisher false"),
        (
            "strlora",
            [f"{LATER}stability_weight=0"],
            "tuner.ema_decay",
            " with a stability_weight of 0 in every chunk",
        ),
    ],
)
def test_what_does_nothing_is_known_with_its_cause(
    method: str, overrides: list[str], key: str, why: str
) -> None:
    assert idle_keys(load_recipe("tiny", [f"method={method}", *overrides]))[key] == why


@pytest.mark.parametrize(
    ("method", "overrides", "key"),
    [
        ("lora", [], f"{LATER}warmup_ratio"),
        ("lora", [CONSTANT, f"{LATER}warmup_ratio=0.0"], f"{LATER}warmup_ratio"),
        ("strlora", [], f"{LATER}stability_weight"),
        ("strlora", [], f"{LATER}freeze_routers_from_chunk"),
        ("strlora", [], "tuner.ema_decay"),
        ("lora", [], f"{LATER}rate_factor"),
        ("lora", [], f"{LATER}freeze_routers_from_chunk"),
        ("lora", [], "schedule.first.stability_weight"),
        ("lora", [], "schedule.first.learning_rate"),
        ("lora", ["slow_weights={start_next_from: slow}"], "slow_weights.start_next_from"),
        ("ewc", [], "ewc.decay"),
    ],
)
def test_what_does_something_is_not_told(method: str, overrides: list[str], key: str) -> None:
    assert key not in idle_keys(load_recipe("tiny", [f"method={method}", *overrides]))


def refused(*overrides: str, recipe: str = "tiny") -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.epochs=true", "found True, but input should be a valid integer"),
        ("schedule.epochs=2.0", "found 2.0, but input should be a valid integer"),
        ("data.chunks=true", "found True, but input should be a valid integer"),
        ("eval.limit=false", "found False, but input should be a valid integer"),
        ("launcher.gpu_gib=true", "found True, but input should be a valid number"),
        ("schedule.later.stability_weight=true", "found True, but input should be a valid number"),
        ("run_dir=''", "run_dir: found ''"),
        ("model.aligner=''", "model.aligner: found ''"),
        ("launcher.slurm.stop_before=65536", "less than or equal to 65535"),
        ("model=[]", "command line: model: found [], expected a block of keys"),
        ("schedule.later=[1]", "command line: schedule.later: found [1], expected a block of keys"),
        ("eval=3", "command line: eval: found 3, expected a block of keys"),
        ("data.size=[tiny]", "data.size: found ['tiny'], but input should be a valid string"),
    ],
)
def test_values_of_another_kind_are_refused(override: str, words: str) -> None:
    assert words in refused(override)


def test_numbers_may_come_as_texts_and_whole_numbers_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`${oc.env:X}` is how a job array hands its number on, and gives texts."""
    monkeypatch.setenv("ARRAY_NUMBER", "7")
    recipe = load_recipe("tiny", ["seed=${oc.env:ARRAY_NUMBER}", "schedule.weight_decay=0"])
    assert (recipe.seed, recipe.schedule.weight_decay) == (7, 0.0)


def test_a_value_in_the_place_of_a_block_is_told_at_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = "extends: tiny\nname: mine\nmodel: [a]\nschedule:\n  first: 3\n"
    file.write_text(text, encoding="utf-8")
    message = refused(recipe=str(file))
    assert f"{file}:3: model: found ['a'], expected a block of keys" in message
    assert f"{file}:5: schedule.first: found 3, expected a block of keys" in message
    file.write_text("extends: tiny\nname: mine\nschedule:\n  later: ${schedule.first}\n")
    schedule = load_recipe(str(file)).schedule
    assert schedule.later.warmup_ratio == schedule.first.warmup_ratio


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("5", 300), ("4:59", 299), ("0:05:00", 300), ("0-0:04", 240)],
)
def test_a_job_that_would_stop_as_it_starts_is_refused(time: str, seconds: int) -> None:
    """Minutes alone, M:S, H:M:S, D-H:M: the forms of sbatch's --time."""
    job = "launcher.kind=slurm", "launcher.resident=false"
    message = refused(*job, f"launcher.slurm.time='{time}'")
    assert (
        f"launcher.slurm.stop_before = 300 seconds are the whole launcher.slurm.time {time} "
        in (message)
    )
    assert f"({seconds} seconds)" in message


@pytest.mark.parametrize("time", ["0", "6", "5:01", "1-0", "24:00:00"])
def test_a_job_with_time_to_spare_is_none(time: str) -> None:
    job = "launcher.kind=slurm", "launcher.resident=false"
    assert load_recipe("tiny", [*job, f"launcher.slurm.time='{time}'"]).launcher.slurm.time == time


def test_an_optimizer_that_goes_on_is_stored_with_each_chunk() -> None:
    """AdamW's two float32 moments, 8 bytes a trained number, beside 4 of a stored one."""
    recipe = load_recipe("tiny", ["method=lora"])
    kept = load_recipe("tiny", ["method=lora", "schedule.later.optimizer_state=keep"])
    size = Size(trained=1000, stored=1100)
    assert (left_by_chunk(recipe, size), left_by_chunk(kept, size)) == (1100, 3100)
