"""`python -m recipes.tune`: the grid, the choice, resuming, and what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data_prep.stream import StreamError
from recipes.config.loading import load_recipe
from recipes.config.method import find_method, method_names
from recipes.run.chunk_data import open_recipe_stream
from recipes.run_folder.state import ChunkRecord, RunState, save_state
from recipes.tune import __main__ as tune
from recipes.tune.grid import FIRST, LATER, Trial, default_axes, parse_axes, trials
from recipes.tune.results import Result, as_csv, as_markdown, choose, read_result, rows
from recipes.tune.tuning_stream import tuning_data, write_view
from recipes.tune.writing import write_tuned
from tests.recipes.toy import write_stream


def result(last: float, average: float = 0.5, rate: float = 1e-3, state: str = "done") -> Result:
    return Result(Trial("lora", ((FIRST, rate), (LATER, rate))), "run", state, last, average)


def test_the_grid_is_relative_to_the_recipes_own_rates() -> None:
    recipe = load_recipe("tiny", ["method=lora"], tuned=False)
    found = list(trials(recipe, parse_axes(["scale=0.5,1", "later=1"])))
    assert [dict(trial.settings) for trial in found] == [
        {FIRST: 0.001, LATER: 0.001},
        {FIRST: 0.002, LATER: 0.002},
    ]
    kept = next(trials(recipe, parse_axes(["scale=3"])))
    assert dict(kept.settings) == {FIRST: 0.006, LATER: 0.003}, "the recipe's own share, half"
    plain = next(trials(recipe, parse_axes(["schedule.weight_decay=0,1e-1"])))
    assert plain.settings == (("schedule.weight_decay", 0),)


def test_the_default_grid_follows_the_method() -> None:
    assert "later" not in default_axes(load_recipe("tiny", ["method=joint"]))
    assert len(list(trials(load_recipe("tiny"), default_axes(load_recipe("tiny"))))) == 12
    lora = load_recipe("tiny", ["method=lora"])
    assert list(default_axes(lora)) == ["scale", "later"]


@pytest.mark.parametrize(
    "text", ["scale", "scale=", "=1", "scale=0", "later=-1", "scale=x", "scale=1,1"]
)
def test_a_wrong_axis_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--grid"):
        parse_axes([text])


def test_the_best_last_is_chosen_and_ties_are_broken() -> None:
    lost = result(math.nan, state="diverged")
    assert choose([result(0.4), result(0.6), lost]) == result(0.6)
    assert choose([result(0.6, 0.5), result(0.6, 0.7)]) == result(0.6, 0.7)
    equal = [result(0.6, rate=4e-3), result(0.6 + 1e-12, rate=1e-3), result(0.6, rate=2e-3)]
    assert choose(equal) is equal[1], "the smallest rate of three equals"
    assert choose([lost]) is None


def test_a_loss_that_is_no_number_loses_the_trial_and_is_named(tmp_path: Path) -> None:
    trial = Trial("lora", ((FIRST, 0.5),))
    record = ChunkRecord(1, trained=True, evaluated=True, loss=math.nan)
    save_state(tmp_path / "state.json", RunState([record], 1, finished=True))
    found = read_result(trial, tmp_path)
    assert (found.state, found.why) == ("diverged", "a chunk ended with the loss nan")
    table = as_markdown([found, result(0.5)], [result(0.5)])
    assert "| diverged |" in table.splitlines()[2]
    assert table.splitlines()[3].startswith("| **lora** |")
    assert "nan" in as_csv(rows([found], []))


def test_weights_that_diverged_lose_the_trial_and_other_failures_do_not(tmp_path: Path) -> None:
    trial = Trial("lora", ((FIRST, 0.5),))
    said = "chunk 1: lm.A holds NaN or infinity: the training diverged. Look at ..."
    assert read_result(trial, tmp_path, said).state == "diverged"
    assert read_result(trial, tmp_path, "no space left on device").state == "failed"
    assert read_result(trial, tmp_path).state == "not run"


def test_choices_are_written_with_their_table_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text("# Words.\ntuner_type: lora  # the host's own\n", encoding="utf-8")
    write_tuned(path, "tiny", {FIRST: 0.002, "tuner.gate_scale": "one"}, ["| a |", "| --- |"])
    write_tuned(path, "mini", {FIRST: 0.003}, ["of mini"])
    write_tuned(path, "tiny", {FIRST: 0.004, LATER: 0.001}, ["| b |"])
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
    write_tuned(path, "tiny", {FIRST: 0.00001}, ["why"])
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
    write_tuned(path, "other", {FIRST: 0.001}, ["why"])
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


def test_an_interrupted_tuning_goes_on_where_it_was(
    tmp_path: Path,
    toy_yaml: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the stand-in host: one trial fails, the next start repeats that trial alone."""
    kept = write_stream(tmp_path / "kept", samples=8)
    monkeypatch.setattr(tune, "RUNNER", "tests.recipes.fake_run")
    monkeypatch.setattr(tune, "FOLDER", tmp_path / "tune")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    words = [str(toy_yaml()), "--methods", "lora", "--stream", str(kept), "--grid"]
    folder = tmp_path / "tune" / "toy-kept-2chunks"
    monkeypatch.setenv("FAKE_FAIL_AT", "2")
    assert tune.main([*words, "scale=1"]) == 1
    assert "1 trials failed" in capsys.readouterr().out
    monkeypatch.delenv("FAKE_FAIL_AT")
    assert tune.main([*words, "scale=1"]) == 0
    first = folder / "lora" / "first.learning_rate=0.001,later.learning_rate=0.001"
    finished = (first / "state.json").stat().st_mtime_ns
    assert tune.main([*words, "scale=1,2"]) == 0
    assert (first / "state.json").stat().st_mtime_ns == finished, "a finished trial is left alone"
    table = json.loads((folder / "lora" / "trials.json").read_text(encoding="utf-8"))
    assert [row["state"] for row in table] == ["done", "done"]
    assert [row["chosen"] for row in table].count(True) == 1
    assert (folder / "lora" / "trials.csv").is_file()
    assert "chosen" in (folder / "lora" / "trials.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert tune.main([*words, "scale=1", "tuner.rank=2"]) == 1, "results of another rank"
    told = capsys.readouterr().err
    assert "tuner.rank: " in told
    assert f"Remove or rename {first}" in told


@pytest.mark.parametrize(
    ("axis", "lacks"),
    [
        ("tuner.gate_scale=one", "tuner.gate_scale"),
        ("ewc.weight=1", "ewc"),
        ("pool.samples=2", "pool"),
    ],
)
def test_an_axis_that_the_method_does_not_have_is_refused(
    axis: str, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main(["tiny", "--methods", "lora", "--grid", axis, "--dry-run"]) == 2
    assert f"method lora has no {lacks};" in capsys.readouterr().err


def test_the_reported_stream_is_refused_for_tuning(
    stream: Path, toy_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(toy_yaml()), "--methods", "lora", "--stream", str(stream)]
    assert tune.main(words) == 2
    assert "is the recipe's own stream" in capsys.readouterr().err
    assert tune.main([str(toy_yaml()), "--methods", "zero_shot", "--stream", "elsewhere"]) == 2
    assert "trains nothing" in capsys.readouterr().err
