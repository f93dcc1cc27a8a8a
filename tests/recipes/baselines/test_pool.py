"""MR-LoRA's pool: what its router is asked and taught, how its answers are read, who answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_prep.files import read_json, sha256_file
from data_prep.task_files.router import (
    expert_letters,
    router_prompt,
    router_question,
    router_record,
)
from eval.compare.costs import stored_millions
from eval.routing.router_accuracy import count_choices
from recipes.baselines.mr_lora.merged_experts import write_merged
from recipes.baselines.mr_lora.pool import (
    ROUTER,
    check_pool,
    check_router,
    keep_samples,
    router_hashes,
    router_recipe,
    router_start,
    write_pool,
    write_router_data,
)
from recipes.baselines.mr_lora.prompt import Choice, places_by_chunk, read_letter
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import infer_command, train_command
from recipes.run_folder.checkpoints import CheckpointError
from recipes.run_folder.layout import RouterLayout, RunLayout
from recipes.run_folder.state import RunState, load_state
from recipes.tools.clean import removable
from recipes.tools.plan import make_plan
from recipes.tools.status import verify
from strlora_tuner.saved import CONFIG, WEIGHTS
from tests.recipes.fake_run import finish

LETTERS = {"A": 1, "B": 2, "C": 3}


def test_more_than_26_experts_have_two_letters_each() -> None:
    assert expert_letters(3) == ["A", "B", "C"]
    assert expert_letters(26)[-1] == "Z"
    names = expert_letters(28)
    assert (names[0], names[25], names[26], names[27]) == ("AA", "AZ", "BA", "BB")
    assert len(set(expert_letters(676))) == 676
    with pytest.raises(ValueError, match="676 at most"):
        expert_letters(677)


def test_the_prompt_names_every_expert_and_asks_for_its_letter() -> None:
    text = router_prompt(["", "", "cars"], "How many?")
    assert text.splitlines()[1:4] == ["A", "B", "C. cars"]
    assert "reply with one letter" in text
    assert text.endswith("Question: How many?\nLetter of the expert:")
    assert "its two letters" in router_prompt([""] * 27, "How many?")


def test_the_router_is_asked_the_same_way_that_it_is_taught() -> None:
    turns = [
        {"role": "user", "content": "<image>What is <image>this?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "<image>And this?"},
    ]
    sample = {"messages": turns, "images": ["a.png", "b.png", "c.png"], "task": "T", "id": "t-1"}
    asked = router_question(sample, ["", ""])
    taught = router_record(sample, ["", ""], 1)
    assert taught["messages"] == [*asked["messages"], {"role": "assistant", "content": "B"}]
    assert taught["images"] == asked["images"] == ["a.png", "b.png"], "of the first question"
    assert asked["messages"][0]["content"].startswith("<image><image>Which expert")
    bare = {"messages": [{"role": "user", "content": "What?"}], "images": ["a.png"]}
    assert router_question(bare, ["", ""])["images"] == ["a.png"], "the host puts it first, too"


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("B", Choice(2, "B", True)),
        (" (C).\n", Choice(3, " (C).\n", True)),
        ("D", Choice(1, "D", False)),
        ("b", Choice(1, "b", False)),
        ("A or B", Choice(1, "A or B", False)),
        ("", Choice(1, "", False)),
        (None, Choice(1, None, False)),
    ],
)
def test_an_answer_that_is_no_letter_goes_to_the_fallback(said: str | None, choice: Choice) -> None:
    assert read_letter(said, LETTERS, fallback=1) == choice


def test_groups_keep_every_request_once_and_in_order() -> None:
    choices = [Choice(chunk, "", True) for chunk in (2, 1, 2, 3, 1)]
    groups = places_by_chunk(choices)
    assert groups == {1: [1, 4], 2: [0, 2], 3: [3]}
    assert sorted(place for places in groups.values() for place in places) == [0, 1, 2, 3, 4]


@pytest.fixture
def pool(toy: Callable[..., Recipe]) -> Recipe:
    return toy("method=mr_lora", "pool.samples=5")


def test_samples_and_data_of_the_router_follow_from_the_seed(pool: Recipe, tmp_path: Path) -> None:
    stream, layout, state = open_recipe_stream(pool), RunLayout(tmp_path / "r"), RunState()
    path = layout.router_samples(1)
    keep_samples(pool, layout, stream, 1)
    first = path.read_bytes()
    keep_samples(pool, layout, stream, 1)
    assert path.read_bytes() == first
    elsewhere = RunLayout(tmp_path / "s")
    keep_samples(pool.model_copy(update={"seed": 1}), elsewhere, stream, 1)
    assert elsewhere.router_samples(1).read_bytes() != first
    state.record(1).router_sha256 = {path.name: sha256_file(path)}
    keep_samples(pool, layout, stream, 2)
    file, lines = write_router_data(pool, layout, state, 2)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines == len(rows) == 10
    assert [row["messages"][1]["content"] for row in rows] == ["A"] * 5 + ["B"] * 5
    assert all(row["images"] for row in rows)
    (layout.router_samples(1)).write_text("{}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="changed after"):
        write_router_data(pool, layout, state, 2)


def test_a_router_is_trained_at_its_own_rate_in_its_own_files(pool: Recipe) -> None:
    recipe = router_recipe(pool)
    assert recipe.schedule.first.learning_rate == pytest.approx(1e-3 / 4)
    assert recipe.phase(7) == recipe.schedule.first
    assert recipe.schedule.epochs == 5
    assert recipe.previous(7) is None
    given = router_recipe(pool.model_copy(update={"pool": pool.pool and pool.pool.model_copy(
        update={"learning_rate": 0.01})}))  # fmt: skip
    assert given.schedule.first.learning_rate == 0.01


def test_a_router_starts_afresh_or_from_the_mean_of_the_adapters(
    pool: Recipe, tmp_path: Path
) -> None:
    assert router_start(pool, RunLayout(tmp_path), 2) is None
    assert pool.pool is not None
    merged = pool.model_copy(
        update={"pool": pool.pool.model_copy(update={"router_start": "merged"})}
    )
    start = router_start(merged, RunLayout(tmp_path), 2)
    command = train_command(router_recipe(merged), RunLayout(tmp_path), Path("c"), 2, start=start)
    place = command.arguments.index("--adapters")
    assert command.arguments[place + 1] == str(start)
    folders, draw = [tmp_path / name for name in "abc"], np.random.default_rng(0)
    drawn = [{"A": draw.normal(size=(2, 3)).astype(np.float32), "B": np.float32([i])}
             for i in range(3)]  # fmt: skip
    for folder, tensors in zip(folders, drawn, strict=True):
        folder.mkdir()
        save_file(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text("{}", encoding="utf-8")
    found = load_file(write_merged(folders, tmp_path / "start") / WEIGHTS)
    assert found["B"].tolist() == [1.0]
    wanted = sum(tensors["A"].astype(np.float64) for tensors in drawn) / 3
    np.testing.assert_allclose(found["A"], wanted, rtol=1e-7)
    assert (tmp_path / "start" / CONFIG).is_file()
    save_file({"B": np.float32([1])}, folders[1] / WEIGHTS)
    with pytest.raises(ValueError, match="does not hold the tensors of"):
        write_merged(folders, tmp_path / "start")


def test_the_pool_file_tells_the_plug_in_everything(pool: Recipe, tmp_path: Path) -> None:
    layout, state = RunLayout(tmp_path), RunState()
    for chunk, steps in ((1, 9), (2, 3), (3, 9)):
        state.record(chunk).steps = steps
    write_pool(pool, layout, state, 1)
    assert read_json(layout.pool(1))["router"] is None
    write_pool(pool, layout, state, 2)
    content = read_json(layout.pool(2))
    assert [entry["letter"] for entry in content["experts"]] == ["A", "B"]
    assert (content["fallback"], Path(content["router"]).name) == (2, ROUTER)
    assert pool.pool is not None
    assert [entry["text"] for entry in content["experts"]] == ["", ""]
    texts = pool.pool.model_copy(update={"descriptions": ["pets", "charts", "roads"]})
    write_pool(pool.model_copy(update={"pool": texts}), layout, state, 2)
    described = read_json(layout.pool(2))["experts"]
    assert [entry["text"] for entry in described] == ["pets", "charts"]
    largest = pool.model_copy(update={"pool": pool.pool.model_copy(update={"fallback": "largest"})})
    write_pool(largest, layout, state, 2)
    assert read_json(layout.pool(2))["fallback"] == 1
    command = infer_command(pool, layout, layout.prompts, 2)
    assert command.environment["MR_LORA_POOL_FILE"] == str(layout.pool(2))
    assert any(word.endswith("mr_lora/swift_plugin.py") for word in command.arguments)
    base = infer_command(pool, layout, layout.prompts, 0)
    assert not any(word.endswith("mr_lora/swift_plugin.py") for word in base.arguments)


def test_a_pool_without_its_method_and_the_other_way_round_is_refused() -> None:
    with pytest.raises(RecipeError, match="keeps one adapter, so pool has nothing to act on"):
        load_recipe("tiny", ["method=lora", "pool.samples=3"])
    with pytest.raises(RecipeError, match=r"pool.descriptions = 1 texts for data.chunks = 8"):
        load_recipe("tiny", ["method=mr_lora", "pool.descriptions=[pets]"])
    with pytest.raises(RecipeError, match="needs its block `pool`"):
        load_recipe("tiny", ["method=mr_lora", "pool=null"])
    with pytest.raises(RecipeError, match="each question has its own adapter"):
        load_recipe("tiny", ["method=mr_lora", "eval.backend=vllm"])


def test_plan_counts_the_routers() -> None:
    plan = make_plan(load_recipe("smoke", ["method=mr_lora"]))
    assert [chunk.routed for chunk in plan.chunks] == [0, 2 * 20 * 5, 3 * 20 * 5]
    assert [chunk.steps for chunk in plan.chunks] == [16, 16 + 50, 16 + 75]
    lora = make_plan(load_recipe("smoke", ["method=lora"])).model
    assert plan.model is not None
    assert lora is not None
    assert plan.model.stored_parameters == 2 * lora.stored_parameters, "and a router"
    assert plan.model.adapters_gib == pytest.approx(5 / 3 * lora.adapters_gib)


def test_choices_are_judged_by_the_mixture_of_the_chunks(stream: Path, tmp_path: Path) -> None:
    manifest = read_json(stream / "stream.json")
    manifest["chunks"][0]["tasks"] = {"VQAv2": 9, "Fin": 3}
    manifest["chunks"][1]["tasks"] = {"VQAv2": 12, "Fin": 0}
    (stream / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")
    experts: dict[str, list[int | None]] = {"VQAv2": [2, 2, 1, None], "Fin": [1, 2, 2, 2]}
    for task, chosen in experts.items():
        lines = [
            {"id": f"{task}-test-{i:06d}", "prediction": "x", "score": 0.0, "expert": chunk}
            for i, chunk in enumerate(chosen)
        ]
        lines[0]["routed"] = False
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{task}.jsonl").write_text(text, encoding="utf-8")
    found = count_choices(tmp_path, stream, 2)
    assert found is not None
    assert found["what"] == "adapter"
    assert found["tasks"]["VQAv2"] == {
        "n": 4, "dominant_chunk": 0.5, "any_chunk": 0.75, "illegal": 1, "unrouted": 1,
        "experts": {"1": 1, "2": 2},
    }  # fmt: skip
    assert (found["tasks"]["Fin"]["dominant_chunk"], found["tasks"]["Fin"]["any_chunk"]) == (
        0.25,
        0.25,
    )
    assert (found["dominant_chunk"], found["any_chunk"], found["illegal"], found["n"]) == (
        0.375,
        0.5,
        2,
        8,
    )
    manifest["chunks"][0]["tasks"] = {"VQAv2": 9}
    (stream / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")
    unseen = count_choices(tmp_path, stream, 2)
    assert unseen is not None
    assert unseen["tasks"]["Fin"]["dominant_chunk"] is None, (
        "no chunk held it: there is no right adapter"
    )
    assert unseen["dominant_chunk"] == 0.5


def test_routers_are_judged_by_question_though_tasks_share_a_text(
    stream: Path, tmp_path: Path
) -> None:
    """BranchLoRA's predictions name a chunk, and the prediction file the task."""
    manifest = read_json(stream / "stream.json")
    manifest["chunks"][0]["tasks"], manifest["chunks"][1]["tasks"] = {"VQAv2": 9}, {"Fin": 9}
    (stream / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")

    def write(key: str) -> None:
        for chunk, task in ((1, "VQAv2"), (2, "Fin")):
            lines = [
                {"id": f"{task}-test-{i:06d}", "prompt": "Say it.", "score": 0.0, key: chunk}
                for i in range(4)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / f"{task}.jsonl").write_text(text, encoding="utf-8")

    write("expert")
    found = count_choices(tmp_path, stream, 2)
    assert found is not None
    assert (found["what"], found["dominant_chunk"], found["any_chunk"]) == ("router", 1.0, 1.0)
    write("nothing")
    assert count_choices(tmp_path, stream, 2) is None


def test_a_pool_runs_keeps_what_it_needs_and_finds_damage(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    """With the stand-in host, killed in the training of the router."""
    path = toy_yaml(method="mr_lora", pool={"samples": 4, "epochs": 1, "router_start": "merged"})
    recipe, layout = load_recipe(str(path)), RunLayout(tmp_path / "run")
    code, _, err = finish(path, FAKE_STEP_SECONDS="0", FAKE_KILL_ROUTER="1")
    assert code == 1
    assert "training the router of chunk 2" in err
    assert layout.adapter(2).is_dir()
    assert not load_state(layout.state).record(2).trained
    code, out, err = finish(path, FAKE_STEP_SECONDS="0", FAKE_REPORT="1")
    assert code == 0, err
    assert "resuming at step 1" in out
    state = load_state(layout.state)
    assert set(state.record(1).router_sha256) == {layout.router_samples(1).name}
    assert state.record(2).router_sha256 == router_hashes(layout, 2)
    assert read_json(layout.router_scores(2))["tasks"]["Fin"]["unrouted"] == 0
    report = layout.report.read_text(encoding="utf-8")
    assert "Which chunk's adapter each task took after chunk 2" in unescape(report)
    assert stored_millions(layout.root) == pytest.approx(3 * 32 / 1e6), "two adapters, one router"
    check_pool(layout, state, 2)
    assert list(verify(recipe)) == []
    spare = list(removable(layout, state, old_adapters=True))
    assert spare == [], "every adapter answers; chunk 1 has no router"
    weights = RouterLayout(layout.root).adapter(2) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="changed after"):
        check_router(layout, state.record(2))
    assert "router" in " ".join(verify(recipe))
    shutil.rmtree(layout.adapter(1))
    with pytest.raises(CheckpointError, match="is missing"):
        check_pool(layout, state, 2)
