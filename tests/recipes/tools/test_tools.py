"""plan, clean, status, report, help: what they say and what they leave alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from data_prep.files import read_jsonl, write_json
from recipes import REPO
from recipes.cli import main
from recipes.command_table import COMMANDS, EXIT_CODES
from recipes.config.loading import load_recipe
from recipes.config.method import method_names
from recipes.config.schema import Recipe
from recipes.processes.machine import hardware
from recipes.processes.process_tree import ask_to_save, start_time
from recipes.processes.run_lock import RunLock, RunLocked, boot_id
from recipes.run.commands import train_command
from recipes.run.session import RunError
from recipes.run.training_job import check_processes
from recipes.run_folder.checkpoints import Checkpoint, check_adapter, newest_checkpoint
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import resolved
from recipes.run_folder.state import RunState, save_state
from recipes.slurm.task import node_environment
from recipes.tools.clean import clean
from recipes.tools.method_sizes import sizes_of_methods
from recipes.tools.plan import Seconds, make_plan
from recipes.tools.plan_text import as_text
from recipes.tools.status import as_text as status_text
from recipes.tools.status import read_status, verify
from strlora_tuner.saved import AdapterError
from tests.recipes.fake_host import write_checkpoint
from tests.recipes.real_host import needs_host
from tests.recipes.run.test_runner import child_of, start, wait_for
from tests.recipes.test_cli import door

BASE = REPO / "assets" / "tiny_base"


def half_run(recipe: Recipe) -> RunLayout:
    """A run folder: chunk 1 done, chunk 2 in the middle of training, leftovers of kills."""
    layout = RunLayout(Path(recipe.folder))
    state = RunState(done=1)
    for index in (0, 1, 2):
        layout.chunk(index).mkdir(parents=True)
        state.record(index)
    state.record(0).evaluated = True
    state.record(1).trained = state.record(1).evaluated = True
    write_checkpoint(layout.host(1) / "checkpoint-3", 3, 3, b"x" * 32)
    shutil.copytree(layout.host(1) / "checkpoint-3", layout.adapter(1))
    for step in (1, 2):
        write_checkpoint(layout.host(2) / f"checkpoint-{step}", step, 3, b"y" * 32)
    row = {"loss": 0.5, "global_step/max_steps": "2/3"}
    (layout.host(2) / "logging.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (layout.chunk(2) / ".adapter.abc").mkdir()
    (layout.root / ".state.json.xyz").write_text("{", encoding="utf-8")
    layout.answers(1).write_text("{}\n", encoding="utf-8")
    save_state(layout.state, state)
    return layout


def test_clean_shows_first_and_keeps_what_going_on_needs(toy: Callable[..., Recipe]) -> None:
    recipe = toy()
    layout = half_run(recipe)
    everything = sorted(layout.root.rglob("*"))
    shown = list(clean(recipe, remove=False))
    assert shown[-1].endswith("nothing was removed, add --yes to do so")
    assert sorted(p for p in layout.root.rglob("*") if p != layout.lock) == everything
    list(clean(recipe, remove=True))
    assert not layout.host(1).exists()
    assert not layout.answers(1).exists()
    assert [p.name for p in layout.host(2).glob("checkpoint-*")] == ["checkpoint-2"]
    newest = newest_checkpoint(layout.host(2))
    assert newest is not None
    assert newest.step == 2
    assert not list(layout.root.rglob(".*"))
    assert layout.adapter(1).is_dir()
    assert list(clean(recipe, remove=True)) == [f"{layout.root}: nothing to remove"]


@pytest.mark.parametrize(
    "left",
    ["slurm/.watch.json.a", "chunks/001/replay/.pool.json.a", "chunks/001/slow/.scores.json.a"],
)
def test_what_a_killed_process_left_goes_wherever_it_is(
    toy: Callable[..., Recipe], left: str
) -> None:
    recipe = toy()
    path = half_run(recipe).root / left
    path.parent.mkdir(exist_ok=True)
    path.touch()
    list(clean(recipe, remove=True))
    assert not path.exists()


def test_old_adapters_go_only_when_asked_and_never_the_newest(toy: Callable[..., Recipe]) -> None:
    recipe = toy()
    layout = half_run(recipe)
    shutil.rmtree(layout.host(2))
    shutil.copytree(layout.adapter(1), layout.adapter(2))
    state = RunState(done=2)
    for index in (1, 2):
        state.record(index).trained = True
    save_state(layout.state, state)
    list(clean(recipe, remove=True))
    assert (layout.adapter(1) / "adapter_model.safetensors").is_file()
    list(clean(recipe, remove=True, old_adapters=True))
    assert not (layout.adapter(1) / "adapter_model.safetensors").exists()
    assert (layout.adapter(2) / "adapter_model.safetensors").is_file()


def test_nothing_is_cleaned_under_a_living_run(toy: Callable[..., Recipe]) -> None:
    recipe = toy()
    layout = half_run(recipe)
    with RunLock(layout.lock), pytest.raises(RunLocked):
        list(clean(recipe, remove=True))


def test_status_here_elsewhere_and_silent(toy: Callable[..., Recipe]) -> None:
    recipe = toy()
    layout = half_run(recipe)
    assert read_status(recipe).life == "stopped"
    with RunLock(layout.lock):
        assert read_status(recipe).life == "running"
        text = "\n".join(status_text(read_status(recipe)))
        assert "chunk   2: training, step 2/3, loss 0.5000" in text
    holder = {"pid": 7, "machine": "gpu07", "boot": boot_id()}
    layout.lock.write_text(json.dumps(holder), encoding="utf-8")
    assert read_status(recipe).life == "running"
    os.utime(layout.lock, (time.time() + 9e6, time.time() + 9e6))  # another machine's clock
    assert read_status(recipe).life == "running"
    os.utime(layout.lock, (time.time() - 300, time.time() - 300))
    status = read_status(recipe)
    assert status.life == "silent"
    assert "no sign of life for 5 min 00 s from process 7 on gpu07" in "\n".join(
        status_text(status)
    )
    layout.lock.write_text(json.dumps({**holder, "machine": socket.gethostname()}))
    assert read_status(recipe).life == "stopped"  # here the kernel knows better


def test_status_of_a_run_folder_and_of_damage(
    toy: Callable[..., Recipe], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = toy()
    layout = half_run(recipe)
    assert main([str(layout.root), "--status"]) == 2
    assert "holds no recipe.yaml" in capsys.readouterr().err
    shutil.copy(tmp_path / "toy.yaml", layout.recipe)
    assert main(["status", str(layout.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1
    assert list(verify(recipe)) == []
    (layout.adapter(1) / "trainer_state.json").unlink()
    assert main(["status", str(layout.root), "--verify"]) == 1
    assert "DAMAGED  chunk 1" in capsys.readouterr().out


def test_plan_counts_what_it_can_and_leaves_the_rest_open() -> None:
    plan = make_plan(load_recipe("tiny", ["schedule.global_batch=4", "data.stream=data/none"]))
    assert {chunk.steps for chunk in plan.chunks} == {75}
    assert {chunk.tokens for chunk in plan.chunks} == {None}
    assert plan.model is not None
    # As a trained adapter of this recipe holds them (counted in its safetensors header).
    # 28 layers keep an average of R, too: 4 experts x 256.
    assert plan.model.stored_parameters == 827_139 + 28 * 4 * 256
    weights = load_file(BASE / "model.safetensors")
    assert plan.model.parameters == sum(tensor.size for tensor in weights.values())
    assert (plan.memory, plan.sources["memory"]) == (None, "not counted (--quick)")
    plan = make_plan(load_recipe("internvl3.5-8b", ["data.stream=data/none", "data.chunks=25"]))
    assert {chunk.samples for chunk in plan.chunks} == {None}
    assert (plan.questions, plan.seconds, plan.gpu_hours) == (None, None, None)
    text = "\n".join(as_text(plan))
    for words in (
        "not known: the stream data/none",
        "time       not known",
        "not known: this mach",
    ):
        assert words in text
    assert "estimated" not in text
    assert "assumed" not in text


@pytest.mark.parametrize(("both", "evaluations"), [("false", 9), ("true", 17)])
def test_plan_counts_the_evaluations_of_both_sets(both: str, evaluations: int) -> None:
    words = ["method=strlora_signed", f"eval.both_weights={both}"]
    assert make_plan(load_recipe("tiny", words)).evaluations == evaluations
    sizes = sizes_of_methods("tiny", words)
    assert [row.why for row in sizes] == [None] * len(method_names())


def test_plan_reads_the_stream(toy: Callable[..., Recipe]) -> None:
    plan = make_plan(toy())
    samples = [chunk.samples or 0 for chunk in plan.chunks]
    assert [chunk.images for chunk in plan.chunks] == samples, "one image each"
    assert (plan.tokens, plan.sources["tokens"]) == (None, "not counted (--quick)")


@pytest.mark.slow
@needs_host
def test_plan_takes_the_hosts_tokens(toy: Callable[..., Recipe], stream: Path) -> None:
    """A picture is 16 tokens, a mark before and one behind it, and the template's line end."""
    from transformers import AutoTokenizer

    recipe = toy().model_copy(update={"model": load_recipe("tiny").model})
    texts = [row["messages"] for n in (1, 2) for row in read_jsonl(stream / f"chunks/00{n}.jsonl")]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    words = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in texts]
    exact = [len(tokenizer(text.replace("<image>", ""))["input_ids"]) for text in words]
    plan = make_plan(recipe, count=True)
    assert plan.tokens is not None, plan.sources["tokens"]
    pictures = plan.tokens.mean - sum(exact) / len(exact)
    assert round(pictures, 6) == 16 + 2 + 1
    assert plan.tokens.longest == max(exact) + 19
    assert [chunk.tokens for chunk in plan.chunks] == [round(12 * plan.tokens.mean)] * 2
    over = f"{plan.tokens.counted} counted; 0 over model.max_length (512)"
    assert over in "\n".join(as_text(plan))


def test_plan_says_why_tokens_are_not_known(toy: Callable[..., Recipe]) -> None:
    away = toy("model.path=models/none", "model.download=hf download x")
    assert (
        "models/none is not there. Get it: hf download x"
        in (make_plan(away, count=True).sources["tokens"])
    )


def measured_run(recipe: Recipe) -> RunLayout:
    """A run folder whose first chunk took 100 seconds and whose evaluation took 10."""
    layout = half_run(recipe)
    state = RunState(done=1)
    state.record(0).evaluated, state.record(0).eval_seconds = True, 10.0
    state.record(1).trained, state.record(1).train_seconds = True, 100.0
    state.record(1).train_memory_gib = 1.5
    save_state(layout.state, state)
    write_json(layout.manifest, {"recipe": resolved(recipe), "hardware": hardware()})
    return layout


def test_plan_takes_measured_times_once_there_are(toy: Callable[..., Recipe]) -> None:
    recipe = toy()
    assert make_plan(recipe).seconds is None
    layout = measured_run(recipe)
    rows = [{"loss": 1.0}, {"memory(GiB)": 3.5}, {"memory(GiB)": 3.25}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    layout.train_metrics(1).write_text(text, encoding="utf-8")
    plan = make_plan(recipe)
    assert plan.seconds == Seconds(train=100.0, evaluate=10.0, run=230.0)
    assert plan.measured is not None
    assert (plan.measured.main_memory_gib, plan.measured.gpu_memory_gib) == (1.5, 3.5)
    assert plan.sources["time"].startswith("measured: mean of 1 trained chunks")
    write_json(layout.manifest, {"recipe": resolved(recipe) | {"seed": 5}})
    assert make_plan(recipe).seconds is None, "times of another recipe say nothing of this one"


def test_plan_takes_the_times_of_a_comparable_run_on_this_machine(
    toy: Callable[..., Recipe],
) -> None:
    recipe = toy()
    layout = measured_run(recipe)
    other = recipe.model_copy(update={"run_dir": f"{layout.root}-seed1", "seed": 1})
    seconds = make_plan(other).seconds
    assert seconds is not None
    assert seconds.run == 230.0
    assert make_plan(other).sources["time"].endswith(str(layout.root))
    slow = other.model.model_copy(update={"dtype": "bfloat16"})
    assert make_plan(other.model_copy(update={"model": slow})).seconds is None
    elsewhere = {"recipe": resolved(recipe), "hardware": hardware() | {"cores": 999}}
    write_json(layout.manifest, elsewhere)
    assert make_plan(other).seconds is None


@pytest.mark.parametrize(
    "more",
    [
        ("replay={memory: 8, share: 0.5}",),  # twice the steps
        ("lwf={weight: 1}",),  # a teacher's pass in each
        ("slow_weights={}",),
        ("tuner.targets=attention",),
        ("swift={gradient_checkpointing: true}",),
        ("tuner.rank=4", "budget=match(moelora)"),
    ],
)
def test_plan_takes_no_times_of_a_run_with_more_than_it_has(
    toy: Callable[..., Recipe], more: tuple[str, ...]
) -> None:
    plain = toy(swift={}, tuner={"rank": 4, "alpha": 8})
    measured_run(toy(*more, swift={}, tuner={"rank": 4, "alpha": 8}))
    there = plain.model_copy(update={"run_dir": f"{plain.folder}-plain"})
    assert make_plan(there).seconds is None


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_every_command(command: str) -> None:
    done = door(command, "--help")
    assert done.returncode == 0
    assert f"run_stream.sh {command}" in done.stdout
    codes = done.stdout.partition("Exit codes:")[2]
    own = [f"{code:<5}  {meaning}" for code, meaning in EXIT_CODES[command].items()]
    assert all(line in codes for line in own)
    assert len(codes.split("\n")) == len(own) + 3, "and 2, which all commands share"


@pytest.mark.parametrize(
    ("gone", "words"),
    [("trainer_state.json", "is missing"), ("", "no layer with experts")],
)
def test_an_adapter_must_be_whole(tmp_path: Path, gone: str, words: str) -> None:
    write_checkpoint(tmp_path, 3, 3, b"x")
    check_adapter(tmp_path, "lora")
    if gone:
        (tmp_path / gone).unlink()
    with pytest.raises(AdapterError, match=words):
        check_adapter(tmp_path, "strlora")


def test_the_next_adapter_holds_the_same_tensors(tmp_path: Path) -> None:
    for name, key in (("a", b"weight"), ("b", b"weighT")):
        write_checkpoint(tmp_path / name, 3, 3, b"x" * 8)
        weights = tmp_path / name / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b"weight", key, 1))
    with pytest.raises(AdapterError, match="does not hold the tensors of the chunk before"):
        check_adapter(tmp_path / "b", "lora", tmp_path / "a")


def test_inside_a_chunk_the_number_of_processes_stays(tmp_path: Path) -> None:
    (tmp_path / "rng_state_0.pth").touch()
    (tmp_path / "rng_state_1.pth").touch()
    checkpoint = Checkpoint(tmp_path, 5, 9)
    check_processes(checkpoint, 2, 3)
    with pytest.raises(RunError, match=r"by 2 process\(es\), now it would be 1"):
        check_processes(checkpoint, 1, 3)


def test_a_signal_saves_inside_a_chunk(toy_yaml: Callable[..., Path], tmp_path: Path) -> None:
    path = toy_yaml()
    layout = RunLayout(tmp_path / "run")
    process = start(path, "schedule.save_steps=1000", FAKE_STEP_SECONDS="1")
    wait_for(layout.host(1) / "logging.jsonl")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1
    saved = newest_checkpoint(layout.host(1))
    assert saved is not None
    assert saved.step in (1, 2, 3)


def test_a_second_signal_stops_at_once(toy_yaml: Callable[..., Path], tmp_path: Path) -> None:
    process = start(toy_yaml(), "eval.limit=1", "run_dir=" + str(tmp_path / "other"),
                    FAKE_STEP_SECONDS="8")  # fmt: skip
    wait_for(tmp_path / "other/chunks/001/host")
    child = child_of(tmp_path / "other/run.lock")
    deadline = time.monotonic() + 60
    while not ask_to_save(child) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the trainer has its handler
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped at once by a second signal" in err
    while start_time(child) is not None:
        assert time.monotonic() < deadline + 600, f"process {child} lives on"
        time.sleep(0.05)


def test_several_machines_get_srun_and_their_ranks() -> None:
    options = ["launcher.kind=slurm", "launcher.nodes=2", "launcher.nproc=4"]
    recipe = load_recipe("internvl3.5-8b", [*options, "launcher.slurm.srun_options=[mpi=none]"])
    layout = RunLayout(Path("runs/x"))
    command = train_command(recipe, layout, Path("c.jsonl"), 1)
    words = command.argv()
    assert words[:4] == ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    assert "--mpi=none" in words
    assert words[words.index("recipes.slurm.task") + 2 :][:4] == [
        "-m",
        "swift.cli.main",
        "sft",
        "--model",
    ]
    assert (command.environment["NNODES"], command.environment["NPROC_PER_NODE"]) == ("2", "4")
    assert words[words.index("--gradient_accumulation_steps") + 1] == "2"
    slurm = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_NODEID": "1", "MASTER_ADDR": "n1"}
    assert node_environment(slurm) == {"NODE_RANK": "1", "MASTER_PORT": "21203"}
