"""Trackers: each chunk's run has a telling name and lies with the chunk; a missing one is told."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from recipes.config.loading import load_recipe
from recipes.run import trackers
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import train_command
from recipes.run.preflight.all_checks import look
from recipes.run_folder.layout import RunLayout
from tests.recipes.real_host import BASE, host_worker, needs_host, undisturbed
from tests.recipes.toy import recipe_values, write_recipe, write_stream

CHUNK = Path("chunk.jsonl")


def test_a_chunk_tells_trackers_its_name_and_where_it_lies(
    toy_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    words = ["run_dir=runs/mine", "swift.report_to=[wandb,swanlab]"]
    recipe = load_recipe(str(toy_yaml()), words)
    command = train_command(recipe, RunLayout(Path("runs/mine")), CHUNK, 2)
    told = dict(zip(command.arguments, command.arguments[1:], strict=False))
    assert told["--run_name"] == told["--swanlab_exp_name"] == "mine-chunk-002"
    assert told["--swanlab_project"] == command.environment["WANDB_PROJECT"] == "toy"
    for name in ("WANDB_DIR", "SWANLAB_LOG_DIR"):
        assert command.environment[name] == "runs/mine/chunks/002/trackers"
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    command = train_command(recipe, RunLayout(Path("runs/mine")), CHUNK, 2)
    assert command.environment["WANDB_PROJECT"] == "ours"
    plain = train_command(load_recipe(str(toy_yaml())), RunLayout(Path("runs/mine")), CHUNK, 2)
    assert not [name for name in plain.environment if name.startswith(("WANDB", "SWANLAB"))]
    assert "--run_name" not in plain.arguments


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(
    toy_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(toy_yaml()), ["swift.report_to=[tensorboard,swanlab]"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == "tensorboard" or None)
    assert [str(each) for each in look(recipe)] == [
        "tracker: swift.report_to asks for swanlab and it is not installed. Get it: pip install "
        "swanlab, or set swift.report_to: none"
    ]


def loss_in_tensorboard(folder: Path) -> bool:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return len(events.Scalars("train/loss")) == 2


def loss_in_wandb(folder: Path) -> bool:
    content = next(folder.glob("wandb/offline-run-*/run-*.wandb")).read_bytes()
    return b"train/loss" in content and b"run-chunk-001" in content


def loss_in_swanlab(folder: Path) -> bool:
    content = next(folder.glob("run-*/run-*.swanlab")).read_bytes()
    return b"train/loss" in content and b"run-chunk-001" in content


LOSS = {"tensorboard": loss_in_tensorboard, "wandb": loss_in_wandb, "swanlab": loss_in_swanlab}


@pytest.mark.slow
@needs_host
@pytest.mark.parametrize("name", list(LOSS))
def test_the_real_host_tells_the_tracker_the_loss(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(trackers.PACKAGES[name]) is None:
        pytest.skip(f"needs the package {trackers.PACKAGES[name]}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    stream = write_stream(tmp_path / "stream", chunks=2, samples=8)
    values = recipe_values(stream, tmp_path / "run", BASE)
    values["swift"] |= {"report_to": name, "swanlab_mode": "local"}
    recipe = load_recipe(str(write_recipe(tmp_path / "toy.yaml", values)))
    layout = RunLayout(tmp_path / "run")
    command = train_command(recipe, layout, open_recipe_stream(recipe).chunk_file(1), 1)
    undisturbed(command, layout.host(1), tmp_path / "log", host_worker())
    assert LOSS[name](layout.trackers(1))
