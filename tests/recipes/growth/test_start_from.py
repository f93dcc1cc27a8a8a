"""`start_from`: a run goes on from another one's adapter; of its state it says what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import read_json, read_jsonl, write_json, write_jsonl
from eval.routing.router_accuracy import read_choices
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.run import evaluation
from recipes.run.chunk_data import open_recipe_stream
from recipes.run_folder.layout import OtherWeightsLayout, RunLayout
from recipes.run_folder.start import chunks_before
from recipes.tools.plan import make_plan
from recipes.tools.preview import preview
from recipes.tools.reproduce import differences, is_same
from tests.recipes.growth.test_growth import begin, finish, grow, weights
from tests.recipes.toy import recipe_values, write_model, write_recipe


def only_chunk(stream: Path, number: int) -> Path:
    """A copy of a stream that holds one of its chunks alone."""
    copy = stream.with_name(f"{stream.name}-{number}")
    shutil.copytree(stream, copy, symlinks=True)
    manifest = json.loads((copy / "stream.json").read_text())
    manifest["chunks"] = [{**manifest["chunks"][number - 1], "index": 1}]
    manifest["cut"] = manifest["cut"][number - 1 : number]
    for entry in manifest["tasks"].values():
        entry.pop("of", None), entry.pop("chunk", None)
    (copy / "stream.json").write_text(json.dumps(manifest))
    return copy


class Lab:
    """Two months as a stream; recipes over both, the first, and the second alone."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.first = begin(folder)
        self.both = folder / "both"
        shutil.copytree(self.first, self.both, symlinks=True)
        grow(folder, self.both, 2)
        self.second = only_chunk(self.both, 2)

    def recipe(self, stream: Path, run: str, **changes: Any) -> Path:
        values = recipe_values(stream, self.folder / run, self.model, **changes)
        del values["data"]["chunks"]
        return write_recipe(self.folder / f"{run}.yaml", values)

    def run(self, stream: Path, run: str, **changes: Any) -> str:
        code, out = finish(self.recipe(stream, run, **changes), FAKE_REPORT="1")
        assert code == 0, out
        return out

    def first_run(self) -> Path:
        """A finished run of plain LoRA over the first month, to read."""
        if not (self.folder / "first").is_dir():
            self.run(self.first, "first")
        return self.folder / "first"

    def refused(self, run: str, start: Path | str, *overrides: str, **changes: Any) -> str:
        """What a run says that must not start."""
        path = self.recipe(self.second, run, start_from=str(start), **changes)
        code, out = finish(path, *overrides)
        assert code == 1
        assert not (self.folder / run / "chunks").exists()
        return out


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    return Lab(folder, write_model(folder / "model"))


def start_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())["start_from"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ewc", "strlora"])
def test_the_second_month_alone_ends_as_the_grown_run_does(lab, method):
    state = {"method": method, "slow_weights": {}}
    lab.run(lab.both, f"{method}-both", **state)
    lab.run(lab.first, f"{method}-first", **state)
    start = lab.folder / f"{method}-first"
    out = lab.run(lab.second, method, start_from=str(start), **state)
    both, second = lab.folder / f"{method}-both", lab.folder / method
    assert weights(second)[1:] == weights(both)[1:]
    for name in ("ewc.safetensors", "fast/adapter_model.safetensors"):
        then, now = (run / f"chunks/00{n}/adapter" / name for run, n in ((both, 2), (second, 1)))
        assert then.is_file() == now.is_file()
        assert not then.is_file() or then.read_bytes() == now.read_bytes()
    found = start_of(second)
    assert found["missing"] == []
    assert "slow weights" in found["carried"]
    assert f"goes on from {start}/chunks/001/adapter, with the adapter" in out


def test_what_does_not_come_along_is_named(lab):
    start = lab.first_run()
    more = {"method": "ewc", "slow_weights": {}, "replay": {"memory": 8, "share": 0.5}}
    out = lab.run(lab.second, "lacking", start_from=str(start), **more)
    lacking = ["the state of ewc", "slow weights", "the memory of replay"]
    assert f"missing: {', '.join(lacking)}" in out
    assert start_of(lab.folder / "lacking")["missing"] == lacking
    report = (lab.folder / "lacking/report.html").read_text()
    assert "Missing of it" in report
    assert f"{start}/chunks/001/adapter" in report


def planned(recipe: Recipe) -> str:
    """The dry run of chunk 1."""
    return "\n".join(preview(recipe, 1))


def test_replay_that_starts_without_a_memory_trains_its_first_chunk_as_others_do(lab):
    """7 samples, 2 epochs, batches of 4: 4 steps, shuffled by the host."""
    more = {"method": "er", "replay": {"memory": 8, "share": 0.5}}
    path = lab.recipe(lab.second, "fresh", start_from=str(lab.first_run()), **more)
    recipe = load_recipe(str(path), ["schedule.epochs=2"])
    assert recipe.schedule.global_batch == 4
    plan = make_plan(recipe).chunks[0]
    assert (plan.samples, plan.replayed, plan.steps) == (7, 0, 4)
    shown = planned(recipe)
    assert f"--dataset {lab.second}/chunks/002.jsonl" in shown
    assert "--num_train_epochs 2" in shown
    assert "--train_dataloader_shuffle" not in shown


@pytest.mark.slow
def test_the_memory_of_replay_comes_along(lab):
    more = {"method": "er", "replay": {"memory": 8, "share": 0.5}}
    lab.run(lab.first, "er-first", **more)
    start = lab.folder / "er-first"
    shown = planned(load_recipe(str(lab.recipe(lab.second, "er", start_from=str(start), **more))))
    assert "/er/chunks/001/mixed.jsonl" in shown
    assert "--train_dataloader_shuffle false" in shown
    out = lab.run(lab.second, "er", start_from=str(start), **more)
    assert "2 of 4 in a batch replayed from 8 kept" in out
    kept = (
        start / "chunks/001/replay/memory.jsonl",
        lab.folder / "er/chunks/000/replay/memory.jsonl",
    )
    before, memory = (list(map(json.loads, path.read_text().splitlines())) for path in kept)
    assert before == memory
    out = lab.refused("er-9", start, method="er", replay={"memory": 9, "share": 0.5})
    assert "replay.memory = 9, but the memory that comes along holds 8" in out


@pytest.mark.slow
def test_the_source_may_go_once_the_run_has_started(lab):
    start = lab.folder / "gone"
    shutil.copytree(lab.first_run(), start)
    path = lab.recipe(lab.second, "stays", start_from=str(start))
    assert finish(path, FAKE_KILL_AT="1")[0] == 1  # copied, nothing trained
    shutil.rmtree(start)
    assert finish(path)[0] == 0
    code, out = finish(path, f"start_from={lab.folder}/other")
    assert code == 1
    assert f"start_from: '{start}' in the run" in out
    again = lab.recipe(lab.second, "again", start_from=f"{lab.folder}/stays/chunks/000/adapter")
    assert finish(again)[0] == 0
    assert is_same(differences(lab.folder / "stays", lab.folder / "again"))


def test_a_copy_that_was_changed_stops_the_run(lab):
    path = lab.recipe(lab.second, "changed", start_from=str(lab.first_run()))
    assert finish(path, FAKE_KILL_AT="1")[0] == 1
    with (lab.folder / "changed/chunks/000/adapter/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    code, out = finish(path)
    assert code == 1
    assert "was changed after the chunk was recorded" in out


def test_adapters_that_do_not_fit_are_refused_with_key_and_fix(lab, tmp_path):
    run = lab.first_run()
    words = "is neither a run folder (with manifest.json and state.json) nor an"
    assert words in lab.refused("no", tmp_path)
    words = "method = strlora trains adapters of type STRLORA, this one is of type LORA: set the"
    assert words in lab.refused("no", run, "method=strlora")
    alone = tmp_path / "alone"
    shutil.copytree(run / "chunks/001/adapter", alone)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0}
    (alone / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/far/away/model"})
    )
    words = "tuner.rank = 16, but the adapter was trained with 8 and keeps it: set tuner.rank=8"
    assert words in lab.refused("no", alone, "tuner.rank=16")
    (alone / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/far/away/qwen"})
    )
    assert "is another base model than that of the adapter (/far/away/qwen)" in lab.refused(
        "no", alone
    )
    other = write_model(tmp_path / "model")
    (other / "vocab.json").write_text('{"a": 1}')
    words = f"model.path = {other} is another base model than that of the adapter"
    assert words in lab.refused("no", run, f"model.path={other}")


@pytest.mark.parametrize("method", ["joint", "zero_shot", "mr_lora"])
def test_methods_that_go_on_from_nothing_refuse_the_key(lab, method):
    path = lab.recipe(lab.second, "second", start_from="runs/tiny", method=method)
    with pytest.raises(RecipeError, match=r"start_from = runs/tiny has no effect"):
        load_recipe(str(path))


def test_chosen_chunks_are_counted_in_this_run(toy, tmp_path: Path) -> None:
    """BranchLoRA's adapter counts on: after three chunks brought along, its fourth is chunk 1."""
    recipe = toy(method="branchlora")
    layout, stream = RunLayout(tmp_path / "run"), open_recipe_stream(recipe)
    assert chunks_before(layout) == 0
    write_json(layout.adapter(0) / "adapter_config.json", {"past_chunks": 2})
    assert chunks_before(layout) == 0, "no start_from"
    write_json(layout.adapter(0) / "start.json", {})
    assert chunks_before(OtherWeightsLayout(layout.root, "slow")) == chunks_before(layout) == 3
    tasks = ["VQAv2", "Fin"]
    evaluation.prepare(recipe, layout, stream, tasks, 1)
    chosen = [1, 3, 4, 4, 2, 2, 2, 2]  # of the adapter's four; the questions come by task
    rows = zip(read_jsonl(layout.prompts), chosen, strict=True)
    write_jsonl(layout.answers(1), [row | {"response": "1", "expert": n} for row, n in rows])
    evaluation.score(recipe, layout, stream, tasks, 1)
    counted = read_json(layout.router_scores(1))
    # Two of VQAv2 went to chunk 1, which held it. What the chunks before held no file says.
    assert counted["tasks"]["VQAv2"]["experts"] == {"0": 2, "1": 2}
    assert (counted["tasks"]["VQAv2"]["dominant_chunk"], counted["dominant_chunk"]) == (1.0, 1.0)
    assert counted["tasks"]["Fin"]["any_chunk"] is None
    found = read_choices(layout.router_scores(1), [stream.chunk(1).tasks], {})
    assert found.total.values() == (1.0, 1.0, 1.0, 1.0)
