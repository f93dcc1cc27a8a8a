"""er, ewc, joint and zero_shot through the orchestrator, with a stand-in host, killed and not."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.compare.comparison import compare
from recipes.baselines.replay import read_lines, write_replay_file
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.run.chunk_data import chunk_only_file, open_recipe_stream
from recipes.run.commands import infer_command, train_command
from recipes.run_folder.checkpoints import incomplete
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from recipes.tools.plan import make_plan
from recipes.tools.preview import preview
from recipes.tools.status import verify
from strlora_tuner.methods.slow_weights.both_sets import FILE as SLOW_FILE
from strlora_tuner.methods.slow_weights.both_sets import read_steps
from strlora_tuner.saved import WEIGHTS
from tests.recipes.fake_host import arguments_of, move_slow, read_weights, write_checkpoint
from tests.recipes.fake_run import finish
from tests.recipes.run.test_runner import kill_at_random_moments
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream

METHODS = ("er", "ewc", "joint", "zero_shot")
SLOW = "lora"  # with slow weights here
REPLAY = {"memory": 6, "share": 0.25}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a recipe on a stream of three chunks of 10; keyword arguments replace blocks."""
    folder = tmp_path_factory.mktemp("baselines")
    stream = write_stream(folder / "three", chunks=3, samples=10)
    write_model(folder / "model")

    def write(method: str, **changes: Any) -> Path:
        run = changes.pop("run_dir", folder / f"run-{method}")
        values = recipe_values(stream, run, folder / "model", method=method)
        values["data"]["chunks"] = 3
        if method == "er":
            values["replay"] = REPLAY
        if method == SLOW:
            values["slow_weights"] = {}
        return write_recipe(folder / f"{run.name}.yaml", {**values, **changes})

    return write


@pytest.fixture(scope="module")
def finished(three: Callable[..., Path]) -> Callable[[str], tuple[Path, Path, str]]:
    """Runs a method to its end at the first call; returns recipe, run folder and output."""
    done: dict[str, tuple[Path, Path, str]] = {}

    def run(method: str) -> tuple[Path, Path, str]:
        if method not in done:
            path = three(method)
            code, out, err = finish(path, FAKE_REPORT="1")
            assert code == 0, err
            done[method] = path, path.parent / f"run-{method}", out
        return done[method]

    return run


Finished = Callable[[str], tuple[Path, Path, str]]


def rows(run: Path) -> list[tuple[str, str, str]]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return [(row["chunk"], row["task"], row["score"]) for row in csv.DictReader(file)]


def option(recipe: Recipe, chunk: int, name: str) -> str | None:
    layout = RunLayout(Path(recipe.folder))
    own = chunk_only_file(recipe, layout, chunk)
    arguments = train_command(recipe, layout, Path("c.jsonl"), chunk, own=own).arguments
    return arguments[arguments.index(name) + 1] if name in arguments else None


@pytest.mark.parametrize("method", [*METHODS, SLOW])
def test_every_baseline_runs_to_its_end(finished: Finished, method: str) -> None:
    path, run, out = finished(method)
    recipe = load_recipe(str(path))
    state = load_state(run / "state.json")
    assert (state.done, state.finished) == (3, True)
    assert [record.index for record in state.chunks if record.trained] == recipe.trained_chunks
    expected = ["0", "3"] if method in ("joint", "zero_shot") else ["0", "1", "2", "3"]
    assert sorted({chunk for chunk, *_ in rows(run)}) == expected
    assert (run / "report.html").is_file()
    assert "could not be written" not in out
    assert list(verify(recipe)) == []
    assert not list(run.glob("chunks/*/mixed.jsonl"))


def test_what_has_no_stream_is_compared_by_its_last_scores(finished: Finished) -> None:
    names = ("er", "joint", "zero_shot")
    runs = [finished(name)[1] for name in names]
    found, alone = compare(runs), compare(runs[:1])
    assert found.names[1:] == list(names)
    for column in ("last", "average", "forgetting", "backward", "forward", "plasticity"):
        cells = [found.cell(name, column).value for name in names]
        same = alone.cell("er", column).value
        assert cells[0] == pytest.approx(same, nan_ok=True), "joint must not cut the others' chunks"
        assert [math.isfinite(cell) for cell in cells[1:]] == [column == "last"] * 2
    assert found.cell("zero_shot", "last").value == found.cell(found.names[0], "last").value
    assert {test.other for test in found.tests if test.column == "forgetting"} == set()


def test_joint_trains_once_on_all_chunks_as_a_first_chunk(finished: Finished) -> None:
    path, run, _ = finished("joint")
    recipe = load_recipe(str(path))
    text = "\n".join(preview(recipe))
    assert text.count("swift sft") == 1
    assert "chunk 3 of 3: train on all chunks shuffled together" in text
    assert all(f"chunks/00{n}.jsonl" in text for n in (1, 2, 3))
    assert "--train_dataloader_shuffle" not in text
    assert option(recipe, 3, "--adapters") is None
    assert load_state(run / "state.json").record(3).steps == 8  # 30 samples in batches of 4
    assert [chunk.samples for chunk in make_plan(recipe).chunks] == [30]


def test_zero_shot_repeats_the_base_model(finished: Finished) -> None:
    path, run, _ = finished("zero_shot")
    before = [(task, score) for chunk, task, score in rows(run) if chunk == "0"]
    assert before == [(task, score) for chunk, task, score in rows(run) if chunk == "3"]
    for task in ("Fin", "VQAv2"):
        first, last = (run / "chunks" / n / "predictions" / f"{task}.jsonl" for n in ("000", "003"))
        assert first.read_bytes() == last.read_bytes()
    assert not list(run.glob("chunks/*/adapter"))
    assert make_plan(load_recipe(str(path))).chunks == []


def test_replayed_files_hold_the_share_and_only_past_samples(finished: Finished) -> None:
    path, run, out = finished("er")
    assert "training on 10 samples, 1 of 4 in a batch replayed from 6 kept" in out
    recipe = load_recipe(str(path))
    layout, stream = RunLayout(run), open_recipe_stream(recipe)
    state = load_state(layout.state)
    assert [record.steps for record in state.chunks] == [0, 3, 4, 4]
    planned = make_plan(recipe).chunks
    assert [(c.steps, c.replayed) for c in planned] == [(3, 0), (4, 4), (4, 4)]
    for chunk in (2, 3):
        past = {line for n in range(1, chunk) for line in read_lines(stream.chunk_file(n))}
        memory = read_lines(layout.replay(chunk - 1) / "memory.jsonl")
        assert len(set(memory)) == 6
        assert set(memory) <= past
        write_replay_file(recipe, layout, stream, state, chunk, recipe.chunk_seed(chunk))
        lines = read_lines(layout.replay_file(chunk))
        layout.replay_file(chunk).unlink()
        for first in range(0, len(lines), 4):
            assert sum(line in past for line in lines[first : first + 4]) == 1
        current = [line for line in lines if line not in past]
        assert Counter(current) == Counter(read_lines(stream.chunk_file(chunk)))
    assert option(recipe, 1, "--train_dataloader_shuffle") is None
    assert option(recipe, 2, "--train_dataloader_shuffle") == "false"


def test_replay_at_equal_samples_takes_the_steps_of_plain_lora(
    three: Callable[..., Path], finished: Finished
) -> None:
    path = three("er_equal", replay={"memory": 6, "share": 0.5})
    code, out, err = finish(path)
    assert code == 0, err
    assert "2 of 4 in a batch replayed from 6 kept, in the place of new ones" in out
    run, recipe = path.parent / "run-er_equal", load_recipe(str(path))
    plain = load_state(finished(SLOW)[1] / "state.json")
    state = load_state(run / "state.json")
    assert [record.steps for record in state.chunks] == [0, 3, 3, 3]
    assert [record.steps for record in plain.chunks] == [0, 3, 3, 3]
    # 10 samples in batches of 4, 4 and 2: 2 + 2 + 1 of the chunk, as many replayed.
    planned = make_plan(recipe).chunks
    assert [(c.samples, c.steps, c.replayed) for c in planned] == [
        (10, 3, 0),
        (10, 3, 5),
        (10, 3, 5),
    ]
    layout, stream = RunLayout(run), open_recipe_stream(recipe)
    write_replay_file(recipe, layout, stream, state, 3, recipe.chunk_seed(3))
    lines = read_lines(layout.replay_file(3))
    own = read_lines(stream.chunk_file(3))
    assert (len(lines), sum(text in own for text in lines)) == (10, 5)
    # What was left out is offered to the memory like the rest.
    assert json.loads((layout.replay(3) / "state.json").read_text("utf-8"))["seen"] == 30


def files_of(run: Path) -> dict[str, bytes]:
    kept = [*run.glob("chunks/*/adapter/**/*.safetensors"), *run.glob("chunks/*/replay/*")]
    return {str(p.relative_to(run)): p.read_bytes() for p in [*kept, run / "matrix.csv"]}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["er", "ewc", SLOW])
def test_killed_at_random_moments_it_carries_the_same(
    three: Callable[..., Path], finished: Finished, tmp_path: Path, method: str
) -> None:
    expected = files_of(finished(method)[1])
    assert len(expected) == 3 + 1 + (6 if method == "er" else 3)
    path = three(method, run_dir=tmp_path / f"killed-{method}")
    kill_at_random_moments(path, 4, random.Random(method))
    code, _, err = finish(path)
    assert code == 0, err
    assert files_of(tmp_path / f"killed-{method}") == expected


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("er", "replay/memory.jsonl"),
        ("er", "replay/state.json"),
        ("ewc", "adapter/ewc.safetensors"),
        (SLOW, "adapter/fast/adapter_model.safetensors"),
    ],
)
def test_what_is_carried_is_checked_before_the_next_chunk(
    finished: Finished, method: str, name: str
) -> None:
    path, run, _ = finished(method)
    recipe, file = load_recipe(str(path)), run / "chunks" / "001" / name
    content, state = file.read_bytes(), (run / "state.json").read_text(encoding="utf-8")
    first = json.loads(state)
    first = {**first, "chunks": first["chunks"][:2], "done": 1, "finished": False}
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert [text for text in verify(recipe) if f"{file} was changed after" in text]
        file.unlink()
        assert [text for text in verify(recipe) if f"{file} is missing" in text]
        (run / "state.json").write_text(json.dumps(first), encoding="utf-8")
        code, _, err = finish(path)
        assert code == 1
        assert f"{file} is missing" in err
    finally:
        file.write_bytes(content)
        (run / "state.json").write_text(state, encoding="utf-8")


def test_ewc_beside_replay_is_told_the_chunk_s_own_samples(three: Callable[..., Path]) -> None:
    recipe = load_recipe(str(three("er", ewc={"weight": 5}, run_dir=Path("both"))))
    commands = "\n".join(preview(recipe, every=True)).split("swift sft")[1:]
    files = [re.findall(r'"ewc_data": "([^"]*)"', text) for text in commands]
    stream = open_recipe_stream(recipe)
    assert files == [[], [str(stream.chunk_file(2))], [str(stream.chunk_file(3))]]
    assert [chunk.fisher for chunk in make_plan(recipe).chunks] == [10, 10, 10]


def test_ewc_tells_every_chunk_where_its_state_is(three: Callable[..., Path]) -> None:
    path = three("strlora", ewc={"weight": 5, "samples": 7}, seed=2)
    recipe = load_recipe(str(path))
    first, second = (json.loads(option(recipe, n, "--model_kwargs") or "") for n in (1, 2))
    assert "ewc_state" not in first
    assert second["ewc_state"] == str(RunLayout(Path(recipe.folder)).adapter(1))
    assert (second["ewc_weight"], second["ewc_samples"], second["ewc_seed"]) == (5, 7, 2002)
    assert second["strlora_num_experts"] == 4
    words = " ".join(train_command(recipe, RunLayout(Path("x")), Path("c"), 2).arguments)
    assert "--callbacks save_and_stop strlora ewc" in words
    plan = make_plan(recipe)
    assert [chunk.fisher for chunk in plan.chunks] == [7, 7, 7]


def test_slow_weights_answer_and_the_fast_ones_go_on(
    three: Callable[..., Path], finished: Finished, tmp_path: Path
) -> None:
    path, run, _ = finished(SLOW)
    recipe, layout = load_recipe(str(path)), RunLayout(run)
    fast, slow = b"\0" * 32, b"\0" * 32
    for chunk in (1, 2, 3):
        assert option(recipe, chunk + 1, "--adapters") == str(layout.adapter(chunk) / "fast")
        data = open_recipe_stream(recipe).chunk_file(chunk).read_bytes()
        for step in (1, 2, 3):
            fast = hashlib.sha256(fast + data + bytes([step])).digest()
            slow = move_slow(slow, fast)
        assert read_weights(layout.adapter(chunk) / WEIGHTS) == slow
        assert read_weights(layout.adapter(chunk) / "fast" / WEIGHTS) == fast
        assert read_steps(layout.adapter(chunk) / WEIGHTS) == 3 * chunk
    answers = infer_command(recipe, layout, layout.prompts, 3).arguments
    assert answers[answers.index("--adapters") + 1] == str(layout.adapter(3))

    # The state is where the slow set lies; resumed, in the checkpoint; a fresh adapter has none.
    def told(recipe: Recipe, chunk: int, resume: Path | None = None) -> dict[str, Any]:
        command = train_command(recipe, layout, Path("c.jsonl"), chunk, resume).arguments
        return json.loads(command[command.index("--model_kwargs") + 1])

    assert told(recipe, 1) == {"slow_weights_window": 0.1, "slow_weights_max_decay": 0.995}
    assert told(recipe, 2)["slow_weights_state"] == str(layout.adapter(1) / WEIGHTS)
    resumed = told(recipe, 1, Path("host/checkpoint-2"))
    assert resumed["slow_weights_state"] == f"host/checkpoint-2/{SLOW_FILE}"
    other = {"answer": "fast", "start_next_from": "slow", "window": 0.2}
    other_way = load_recipe(str(three("lora", run_dir=tmp_path / "other", slow_weights=other)))
    slow_one = RunLayout(tmp_path / "other").adapter(1) / "slow"
    assert option(other_way, 2, "--adapters") == str(slow_one)
    assert told(other_way, 2)["slow_weights_state"] == str(layout.adapter(1) / "slow" / WEIGHTS)
    assert told(other_way, 2)["slow_weights_window"] == 0.2
    # A tuner that opens parameters of its own with every chunk averages those from their start.
    grown = load_recipe(str(three("olora", run_dir=tmp_path / "olora", slow_weights={})))
    assert "slow_weights_state" not in told(grown, 2)


def test_a_checkpoint_without_its_average_is_passed_over(finished: Finished) -> None:
    path, run, _ = finished(SLOW)
    command = train_command(load_recipe(str(path)), RunLayout(run), Path("c.jsonl"), 1)
    checkpoint = path.parent / "checkpoint-1"
    write_checkpoint(checkpoint, 1, 3, b"\0" * 32)
    assert incomplete(checkpoint, 1) is None
    callbacks = arguments_of(command.arguments)["callbacks"].split(" ")
    (checkpoint / "args.json").write_text(json.dumps({"callbacks": callbacks}), encoding="utf-8")
    assert incomplete(checkpoint, 1) == f"{SLOW_FILE} missing"


def test_plan_counts_both_sets() -> None:
    plain, slow = (
        make_plan(load_recipe("tiny", ["method=lora", f"slow_weights={value}"]))
        for value in ("null", "{}")
    )
    assert slow.model.stored_parameters == 2 * plain.model.stored_parameters


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("zero_shot", {"slow_weights": {}}, "nothing for slow_weights to average"),
        ("joint", {"replay": {}}, "method = joint has nothing for replay to act on"),
        ("zero_shot", {"ewc": {"weight": 1}}, "method = zero_shot has nothing for ewc to act on"),
        ("olora", {"ewc": {"weight": 1}}, "every chunk starts parameters of its own"),
        ("er", {"replay": {"share": 0.3}}, "is no whole number of samples between 1 and 3"),
        ("er", {"swift": {"group_by_length": True}}, "would break the share of replayed samples"),
    ],
)
def test_what_cannot_go_together_is_refused(
    three: Callable[..., Path], method: str, changes: dict[str, Any], message: str
) -> None:
    path = three(method, run_dir=Path("refused"), **changes)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))
