"""Adam's moments from chunk to chunk: two chunks are, bit for bit, one training over both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.run.commands import HOST_PLUGIN, OPTIMIZER_STATE
from strlora_tuner.saved import WEIGHTS
from tests.host.swift import attempt, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow
full = pytest.mark.skipif(
    os.environ.get("FULL_METHODS") != "1", reason="minutes more; FULL_METHODS=1 runs it"
)
STEPS, BATCH = 3, 8


def arguments(folder: Path, name: str, data: str, **changes: object) -> dict[str, object]:
    values = train_arguments(
        folder / f"{data}.jsonl",
        folder / name,
        tuner_type="lora",
        per_device_train_batch_size=BATCH,
        save_steps=1,
        save_only_model="false",
        **changes,
    )
    values["external_plugins"] = [HOST_PLUGIN]
    values["callbacks"] = ["save_and_stop", "keep_optimizer_state"]
    del values["model_kwargs"]
    return values


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=full)])
def test_two_chunks_are_one_training(tmp_path: Path, processes: int) -> None:
    size = {"per_device_train_batch_size": BATCH // processes}
    for chunk in (1, 2):
        make_chunk(tmp_path / f"{chunk}.jsonl", BATCH * STEPS, seed=chunk)
    both = "".join((tmp_path / f"{chunk}.jsonl").read_text() for chunk in (1, 2))
    (tmp_path / "both.jsonl").write_text(both)
    run("sft", arguments(tmp_path, "whole", "both") | size, processes)
    run("sft", arguments(tmp_path, "first", "1") | size, processes)
    last = tmp_path / "first" / f"checkpoint-{STEPS}"
    more = {OPTIMIZER_STATE: str(last / "optimizer.pt")}
    second = arguments(tmp_path, "kept", "2", adapters=last) | size
    told = run("sft", second, processes, **more)
    assert f"goes on, {last / 'optimizer.pt'}" in told
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    assert same(weights(whole, STEPS), weights(tmp_path / "first", STEPS))
    for step in range(1, STEPS + 1):
        assert same(weights(whole, STEPS + step), weights(kept, step)), step
    ends = (whole / f"checkpoint-{2 * STEPS}", kept / f"checkpoint-{STEPS}")
    moments = [torch.load(end / "optimizer.pt", weights_only=True)["state"] for end in ends]
    assert moments[0].keys() == moments[1].keys()
    assert all(int(each["step"]) == 2 * STEPS for each in moments[1].values())

    # Killed after its first step, resumed from the checkpoint, which has a state of its own.
    again = tmp_path / "again"
    shutil.copytree(kept / "checkpoint-1", again / "checkpoint-1")
    resumed = second | {"output_dir": again, "resume_from_checkpoint": again / "checkpoint-1"}
    run("sft", resumed, processes)
    assert same(weights(kept, STEPS), weights(again, STEPS))
    if processes > 1:
        return
    # Without it the second chunk is another training; another adapter's state is refused.
    run("sft", second | {"output_dir": tmp_path / "fresh"})
    assert not same(weights(kept, STEPS), weights(tmp_path / "fresh", STEPS))
    other = arguments(tmp_path, "other", "2") | {"lora_rank": 4}
    code, output = attempt("sft", other, **more)
    assert code != 0
    assert "is the state of other parameters than those that train now" in output
