"""Float32 for everything that trains, in the real host: at the published rates, in every mode.

The base model is bfloat16 and so are the products. A float32 run of the same data is the reference.
Tolerances: bfloat16 keeps 8 bits, so that a product is off by up to 2^-9 = 0.2 %; a loss, a mean
over many, must be within 0.3 %. Adam divides the gradient by its own size, so that every weight
moves by about the rate, whatever the gradient; where the gradient is smaller than its rounding the
step may go the other way. So updates are compared by their angle. DDP and ZeRO sum the gradients of
the same two processes in float32: they must agree to float32's rounding.

FULL_METHODS=1 runs ZeRO-3 and offloading, too.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.host.swift import HERE, PLUGIN, logged, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow
STEPS = 3
RATE, ALIGNER_RATE = 2e-5, 1e-5  # of the later chunks, as published
HALF = {"torch_dtype": "bfloat16", "bf16": "true"}
TWO = {**HALF, "per_device_train_batch_size": 2}
FULL = pytest.mark.skipif(os.environ.get("FULL_METHODS") != "1", reason="FULL_METHODS=1 runs it")
MODES: dict[str, tuple[int, dict[str, object]]] = {
    "float32": (1, {}),
    "one process": (1, HALF),
    "ddp": (2, TWO),
    "zero2": (2, {**TWO, "deepspeed": "zero2"}),
    "zero3": (2, {**TWO, "deepspeed": "zero3"}),
    "zero2_offload": (2, {**TWO, "deepspeed": "zero2_offload"}),
    "zero3_offload": (2, {**TWO, "deepspeed": "zero3_offload"}),
}
LONG = ("zero3", "zero2_offload", "zero3_offload")
LOW_MODES = [pytest.param(m, marks=FULL if m in LONG else ()) for m in MODES if m != "float32"]
ROUTERS = ("task", "query", "key", "prototypes")
State = dict[str, Tensor]


class Runs:
    """Trains each mode once; a checkpoint after every step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = make_chunk(folder / "1.jsonl", 4 * STEPS)

    def out(self, mode: str) -> Path:
        out = self.folder / mode.replace(" ", "-")
        if not out.exists():
            self.train(mode, out)
        return out

    def train(self, mode: str, out: Path, **more: object) -> None:
        processes, changes = MODES[mode]
        changes = {**changes, **more}
        plugins, callbacks = [PLUGIN], ["strlora"]
        if processes > 1:
            plugins.append(HERE / "rank_check_plugin.py")
            callbacks.append("rank_check")
        changes |= {"external_plugins": plugins, "callbacks": callbacks}
        changes.setdefault("learning_rate", RATE)
        changes.setdefault("aligner_lr", ALIGNER_RATE)
        arguments = train_arguments(
            self.data, out, freeze_aligner="false", weight_decay=0.1, num_train_epochs=1,
            save_steps=1, save_only_model="false", seed=1, **changes,
        )  # fmt: skip
        check = {"RANK_CHECK_DEEPSPEED": "1"} if "deepspeed" in changes else {}
        run("sft", arguments, processes, **check)

    def saved(self, mode: str, step: int) -> State:
        return load_file(self.out(mode) / f"checkpoint-{step}" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("precision"))


def kinds(state: State) -> dict[str, list[str]]:
    """The names of what trains, by kind; `norm` is the aligner's LayerNorm."""
    found: dict[str, list[str]] = {}
    for key in state:
        last = key.rpartition(".")[2]
        if "strlora_mixture" in key and not last.startswith("ema_"):
            found.setdefault(last, []).append(key)
        elif "multi_modal_projector" in key:
            found.setdefault("norm" if "layer_norm" in key else "aligner", []).append(key)
    return found


def moved(before: State, after: State) -> dict[str, float]:
    """The share of weights of each kind that differ."""
    shares = {}
    for kind, keys in kinds(before).items():
        changed = sum(int((before[key] != after[key]).sum()) for key in keys)
        shares[kind] = changed / sum(before[key].numel() for key in keys)
    return shares


def update(before: State, after: State, keys: list[str]) -> Tensor:
    return torch.cat([(after[key] - before[key]).flatten() for key in keys]).double()


def angles(runs: Runs, mode: str, other: str) -> dict[str, float]:
    """The cosine of two modes' updates between the first step and the last, by kind."""
    states = [[runs.saved(name, step) for step in (1, STEPS)] for name in (mode, other)]
    cosines = {}
    for kind, keys in kinds(states[1][0]).items():
        one, two = (update(before, after, keys) for before, after in states)
        cosines[kind] = float(torch.cosine_similarity(one, two, dim=0))
    return cosines


@pytest.mark.parametrize("mode", LOW_MODES)
def test_every_weight_takes_its_step(runs: Runs, mode: str) -> None:
    """Between two steps as many weights of each kind change as in float32."""
    first, last = runs.saved(mode, 1), runs.saved(mode, STEPS)
    found = moved(first, last)
    wanted = moved(runs.saved("float32", 1), runs.saved("float32", STEPS))
    print(mode, {kind: f"{share:.3f} {wanted[kind]:.3f}" for kind, share in found.items()})
    assert {value.dtype for value in last.values() if value.is_floating_point()} == {torch.float32}
    for kind, share in wanted.items():
        assert found[kind] >= share - 0.01, kind
    averages = [key for key in first if "ema_" in key]
    assert averages
    assert any(not torch.equal(first[key], last[key]) for key in averages)


@pytest.mark.parametrize("mode", LOW_MODES)
def test_bfloat16_trains_as_float32(runs: Runs, mode: str) -> None:
    found, wanted = (logged(runs.out(name)) for name in (mode, "float32"))
    assert len(found) == len(wanted) == STEPS
    losses = [(a["loss"], b["loss"]) for a, b in zip(found, wanted, strict=True)]
    print(mode, losses)
    for low, full in losses:
        assert low == pytest.approx(full, rel=3e-3)
    for kind, angle in angles(runs, mode, "float32").items():
        print(mode, kind, f"{angle:.4f}")
        # Routers get the smallest gradients, and one of the two base models is rounded.
        assert angle > (0.7 if kind in ROUTERS else 0.97), kind
    if "zero3" not in mode:  # which reads the vision tower otherwise
        assert min(angles(runs, mode, "one process").values()) > 0.99


@pytest.mark.parametrize("mode", [mode for mode in LOW_MODES if "zero" in str(mode.values[0])])
def test_deepspeed_computes_as_ddp(runs: Runs, mode: str) -> None:
    found, wanted = (logged(runs.out(name)) for name in (mode, "ddp"))
    # ZeRO-3 keeps the base model's weights alike and reads the vision tower's otherwise.
    near = 3e-3 if "zero3" in mode else 1e-6
    for a, b in zip(found, wanted, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=near)


@pytest.mark.parametrize("mode", ["zero2", pytest.param("zero3", marks=FULL)])
def test_a_killed_chunk_ends_bit_for_bit_the_same(runs: Runs, mode: str) -> None:
    whole = runs.out(mode)
    out = runs.folder / f"{mode}-resumed"
    shutil.copytree(whole / "checkpoint-1", out / "checkpoint-1")
    runs.train(mode, out, resume_from_checkpoint=out / "checkpoint-1")
    name = f"checkpoint-{STEPS}/adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    state = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS


def test_the_next_chunk_starts_from_the_very_weights(runs: Runs) -> None:
    """A chunk at rate 0 returns what the chunk before has left."""
    before = runs.out("one process") / f"checkpoint-{STEPS}"
    out = runs.folder / "next"
    runs.train("one process", out, adapters=before, learning_rate=0.0, aligner_lr=0.0, max_steps=1)
    old, new = (load_file(p / "adapter_model.safetensors") for p in (before, out / "checkpoint-1"))
    for keys in kinds(old).values():
        assert all(torch.equal(old[key], new[key]) for key in keys)
