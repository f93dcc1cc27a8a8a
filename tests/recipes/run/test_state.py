"""Files are old or new, never half; damaged ones are named; checkpoints are judged by content."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from data_prep.files import write_text
from recipes.processes.log_errors import last_error
from recipes.processes.process_tree import start_time
from recipes.processes.run_lock import RunLock, is_held, read_holder
from recipes.run_folder import checkpoints, state
from recipes.run_folder.checkpoints import CheckpointError
from strlora_tuner.saved import AdapterError
from tests.recipes.fake_host import write_checkpoint, write_weights


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_state_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    before = state.RunState(done=1)
    record = before.record(1)
    record.steps, record.trained, record.adapter_sha256 = 38, True, {"a": "b"}
    before.record(0).evaluated = True
    state.save_state(path, before)
    assert state.load_state(path) == before
    assert [chunk["index"] for chunk in json.loads(path.read_text(encoding="utf-8"))["chunks"]] == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": "x"}', '{"format": 1, "chunks": [{}], "done": 0}', '{"format": 1}'],
)
def test_damaged_state_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(state.StateError, match="is damaged"):
        state.load_state(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2, this one writes 1)"),
        ({"format": 2, "chunks": {"of": "another shape"}}, "format 2, this one writes 1)"),
        ({"later": 3}, "unknown keys later)"),
        ({"chunks": [{"index": 0}, {"index": 1, "tokens": 7}]}, "unknown keys chunks: tokens)"),
    ],
)
def test_the_state_of_a_newer_version_is_no_damage(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "state.json"
    state.save_state(path, state.RunState([state.ChunkRecord(0)]))
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(raw | change), encoding="utf-8")
    with pytest.raises(state.StateError, match="was written by a newer version") as caught:
        state.load_state(path)
    assert words in str(caught.value)
    assert "manifest.json names its git commit) or a later one" in str(caught.value)


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        write_checkpoint(tmp_path / f"checkpoint-{step}", step, 12, b"x" * 32)
    (tmp_path / "last-checkpoint").symlink_to(tmp_path / "checkpoint-11")
    newest = tmp_path / "checkpoint-11"
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth"):
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[:-7])
        found = checkpoints.newest_checkpoint(tmp_path)
        assert found is not None
        assert (found.step, found.finished) == (10, False), name
        (newest / name).write_bytes(content)
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 11
    (newest / "trainer_state.json").unlink()
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10


RESUMED_FROM = {
    "plain": ["optimizer.pt", "scheduler.pt", "rng_state.pth"],
    "fp16": ["scaler.pt"],
    "two processes": ["rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"],
    "zero2": ["latest", "scheduler.pt", "rng_state_1.pth", "global_step2/x_1_optim_states.pt",
              "global_step2/mp_rank_00_model_states.pt"],
    "zero3": ["global_step2/x_0_model_states.pt", "global_step2/x_1_optim_states.pt"],
    "own schedule": ["global_step2/x_0_optim_states.pt"],
}  # fmt: skip
FILES = {
    "plain": ["optimizer.pt", "scheduler.pt", "rng_state.pth"],
    "two processes": ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"],
    "zero2": ["scheduler.pt", "rng_state_0.pth", "rng_state_1.pth",
              "global_step2/mp_rank_00_model_states.pt", "global_step2/x_0_optim_states.pt",
              "global_step2/x_1_optim_states.pt"],
}  # fmt: skip
FILES["fp16"] = [*FILES["plain"], "scaler.pt"]
FILES["zero3"] = [f.replace("mp_rank_00", f"x_{i}") for i in range(2) for f in FILES["zero2"]]
FILES["own schedule"] = [f for f in FILES["zero2"] if f != "scheduler.pt"]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {"global_world_size": 1, "deepspeed": None},
    "fp16": {"global_world_size": 1, "fp16": True},
    "two processes": {"global_world_size": 2},
    "zero2": {"global_world_size": 2, "deepspeed": {"zero_optimization": {"stage": 2}}},
    "zero3": {"global_world_size": 2, "deepspeed": {"zero_optimization": {"stage": 3}}},
    "own schedule": {
        "global_world_size": 2,
        "deepspeed": {"scheduler": {"type": "WarmupLR"}, "zero_optimization": {"stage": 1}},
    },
}


@pytest.mark.parametrize("kind", RESUMED_FROM)
def test_a_checkpoint_without_what_resuming_needs_is_passed_over(tmp_path: Path, kind: str) -> None:
    """People delete optimizer.pt to save space, and tools that copy leave files out."""
    for step in (1, 2):
        path = tmp_path / f"checkpoint-{step}"
        write_checkpoint(path, step, 9, b"x" * 32)
        archive = (path / "optimizer.pt").read_bytes()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (path / name).unlink()
        for name in FILES[kind]:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(archive)
        if "zero" in str(ARGUMENTS[kind]):
            (path / "latest").write_text("global_step2", encoding="utf-8")
        (path / "args.json").write_text(json.dumps(ARGUMENTS[kind]), encoding="utf-8")
    newest = tmp_path / "checkpoint-2"
    for name in RESUMED_FROM[kind]:
        content = (newest / name).read_bytes()
        (newest / name).unlink()
        found = checkpoints.newest_checkpoint(tmp_path)
        assert found is not None
        assert found.step == 1, name
        (text,) = checkpoints.passed_over(tmp_path, found)
        assert text.startswith("checkpoint-2 is not complete ("), text
        assert text.endswith(" missing): going on from checkpoint-1")
        (newest / name).write_bytes(content)
        found = checkpoints.newest_checkpoint(tmp_path)
        assert found is not None
        assert found.step == 2
        assert checkpoints.passed_over(tmp_path, found) == []


@pytest.mark.parametrize("steps", [2, 3])
def test_slow_weights_cut_short_are_passed_over(tmp_path: Path, steps: int) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / f"checkpoint-{step}", step, steps, b"x" * 32)
        write_weights(tmp_path / f"checkpoint-{step}" / "slow_weights.safetensors", b"x" * 32)
    slow = tmp_path / "checkpoint-2" / "slow_weights.safetensors"
    slow.write_bytes(slow.read_bytes()[:-8])
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    (said,) = checkpoints.passed_over(tmp_path, found)
    assert "slow_weights.safetensors" in said


def test_the_last_checkpoint_of_a_chunk_needs_only_its_adapter(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-3", 3, 3, b"x" * 32)
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.finished


def test_a_checkpoint_without_steps_is_never_finished(tmp_path: Path) -> None:
    """Resuming only the model on new data ends at once (ms-swift issue 6084)."""
    write_checkpoint(tmp_path / "checkpoint-0", 0, 0, b"x" * 32)
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found is not None
    assert not found.finished


def test_cleaning_keeps_what_resuming_needs(tmp_path: Path) -> None:
    for step in (2, 4):
        write_checkpoint(tmp_path / f"checkpoint-{step}", step, 6, b"x" * 32)
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    rows = [
        json.dumps({"loss": 1.0, "global_step/max_steps": f"{n}/6"}) + "\n" for n in range(1, 5)
    ]
    (tmp_path / "logging.jsonl").write_text("".join(rows) + '{"loss": 0', encoding="utf-8")
    checkpoints.clean_host_folder(tmp_path, checkpoints.newest_checkpoint(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "logging.jsonl"]
    assert (tmp_path / "logging.jsonl").read_text(encoding="utf-8") == "".join(rows[:2])
    checkpoints.clean_host_folder(tmp_path, None)
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    ("dtype", "content"),
    [
        ("F32", b"\0\0\xc0\x7f"),  # NaN
        ("F32", b"\0\0\x80\xff"),  # -infinity
        ("BF16", b"\xc0\x7f"),
        ("F16", b"\0\x7c"),
    ],
)
def test_weights_that_diverged_are_not_installed(
    tmp_path: Path, dtype: str, content: bytes
) -> None:
    write_checkpoint(tmp_path / "checkpoint-3", 3, 3, b"x" * 32)
    checkpoint = checkpoints.newest_checkpoint(tmp_path)
    assert checkpoint is not None
    write_weights(checkpoint.path / "adapter_model.safetensors", b"\0" * 32 + content, dtype)
    with pytest.raises(AdapterError, match="holds NaN or infinity"):
        checkpoints.install_adapter(checkpoint, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    write_weights(checkpoint.path / "adapter_model.safetensors", b"\x01" * 32, dtype)
    checkpoints.install_adapter(checkpoint, tmp_path / "adapter")


def test_installing_leaves_out_what_only_resuming_needs(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "host" / "checkpoint-3", 3, 3, b"x" * 32)
    checkpoint = checkpoints.newest_checkpoint(tmp_path / "host")
    assert checkpoint is not None
    target = tmp_path / "adapter"
    checkpoints.install_adapter(checkpoint, target)
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "trainer_state.json",
    ]
    hashes = checkpoints.adapter_hashes(target)
    checkpoints.verify_adapter(target, hashes)
    write_weights(target / "adapter_model.safetensors", b"y" * 32)
    with pytest.raises(CheckpointError, match="was changed"):
        checkpoints.verify_adapter(target, hashes)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_the_set_that_the_next_chunk_trains_from_is_recorded_too(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, 3, 3, b"x" * 32)
    write_checkpoint(tmp_path / "fast", 3, 3, b"y" * 32)
    hashes = checkpoints.adapter_hashes(tmp_path)
    checkpoints.verify_adapter(tmp_path, hashes)
    with (tmp_path / "fast" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=f"fast/{name} was changed"):
        checkpoints.verify_adapter(tmp_path, hashes)


def test_the_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    assert not is_held(path)
    with RunLock(path) as lock:
        assert is_held(path)
        lock.note_child(os.getpid())
        holder = read_holder(path)
        assert holder["pid"] == os.getpid()
        assert holder["child_start"] == start_time(os.getpid())
    assert not is_held(path)


def test_a_look_at_the_lock_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with path.open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        Timer(0.03, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with RunLock(path):
            assert is_held(path)


def test_a_reused_process_number_is_not_killed(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with RunLock(path) as lock:
        lock.note_child(os.getpid())
        text = path.read_text(encoding="utf-8")
    stale = {**json.loads(text), "child_start": 1}
    path.write_text(json.dumps(stale), encoding="utf-8")
    with RunLock(path):  # would kill this very process if it went by the number alone
        assert read_holder(path)["pid"] == os.getpid()


CHAIN = """start
Traceback (most recent call last):
  File "json.py", line 1, in f
    parse()
pyarrow.lib.ArrowInvalid: JSON parse error: The surrogate pair in string is invalid. in row 3

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "json.py", line 2, in g
ValueError: Trailing data

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "builder.py", line 3, in h
datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("Traceback:\n  File x\nValueError: bad image\n[INFO] end\n", "ValueError: bad image"),
        (
            "a\ntorch.OutOfMemoryError: CUDA out of memory\nmore\n",
            "torch.OutOfMemoryError: CUDA out",
        ),
        ("[rank1]: RuntimeError: gloo\nx.ChildFailedError: \n", "[rank1]: RuntimeError: gloo"),
        ("one\ntwo\n", "one"),
        (CHAIN, "pyarrow.lib.ArrowInvalid: JSON parse error: The surrogate pair"),
        (
            f"Failed to load JSON from file '/s/001.jsonl' with error\n{CHAIN}",
            "Failed to load JSON",
        ),
        (CHAIN.replace("\n", "\n[rank0]: "), "[rank0]: pyarrow.lib.ArrowInvalid"),
        (CHAIN + "Traceback (most recent call last):\n  File x\nKeyError: 'y'\n", "KeyError: 'y'"),
    ],
)
def test_the_cause_is_found_in_the_log(tmp_path: Path, log: str, expected: str) -> None:
    path = tmp_path / "train.log"
    path.write_text(log, encoding="utf-8")
    assert last_error(path)[0].startswith(expected)
