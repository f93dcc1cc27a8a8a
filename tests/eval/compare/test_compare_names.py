"""What a method is called in a comparison: name in print, preset, blocks, what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.files import read_json, write_json
from eval.compare import compare, tables
from eval.compare.names import BLOCKS, PRINTED, printed
from eval.compare.runs import LATER_KEYS, _flat, _is_free
from eval.report import write_report
from recipes.config.blocks import Replay
from recipes.config.loading import load_recipe
from tests.eval.compare.conftest import write_run


@pytest.mark.parametrize(
    ("blocks", "name", "words"),
    [
        ({"slow_weights": {}}, "lora + slow weights", "LoRA + slow weights"),
        ({"lwf": {"weight": 1}}, "lora + LwF", "LoRA + LwF"),
        ({"method": "lwf", "lwf": {"weight": 1}}, "lwf", "LwF"),
        ({"replay": {"memory": 500}}, "lora + replay", "LoRA + replay"),
        ({"replay": None, "slow_weights": None}, "lora", "LoRA"),
        ({"method": "er", "replay": {"memory": 9}}, "er", "Replay (ER)"),
        ({"method": "strlora_signed", "slow_weights": {}}, "strlora_signed", "StrLoRA (signed)"),
    ],
)
def test_a_lone_run_is_named_with_its_blocks(
    tmp_path: Path, stream: Path, blocks: dict[str, Any], name: str, words: str
) -> None:
    recipe = {"method": "lora", "seed": 0} | blocks
    found = compare([write_run(tmp_path / "run", stream, [0.5, 0.6], recipe=recipe)])
    assert found.names[-1] == name
    assert f"\n{words} " in tables.text(found)


def test_every_method_has_a_name_in_print_and_its_own_blocks_are_no_addition() -> None:
    assert printed("er, seed 0") == "Replay (ER), seed 0"
    assert printed("lora tuner.rank=8") == "LoRA tuner.rank=8"
    assert printed("lora_of_mine") == "lora_of_mine"
    for path in sorted(Path("recipes/methods").glob("*.yaml")):
        assert path.stem in PRINTED, f"eval/compare/names.py has no name in print for {path.stem}"
        content = yaml.safe_load(path.read_text("utf-8"))
        blocks = {**(content.get("defaults") or {}), **(content.get("always") or {})}
        for key, (_, inherent) in BLOCKS.items():
            assert (blocks.get(key) is not None) == (path.stem in inherent), (path.stem, key)


def test_two_recipes_of_one_method_are_told_apart(good: Path, tmp_path: Path, stream: Path) -> None:
    recipe = {"method": "strlora", "seed": 0, "tuner": {"preset": "released"}}
    other = write_run(tmp_path / "other", stream, [0.5, 0.6, 0.3], recipe=recipe)
    manifest = read_json(good / "manifest.json")
    manifest["recipe"] = recipe | {"tuner": {"preset": "paper"}}
    write_json(good / "manifest.json", manifest)
    found = compare([good, other])
    assert found.names[-2:] == ["strlora tuner.preset=paper", "strlora tuner.preset=released"]


@pytest.mark.parametrize("recipe", [{"method": "lora"}, {}])
def test_runs_in_folders_of_one_name_are_two_methods(
    tmp_path: Path, stream: Path, recipe: dict[str, Any]
) -> None:
    """One recipe on two streams, and runs that recorded no recipe: their folders name them."""
    runs = [tmp_path / who / "runs" / "tiny" for who in ("mine", "yours")]
    for number, run in enumerate(runs):
        data = {"stream": str(stream), "sha256": str(number if recipe else 1) * 64}
        write_run(run, stream, [0.5, 0.9], seed=number, recipe=recipe, data=data)
    found = compare(runs)
    assert found.names == ["mine/runs/tiny", "yours/runs/tiny"]
    assert all(found.n(name) == 1 for name in found.names)


def test_gaps_name_folders_of_one_name_by_what_tells_them_apart(
    tmp_path: Path, stream: Path
) -> None:
    long, short = (tmp_path / who / "runs" / "tiny" for who in ("mine", "yours"))
    write_run(long, stream, [0.5, 0.9, 0.8], seed=0)
    write_run(short, stream, [0.5, 0.9], seed=1)
    assert "mine/runs/tiny: chunks after 2" in [gap.what for gap in compare([long, short]).gaps]


def test_runs_of_an_older_version_are_the_same_method(tmp_path: Path, stream: Path) -> None:
    """A key that a run's version did not know yet had the value that is now its default."""
    older = {"method": "lora", "eval": {"every": 1}}
    newer = older | {"lwf": None, "eval": {"every": 1, "both_weights": True}}
    newer |= {"schedule": {"later": {"optimizer_state": "fresh"}}}
    kept = newer | {"schedule": {"later": {"optimizer_state": "keep"}}}
    runs = [
        write_run(tmp_path / str(seed), stream, [0.5, 0.6], recipe=recipe, seed=seed)
        for seed, recipe in enumerate((older, newer, kept))
    ]
    name = "lora schedule.later.optimizer_state"
    assert set(compare(runs).seeds) == {f"{name}=fresh", f"{name}=keep"}
    assert set(compare(runs[:2]).seeds) == {"lora"}
    replay = {"memory": 500, "share": 0.5}
    runs = [
        write_run(
            tmp_path / f"er-{seed}", stream, [0.5, 0.6], "er", seed=seed,
            recipe={"method": "er", "replay": replay | more},
        )
        for seed, more in enumerate(({}, {"samples": "more"}, {"samples": "equal"}))
    ]  # fmt: skip
    assert set(compare(runs[:2]).seeds) == {"er"}
    assert set(compare(runs).seeds) == {"er replay.samples=more", "er replay.samples=equal"}


def test_every_key_that_came_later_is_known_with_its_default() -> None:
    """Held against a run that version 0.1 recorded; a null is as good as no key."""
    recorded = _flat(read_json(Path("tests/fixtures/old_run/lora/manifest.json"))["recipe"])
    now = _flat(load_recipe("smoke").model_dump())
    later = {key: value for key, value in now.items() if key not in recorded and value is not None}
    # The old run's method has another tuner, whose options are not the recipe's.
    later = {k: v for k, v in later.items() if not _is_free(k) and not k.startswith("tuner.")}
    # A run without replay has no key of it.
    assert later | {"replay.samples": Replay().samples} == LATER_KEYS


def test_a_preset_and_what_changed_it_stand_beside_the_method(
    good: Path, tmp_path: Path, stream: Path
) -> None:
    changed = "released, modified: gate_scale=num_experts"
    tuner = {"preset": "released", "gate_scale": "num_experts"}
    recipe = {"method": "strlora", "seed": 0, "tuner": tuner}
    write_run(tmp_path / "other", stream, [0.5, 0.6, 0.3], recipe=recipe, preset=changed)
    manifest = read_json(good / "manifest.json")
    manifest |= {"recipe": {"method": "strlora", "tuner": {}}, "preset": "paper", "tuner": {}}
    write_json(good / "manifest.json", manifest)
    adapter = tmp_path / "other" / "chunks" / "003" / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", {"peft_type": "STRLORA"})
    names = compare([good, tmp_path / "other"]).names[-2:]
    assert names == ["strlora (paper)", f"strlora ({changed})"]
    report = write_report(tmp_path / "other").read_text("utf-8")
    assert f"strlora ({changed}) on" in report
    card = (adapter / "README.md").read_text("utf-8")
    assert f"strlora ({changed}) after chunk 3" in card
    assert "\n- strlora\n" in card, "a tag is the method alone"


def test_a_method_that_is_told_the_task_is_labelled(good: Path, tmp_path: Path) -> None:
    manifest = read_json(good / "manifest.json")
    manifest["recipe"] |= {"method": "smolora"}
    manifest["tuner"] = {"num_experts": 4, "sentence": "task"}
    write_json(good / "manifest.json", manifest)
    assert compare([good]).names[-1] == "smolora (given the task)"
    assert "smolora (given the task) on" in write_report(good).read_text("utf-8")
    manifest["tuner"]["sentence"] = "template"
    write_json(good / "manifest.json", manifest)
    assert compare([good]).names[-1] == "smolora (given the task's template)"
    manifest["tuner"]["sentence"] = "number"  # the oracle
    write_json(good / "manifest.json", manifest)
    label = "smolora (given the task: upper bound of routing)"
    assert compare([good]).names[-1] == label
    assert f"{label} on" in write_report(good).read_text("utf-8")
    assert printed(label.replace("smolora", "oracle")) == "Oracle (task given: upper bound)"
    manifest["tuner"]["sentence"] = "prompt"
    write_json(good / "manifest.json", manifest)
    assert compare([good]).names[-1] == "smolora"
