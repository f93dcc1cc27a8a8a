"""What a sweep is: its runs, their names, and every mistake before anything runs."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.mini.mixtures import SIZES
from eval.study.groups import whole_settings
from eval.study.run_csv import read_run
from recipes.arguments import parse
from recipes.cli import main
from recipes.config.loading import load_recipe
from recipes.config.method import method_names
from recipes.config.problems import RecipeError
from recipes.sweep.axes import (
    FIRST,
    LATER,
    asked_for,
    combinations,
    short_names,
    sweep_block,
)
from recipes.sweep.cells import Sweep, cell_name, find_sweep, plan_sweep, read_cells

NO_SWEEP = Path("recipes/tiny.yaml")


def options(*words: str) -> Namespace:
    return parse(["sweep", "tiny", *words])


def plan(path: Path, *words: str) -> Sweep:
    return plan_sweep(path, parse(["sweep", str(path), *words]))


def wrong(path: Path, *words: str) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(path, *words)
    return str(caught.value)


def test_ranges_lists_and_values_are_read() -> None:
    grid = "--grid=eval.tasks=[VQAv2,Fin],[Fin]"
    words = ("--seeds", "0-2,7", "--methods", "lora,er", "--stream-seeds", "4", grid)
    asked = asked_for(options(*words, "--grid", "slow_weights=null,{window: 0.2}"), NO_SWEEP)
    assert (asked.methods, asked.seeds, asked.stream_seeds) == (("lora", "er"), (0, 1, 2, 7), (4,))
    assert asked.grid["eval.tasks"] == ("[VQAv2,Fin]", "[Fin]")
    assert asked.grid["slow_weights"] == ("null", "{window: 0.2}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "3-1"], "write 1-3"),
        (["--seeds", "1,x"], "expected numbers from 0 on or ranges"),
        (["--seeds", "0-2,1"], "--seeds 1: is given twice"),
        (["--seeds", "4294967296"], "below 2**32"),
        (["--seeds", "0-20261127"], "at most 1,000 numbers in a range"),
        (["--seeds", ","], "--seeds ',': names nothing"),
        (["--methods", ""], "--methods '': names nothing"),
        (["--methods", "lora,lora"], "is given twice"),
        (["--grid", "tuner.rank"], "expected KEY=VALUE,VALUE"),
        (["--grid", "tuner.rank=8,8"], "a value is given twice"),
        (["--grid", "=8"], "expected KEY=VALUE,VALUE"),
        (["--grid", "tuner.rank=[8"], "expected KEY=VALUE,VALUE"),
        (["--grid", "tuner.rank=8", "--grid", "tuner.rank=9"], "was given before"),
        (["--grid", "seed=1,2"], "use --seeds"),
        (["--grid", "data.seed=1,2"], "use --stream-seeds"),
        (["--grid", "scale=0,1"], "expected positive numbers"),
        (["--grid", "later=x"], "expected positive numbers"),
    ],
)
def test_a_wrong_axis_is_told(words: list[str], told: str) -> None:
    (problem,) = asked_for(options(*words), NO_SWEEP).problems
    assert told in str(problem)


def test_rates_are_relative_to_the_recipes_own() -> None:
    recipe = load_recipe("tiny", ["method=lora"], tuned=False)
    found = [dict(each) for each in combinations(recipe, {"scale": ("0.5", "1"), "later": ("1",)})]
    assert found == [{FIRST: "0.001", LATER: "0.001"}, {FIRST: "0.002", LATER: "0.002"}]
    kept = dict(next(combinations(recipe, {"scale": ("3",)})))
    assert kept == {FIRST: "0.006", LATER: "0.003"}, "the recipe's own share, half"


def test_runs_are_named_by_what_differs(toy_yaml: Callable[..., Path]) -> None:
    found = plan(
        toy_yaml(), "--methods", "lora,er", "--seeds", "0-1", "--grid", "tuner.rank=4,8",
        "tuner.alpha=8",
    )  # fmt: skip
    names = [f"{m}-seed{s}-rank={r}" for m in ("lora", "er") for r in (4, 8) for s in (0, 1)]
    assert [cell.name for cell in found.cells] == names
    last = found.cells[-1]
    assert (last.recipe.method, last.recipe.seed) == ("er", 1)
    assert last.recipe.tuner["rank"] == 8
    assert str(last.layout.root) == "runs/sweeps/toy/er-seed1-rank=8"
    again = load_recipe(found.path, last.overrides)
    assert again == last.recipe, "its command makes the run that was checked"
    keys = [FIRST, LATER, "tuner.rank"]
    assert list(short_names(keys).values()) == [
        "first.learning_rate",
        "later.learning_rate",
        "rank",
    ]


def test_the_order_of_the_axes_is_not_in_the_name(toy_yaml: Callable[..., Path]) -> None:
    rank, epochs = ["--grid", "tuner.rank=4"], ["--grid", "schedule.epochs=2"]
    one, other = plan(toy_yaml(), *rank, *epochs), plan(toy_yaml(), *epochs, *rank)
    assert [cell.name for cell in one.cells] == [cell.name for cell in other.cells]
    assert one.cells[0].name.endswith("seed0-epochs=2-rank=4")


@pytest.mark.parametrize("folder", ["results", "tuning"])
def test_a_sweep_finds_every_committed_csv(folder: str) -> None:
    """By its name; otherwise the run would be made again, and stand there twice."""
    for path in sorted(Path("docs", folder).rglob("*-stream*.csv")):
        run = read_run(path)
        settings = whole_settings(run)
        if "tuner.sentence" in settings and "sentence=" not in path.name:
            del settings["tuner.sentence"]  # the method's own
        name = cell_name(run.method, run.seed, run.stream_seed, tuple(settings.items()))
        assert path.stem == name


def test_values_that_no_file_may_be_called_stay_apart(toy_yaml: Callable[..., Path]) -> None:
    found = plan(toy_yaml(), "--grid", "slow_weights={window: 0.1},{window:  0.1},null")
    names = [cell.name for cell in found.cells]
    assert len(set(names)) == 3
    assert all("/" not in name and " " not in name for name in names)


def test_each_stream_seed_has_a_stream_of_its_own(toy_yaml: Callable[..., Path]) -> None:
    found = plan(Path("recipes/smoke.yaml"), "--stream-seeds", "0,3", "--seeds", "1")
    streams = {cell.name: cell.recipe.data.stream for cell in found.cells}
    assert streams == {
        "strlora-seed1-stream0": "data/mini-smoke",
        "strlora-seed1-stream3": "data/mini-smoke-seed3",
    }
    assert "every run would read" in wrong(toy_yaml(), "--stream-seeds", "0,1")


def test_all_mistakes_of_all_runs_are_told_at_once(toy_yaml: Callable[..., Path]) -> None:
    told = wrong(
        toy_yaml(), "--methods", "lora,strlor", "--grid", "tuner.rank=8,none", "--grid",
        "tuner.num_experts=4", "--seeds", "0-1", "--stream-seeds", "5-4",
    )  # fmt: skip
    assert "--stream-seeds 5-4: the range ends before it begins" in told
    assert "did you mean 'strlora'?" in told
    assert told.count("tuner.rank: found 'none'") == 1, "two seeds share the mistake"
    assert "--grid tuner.num_experts: method lora has no tuner.num_experts" in told


def test_an_override_that_every_run_sets_otherwise_is_refused(
    toy_yaml: Callable[..., Path],
) -> None:
    told = wrong(toy_yaml(), "--seeds", "0-1", "seed=3", "method=er", "run_dir=runs/x")
    assert "seed=3: would be ignored: --seeds sets it for each run" in told
    assert "run_dir=runs/x: would be ignored: --into" in told
    assert "method=er" not in told, "without --methods it holds for every run"
    told = wrong(toy_yaml(), "tuner.rank=16", "--grid", "tuner.rank=4,8")
    assert "tuner.rank=16: would be ignored: its axis of the grid sets it for each run" in told


def test_combinations_that_are_one_run_are_refused(toy_yaml: Callable[..., Path]) -> None:
    told = wrong(toy_yaml(), "--grid", "scale=1,1.0")
    assert "2 combinations of the grid are this one run" in told
    rate = "schedule.first.learning_rate"
    told = wrong(toy_yaml(), "--grid", "scale=2", "--grid", f"{rate}=0.001")
    assert f"--grid {rate}: would set the rates that scale and later set, too" in told


def test_a_run_of_other_settings_is_found_before_anything_runs(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    into = ("--into", str(tmp_path / "sweep"))
    (cell,) = plan(toy_yaml(), *into).cells
    values = cell.recipe.model_dump(mode="json")
    values["tuner"]["rank"] = 2
    cell.layout.root.mkdir(parents=True)
    cell.layout.manifest.write_text(json.dumps({"recipe": values}), encoding="utf-8")
    cell.layout.recipe.write_text(json.dumps(values), encoding="utf-8")
    told = wrong(toy_yaml(), *into)
    assert "tuner.rank: 2 in the run, 8 now" in told
    assert "--into" in told


def sweep_file(folder: Path, recipe: Path, sweep: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(json.dumps({"extends": str(recipe), "sweep": sweep}), encoding="utf-8")
    return path


def test_a_sweep_stands_in_a_file(
    toy_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"methods": ["lora", "er"], "seeds": "0-1", "grid": {"tuner.rank": [4, 8]}}
    path = sweep_file(tmp_path, toy_yaml(), axes)
    assert len(plan(path).cells) == 8
    assert [c.name for c in plan(path, "--methods", "lora", "--seeds", "5").cells] == [
        "lora-seed5-rank=4",
        "lora-seed5-rank=8",
    ]
    assert len(plan(path, "--grid", "tuner.rank=2").cells) == 4, "the command line's axis counts"
    assert main([str(path)]) == 2
    assert "bash recipes/run_stream.sh sweep" in capsys.readouterr().err
    bad = sweep_file(tmp_path, toy_yaml(), {"method": ["lora"], "seeds": ["x"], "grid": {"a": []}})
    told = wrong(bad)
    assert "sweep.method: unknown key; expected methods" in told
    assert "--seeds x" in told
    assert "--grid a" in told


def test_the_run_command_sends_seeds_and_methods_to_sweep(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tiny", "--seeds", "0,1", "--methods", "lora,er", "eval.limit=2", "--slurm"])
    assert ended.value.code == 2
    command = "run_stream.sh sweep tiny --methods lora,er --seeds 0,1 eval.limit=2 --slurm"
    assert command in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tiny", "--grid", "tuner.rank=8,16"])
    assert "sweep tiny --grid tuner.rank=8,16\n" in capsys.readouterr().err
    assert main(["tiny", "--status", "run_dir=runs/never"]) == 0
    assert main(["status", "tiny", "--follow", "run_dir=runs/never"]) == 2
    assert "--follow is for a sweep's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tiny", "--chain", "3"], "--chain would be ignored without --slurm"),
        (["tiny", "--slurm", "--dry-run", "--chunk", "2"], "--chunk would be ignored with --slurm"),
        (["tiny", "--slurm", "--train-only"], "launcher.slurm.eval_jobs=true evaluates"),
        (["sweep", "tiny", "--throttle", "2"], "--throttle would be ignored without --slurm"),
        (["sweep", "tiny", "--slurm", "--jobs", "2"], "--throttle N is the number"),
        (["sweep", "tiny", "--slurm", "--keep", "best"], "--keep would be ignored with --slurm"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_help_names_the_folders_that_a_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    told = {}
    for command in ("sweep", "status", "report"):
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        told[command] = " ".join(capsys.readouterr().out.split())
    assert "or a run folder" not in told["sweep"], "it refuses one"
    assert "a sweep's (runs/sweeps/tiny)" in told["status"]
    assert "or a run folder (runs/tiny)" in told["report"]


def test_status_of_a_sweep_takes_nothing_of_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text('{"cells": []}', "utf-8")
    for words in (["--verify"], ["seed=3"]):
        assert main(["status", str(tmp_path), *words]) == 2
        assert f"{words[0]} is for one run" in capsys.readouterr().err
    assert main(["status", str(tmp_path), "--json", "--follow"]) == 2


def test_the_register_keeps_runs_that_were_begun(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    into = ("--into", str(tmp_path / "sweep"))
    first = plan(toy_yaml(), "--seeds", "0-2", *into)
    first.save()
    (tmp_path / "sweep" / "lora-seed1").mkdir()
    plan(toy_yaml(), "--seeds", "5", *into).save()
    assert [cell["name"] for cell in read_cells(tmp_path / "sweep")] == ["lora-seed1", "lora-seed5"]
    assert find_sweep(str(tmp_path / "sweep")) == tmp_path / "sweep"
    assert find_sweep("tiny") is None


STUDY = Path("recipes/study")
SWEEPS = sorted(path for path in STUDY.glob("*.yaml") if sweep_block(path) is not None)


@pytest.mark.parametrize("path", sorted(STUDY.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_study_loads(path: Path) -> None:
    recipe = load_recipe(str(path))
    block = sweep_block(path) or {}
    assert recipe.name == path.stem
    assert set(block.get("methods", ())) <= set(method_names())
    for size in block.get("grid", {}).get("data.size", [recipe.data.size]):
        assert size in SIZES


def test_streams_that_choose_and_streams_that_report_are_disjoint() -> None:
    asked = {path.stem: asked_for(parse(["sweep", str(path)]), path) for path in SWEEPS}
    choosing = [asked.pop(name) for name in ("tuning", "tuning-slow", "signed-ewc")]
    assert {each.stream_seeds for each in choosing} == {(1000, 1001)}
    assert all("docs/tuning" in str(each.results) for each in choosing)
    assert not {1000, 1001} & {seed for each in asked.values() for seed in each.stream_seeds}
    text = (STUDY / "main.yaml").read_text(encoding="utf-8")
    assert "1000 and 1001 choose" in text
    assert asked["main"].stream_seeds == (11, 12, 13, 14, 15)
    assert "11 to 15 report" in text


def test_a_results_folder_may_name_the_size(toy_yaml: Callable[..., Path]) -> None:
    path = toy_yaml()
    size = load_recipe(str(path)).data.size
    found = plan(path, "--results", "kept/{size}")
    assert [cell.kept for cell in found.cells] == [Path(f"kept/{size}/{found.cells[0].name}.csv")]
