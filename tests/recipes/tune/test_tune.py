"""`python -m recipes.tune`: the default grid, its stream, going on, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from data_prep.files import read_json, write_json
from data_prep.stream import StreamError
from recipes.config.loading import load_recipe
from recipes.config.method import find_method, method_names
from recipes.run.chunk_data import open_recipe_stream
from recipes.sweep import parallel_runs
from recipes.sweep.axes import FIRST, LATER, combinations
from recipes.tune import __main__ as tune
from recipes.tune.__main__ import default_axes
from recipes.tune.tuning_stream import trained_tasks, tuning_data, write_view
from recipes.tune.writing import write_tuned
from tests.recipes.toy import write_stream


def fragment(settings: dict[str, object]) -> DictConfig:
    config = OmegaConf.create({})
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    return config


def test_the_default_grid_follows_the_method() -> None:
    assert "later" not in default_axes(load_recipe("tiny", ["method=joint"]))
    found = list(combinations(load_recipe("tiny"), default_axes(load_recipe("tiny"))))
    assert len(found) == 12
    lora = load_recipe("tiny", ["method=lora"])
    assert list(default_axes(lora)) == ["scale", "later"]


def test_choices_are_written_with_their_table_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text("# Words.\ntuner_type: lora  # the host's own\n", encoding="utf-8")
    write_tuned(
        path, "tiny", fragment({FIRST: 0.002, "tuner.gate_scale": "one"}), ["| a |", "| --- |"]
    )
    write_tuned(path, "mini", fragment({FIRST: 0.003}), ["of mini"])
    write_tuned(path, "tiny", fragment({FIRST: 0.004, LATER: 0.001}), ["| b |"])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Words.\ntuner_type: lora  # the host's own\ntuned:\n  tiny:\n")
    assert "# | b |" in text
    assert "| a |" not in text
    assert "    # of mini\n" in text
    assert yaml.safe_load(text)["tuned"] == {
        "tiny": {
            "schedule": {"first": {"learning_rate": 0.004}, "later": {"learning_rate": 0.001}},
            "tuner": {"gate_scale": "one"},  # the trials ran with it
        },
        "mini": {"schedule": {"first": {"learning_rate": 0.003}}},
    }


def test_every_form_of_a_file_is_written_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text(
        "tuned: {mini: {seed: 1}}  # none yet\ntuner_type: null\nwords: 'a'\n", encoding="utf-8"
    )
    write_tuned(path, "tiny", fragment({FIRST: 0.00001}), ["why"])
    text = path.read_text(encoding="utf-8")
    assert text.endswith("tuner_type: null\nwords: 'a'\n")
    assert yaml.safe_load(text)["tuned"] == {
        "mini": {"seed": 1},
        "tiny": {"schedule": {"first": {"learning_rate": 0.00001}}},
    }


@pytest.mark.parametrize("name", method_names())
def test_a_shipped_method_loses_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "method.yaml"
    shipped = find_method(name).file.read_text(encoding="utf-8")
    path.write_text(shipped, encoding="utf-8")
    write_tuned(path, "other", fragment({FIRST: 0.001}), ["why"])
    added = "  other:\n    # why\n    schedule:\n      first:\n        learning_rate: 0.001\n"
    text = path.read_text(encoding="utf-8")
    assert text == (shipped if "tuned:" in shipped else f"{shipped}tuned:\n") + added


def test_the_tuning_stream_is_another_than_the_reported_one() -> None:
    data = tuning_data(load_recipe("tiny"), None)
    assert data["stream"] == "data/tuning/tiny-tuning-seed1000-validation"
    mini = tuning_data(load_recipe("mini", ["data.seed=2"]), None)
    assert mini["stream"] == "data/tuning/mini-seed1002-validation"
    with pytest.raises(StreamError, match="--stream"):
        tuning_data(load_recipe("internvl3.5-8b"), None)


def test_a_view_asks_the_validation_split(tmp_path: Path) -> None:
    raw = write_stream(tmp_path / "raw")
    manifest = json.loads((raw / "stream.json").read_text(encoding="utf-8"))
    for task in ("VQAv2", "Fin"):
        file = f"validation/{task}.jsonl"
        (raw / "validation").mkdir(exist_ok=True)
        (raw / file).write_bytes((raw / "test" / f"{task}.jsonl").read_bytes())
        entry = manifest["tasks"][task]
        entry["validation"] = {"file": file, "samples": 4, "sha256": entry["sha256"]}
        (raw / entry["test"]).unlink()
    (raw / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_view(raw, tmp_path / "view")
    recipe = load_recipe("tiny", [f"data.stream={tmp_path / 'view'}", "data.chunks=2"])
    stream = open_recipe_stream(recipe)
    stream.verify_chunk(2)
    stream.verify_tests(stream.tasks)
    assert any((tmp_path / "view" / "images").iterdir())


def test_a_test_set_of_a_period_counts_with_its_chunk(
    tmp_path: Path, toy_yaml: Callable[..., Path]
) -> None:
    """Cut by time, each period has a test set; a batch that was appended has one, too."""
    kept = write_stream(tmp_path / "kept", chunks=3)
    manifest = read_json(kept / "stream.json")
    fin = manifest["tasks"]["Fin"]
    manifest["tasks"] |= {f"Fin.{n}": {**fin, "of": "Fin", "chunk": n} for n in (1, 2, 3)}
    manifest["tasks"]["Elsewhere"] = fin
    write_json(kept / "stream.json", manifest)
    recipe = load_recipe(str(toy_yaml()))
    assert recipe.data.chunks == 2
    assert trained_tasks(recipe, kept) == ["VQAv2", "Fin", "Fin.1", "Fin.2"]
    some = recipe.eval.model_copy(update={"tasks": ["Fin.3", "Fin.2", "VQAv2", "gone"]})
    recipe = recipe.model_copy(update={"eval": some})
    assert trained_tasks(recipe, kept) == ["Fin.2", "VQAv2"]
    some = recipe.eval.model_copy(update={"tasks": ["Fin.3"]})
    with pytest.raises(StreamError, match=r"chunks 1 to 2 hold; test sets: Fin\.3; tasks of .*Fin"):
        trained_tasks(recipe.model_copy(update={"eval": some}), kept)


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_no_run_at_a_time_is_refused(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        tune.main(["tiny", "--methods", "lora", "--jobs", jobs, "--dry-run"])
    assert f"argument --jobs: {jobs} is not 1 or more" in capsys.readouterr().err


def test_a_tuning_is_a_sweep_with_a_table_of_its_choice(
    tmp_path: Path,
    toy_yaml: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the stand-in host; that a sweep goes on where it was is tests/recipes/sweep's."""
    kept = write_stream(tmp_path / "kept", samples=8)
    monkeypatch.setattr(parallel_runs, "RUNNER", "tests.recipes.fake_run")
    monkeypatch.setattr(tune, "FOLDER", tmp_path / "tune")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    words = [str(toy_yaml()), "--methods", "lora", "--stream", str(kept), "--grid", "scale=1"]
    assert tune.main(words) == 0
    folder = tmp_path / "tune" / "toy-kept-2chunks"
    first = folder / "lora-seed0-first.learning_rate=0.001-later.learning_rate=0.001"
    recipe = yaml.safe_load((first / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["eval"]["tasks"] == ["VQAv2", "Fin"]
    assert recipe["eval"]["every"] == 2
    table = json.loads((folder / "trials-lora.json").read_text(encoding="utf-8"))
    assert [(row["state"], row["chosen"]) for row in table] == [("done", True)]
    assert (folder / "trials-lora.csv").is_file()
    assert "chosen" in (folder / "trials-lora.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert tune.main([*words, "tuner.rank=2"]) == 2, "results of another rank"
    told = capsys.readouterr().err
    assert "tuner.rank: 8 in the run, 2 now" in told
    assert f"remove {first}" in told


@pytest.mark.parametrize(
    ("axis", "lacks"),
    [
        ("tuner.gate_scale=one", "tuner.gate_scale"),
        ("ewc.weight=1", "ewc"),
    ],
)
def test_an_axis_that_the_method_does_not_have_is_refused(
    axis: str, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(["tiny", "--methods", "lora", "--grid", axis, "--dry-run"]) == 2
    assert f"method lora has no {lacks} -- leave the axis out" in capsys.readouterr().err


def test_the_reported_stream_is_refused_for_tuning(
    stream: Path, toy_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(toy_yaml()), "--methods", "lora", "--stream", str(stream)]
    assert tune.main(words) == 2
    assert "is the recipe's own stream" in capsys.readouterr().err
    assert tune.main([str(toy_yaml()), "--methods", "zero_shot", "--stream", "elsewhere"]) == 2
    assert "trains nothing" in capsys.readouterr().err
