"""EWC and slow weights in the real host: two chunks, beside LoRA and StrLoRA, on 1 and 2 processes.

Both run in the same trainings: what they leave is checked apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from strlora_tuner.methods.ewc.state_file import ANCHOR, FILE, FISHER
from strlora_tuner.methods.slow_weights.both_sets import FILE as SLOW_FILE
from strlora_tuner.methods.slow_weights.both_sets import read_steps
from strlora_tuner.saved import WEIGHTS
from tests.host.swift import (
    HERE,
    PLUGIN,
    ROOT,
    attempt,
    environment,
    logged,
    make_chunk,
    run,
    train_arguments,
)

pytestmark = pytest.mark.slow
full = pytest.mark.skipif(
    os.environ.get("FULL_METHODS") != "1", reason="minutes more; FULL_METHODS=1 runs it"
)
EWC = ROOT / "strlora_tuner" / "methods" / "ewc" / "swift_plugin.py"
SLOW = ROOT / "strlora_tuner" / "swift_plugins" / "slow_weights.py"
STEPS = 3
WEIGHT = 50.0


def arguments(folder, name, chunk, previous=None, **changes):
    """Arguments of chunk `chunk`; `changes` may hold `tuner` (lora | strlora) and `ewc` options."""
    options = {"ewc_weight": WEIGHT, "ewc_decay": 0.5, **changes.pop("ewc", {})}
    plugins, callbacks = [PLUGIN, EWC, SLOW], ["strlora", "ewc", "slow_weights"]
    if changes.pop("tuner", "strlora") == "lora":
        plugins, callbacks = plugins[1:], callbacks[1:]
        changes["tuner_type"] = "lora"
    if previous is not None:
        changes["adapters"] = previous
        begins = changes.get("resume_from_checkpoint", previous)
        options.setdefault("slow_weights_state", str(Path(begins) / SLOW_FILE))
        options.setdefault("ewc_state", str(previous))
    if "deepspeed" in changes:  # its communication must be up before anything asks for it
        plugins.append(HERE / "rank_check_plugin.py")
    values = train_arguments(
        folder / f"{chunk}.jsonl",
        folder / f"{name}-{chunk}",
        max_steps=STEPS,
        save_steps=1,
        save_only_model="false",
        optim="sgd",  # Adam divides by tiny gradients and so blows up rounding
        **{
            "per_device_train_batch_size": 8,
            "learning_rate": 0.1,
            "max_grad_norm": 1.0,
            **changes,
        },
    )
    values["external_plugins"], values["callbacks"] = plugins, callbacks
    values["model_kwargs"] = {**values["model_kwargs"], **options}  # type: ignore[dict-item]
    return values


def train(folder, name, chunk, previous=None, processes=1, **changes):
    """Trains a chunk; returns its log, its checkpoint and the carried tensors."""
    values = arguments(folder, name, chunk, previous, **changes)
    more = {"RANK_CHECK_DEEPSPEED": "1"} if "deepspeed" in changes else {}
    run("sft", values, processes, **more)
    checkpoint = folder / f"{name}-{chunk}" / f"checkpoint-{STEPS}"
    return logged(folder / f"{name}-{chunk}"), checkpoint, load_file(checkpoint / FILE)


def kind(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ewc")
    for chunk in (1, 2):
        make_chunk(folder / f"{chunk}.jsonl", 8 * STEPS, seed=chunk)
    first = train(folder, "single", 1)
    return folder, [first, train(folder, "single", 2, first[1])]


def test_the_state_is_what_the_formula_says(single):
    _, ((steps, one, before), (later, two, after)) = single
    assert all("ewc_loss" not in step for step in steps), "nothing can pull in the first chunk"
    assert later[0]["ewc_loss"] == 0, "the chunk starts where the one before ended"
    assert later[-1]["ewc_loss"] > later[1]["ewc_loss"] > 0

    for checkpoint, state in ((one, before), (two, after)):
        weights = load_file(checkpoint / "adapter_model.safetensors")
        trained = {k: v for k, v in weights.items() if "ema_" not in k and "statistics" not in k}
        anchor = {k.replace(".default", ""): v for k, v in kind(state, ANCHOR).items()}
        assert anchor.keys() == trained.keys()
        assert all(torch.equal(anchor[key], trained[key]) for key in trained)
        assert all(v.dtype == torch.float32 and bool((v >= 0).all())
                   for v in kind(state, FISHER).values())  # fmt: skip
    routers = [v for k, v in kind(before, FISHER).items() if k.endswith((".query", ".task"))]
    assert all(float(value.max()) > 0 for value in routers), "routers are parameters, too"
    old = kind(before, FISHER)
    fresh = {k: v - 0.5 * old[k] for k, v in kind(after, FISHER).items()}
    assert all(float(v.min()) >= -1e-7 * float(old[k].max() + 1e-12) for k, v in fresh.items())
    assert sum(float(v.sum()) for v in fresh.values()) > 0


def test_the_slow_set_is_the_average_of_the_checkpoints(single):
    """In float64, from the weights that the host saved after every step of both chunks."""
    _, ((_, one, _), (_, two, _)) = single
    average = {k: v.double() for k, v in load_file(one.parent / "checkpoint-1" / SLOW_FILE).items()}
    steps = [one.parent / f"checkpoint-{n}" for n in (2, 3)]
    steps += [two.parent / f"checkpoint-{n}" for n in (1, 2, 3)]
    moved = 0
    for step, checkpoint in enumerate(steps, start=2):
        fast, slow = (load_file(checkpoint / name) for name in (WEIGHTS, SLOW_FILE))
        assert fast.keys() == slow.keys()
        assert read_steps(checkpoint / SLOW_FILE) == step
        for name, value in fast.items():
            if "ema_" in name or "statistics" in name:  # carried as it is, no trained parameter
                assert torch.equal(slow[name], value)
                continue
            average[name] += 9 / (10 + step) * (value.double() - average[name])
            torch.testing.assert_close(slow[name].double(), average[name], rtol=1e-5, atol=1e-7)
            moved += not torch.equal(slow[name], value)
    assert moved > 20


VARIANTS = {
    "accumulation": (1, dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)),
    "checkpointing": (1, dict(gradient_checkpointing="true")),
    "ddp": (2, dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)),
    "zero2": (2, dict(per_device_train_batch_size=2, gradient_accumulation_steps=2,
                      deepspeed="zero2")),
    "zero3": (2, dict(per_device_train_batch_size=2, gradient_accumulation_steps=2,
                      deepspeed="zero3")),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "zero2" else full) for name in VARIANTS]
)
def test_any_split_of_the_batch_equals_one_process(single, name):
    folder, wanted = single
    processes, changes = VARIANTS[name]
    previous = None
    for chunk, (steps, _, state) in enumerate(wanted, start=1):
        found, previous, carried = train(folder, name, chunk, previous, processes, **changes)
        for a, b in zip(found, steps, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-3), (name, chunk)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-3), (name, chunk)
            assert a.get("ewc_loss", 0) == pytest.approx(b.get("ewc_loss", 0), rel=2e-2, abs=1e-6)
        assert carried.keys() == state.keys()
        for key, value in state.items():
            near = 1e-2 * float(value.abs().max()) + 1e-7
            torch.testing.assert_close(carried[key], value, rtol=2e-2, atol=near, msg=key)
        slow, alone = (load_file(path / SLOW_FILE) for path in (previous, wanted[chunk - 1][1]))
        assert slow.keys() == alone.keys()
        for key, value in alone.items():
            near = 1e-2 * float(value.abs().max()) + 1e-7
            torch.testing.assert_close(slow[key], value, rtol=2e-2, atol=near, msg=key)


def test_an_interrupted_chunk_ends_bit_for_bit_the_same(single):
    folder, ((_, one, _), (_, two, _)) = single
    out = folder / "resumed-2"
    shutil.copytree(two.parent / "checkpoint-1", out / "checkpoint-1")
    values = arguments(folder, "resumed", 2, one, resume_from_checkpoint=out / "checkpoint-1")
    run("sft", values)
    for name in (WEIGHTS, FILE, SLOW_FILE):
        found, expected = (p / f"checkpoint-{STEPS}" / name for p in (out, two.parent))
        assert found.read_bytes() == expected.read_bytes(), name


def test_fisher_information_does_not_count_replayed_samples(single):
    """At a standstill (rate 0) a mixed file gives, bit for bit, the chunk's own information."""
    folder, _ = single
    own, replayed = ((folder / f"{chunk}.jsonl").read_text() for chunk in (2, 1))
    (folder / "mixed.jsonl").write_text(replayed + own)
    still = {"tuner": "lora", "learning_rate": 0.0}
    _, start, _ = train(folder, "standstill", 2, tuner="lora")
    options = {"ewc_data": str(folder / "2.jsonl")}
    _, _, mixed = train(folder, "standstill", "mixed", start, ewc=options, **still)
    _, _, alone = train(folder, "standstill-alone", 2, start, **still)
    assert mixed.keys() == alone.keys()
    assert all(torch.equal(mixed[key], alone[key]) for key in mixed)


def test_zero3_steps_and_estimates_as_one_process():
    """DeepSpeed itself on two processes, every parameter in pieces; see zero3_ewc.py."""
    script = [str(HERE / "zero3_ewc.py")]
    port = environment(2)["MASTER_PORT"]
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    done = subprocess.run(
        [sys.executable, *command, *script],
        cwd=ROOT,
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("as one process") == 2


@full
def test_a_strong_pull_holds_the_weights_with_plain_lora(single):
    folder, _ = single
    # F = 1 and no clipping: rate times weight, 0.9, is the share that a step takes back.
    form = {"ewc_fisher": False, "ewc_weight": 90.0}
    plain = {"tuner": "lora", "learning_rate": 0.01, "max_grad_norm": 1e6}
    _, start, before = train(folder, "lora", 1, ewc=form, **plain)
    moved = []
    for weight in (1e-6, 90.0):
        options = {**form, "ewc_weight": weight}
        _, _, state = train(folder, f"lora-{weight:g}", 2, start, ewc=options, **plain)
        anchor, now = kind(before, ANCHOR), kind(state, ANCHOR)
        moved.append(sum(float((now[k] - anchor[k]).square().sum()) for k in anchor))
    assert moved[1] < 0.5 * moved[0], moved


@full
def test_the_published_form_is_plain_lora_bit_for_bit_and_a_number_in_the_log(single):
    folder, _ = single
    released = {"ewc_fisher": False, "ewc_gradient": False, "ewc_weight": 1.0}
    _, start, before = train(folder, "released", 1, tuner="lora", ewc=released)
    steps, end, state = train(folder, "released", 2, start, tuner="lora", ewc=released)
    assert not kind(before, FISHER)
    assert not kind(state, FISHER)
    values = arguments(folder, "plain", 2, start, tuner="lora")
    for name in ("external_plugins", "callbacks", "model_kwargs"):
        del values[name]
    run("sft", values)
    plain = load_file(folder / "plain-2" / f"checkpoint-{STEPS}" / "adapter_model.safetensors")
    found = load_file(end / "adapter_model.safetensors")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[key], plain[key]) for key in plain)
    anchor, last = kind(before, ANCHOR), kind(state, ANCHOR)
    distance = sum(float((last[k].double() - anchor[k]).square().sum()) for k in anchor)
    assert 0 < steps[-1]["ewc_loss"] < distance / 2, "of the weights before the last step"


@full
def test_what_cannot_be_pulled_is_refused(single):
    folder, ((_, one, _), _) = single
    (folder / "empty").mkdir()
    for changes, message in (
        ({"ewc": {"ewc_state": str(folder / "empty")}}, "no such file, but this chunk needs it"),
        ({"ewc": {"ewc_fisher": False}}, "holds Fisher information, but this run has ewc.fisher"),
        ({"ewc": {"ewc_typo": 1}}, "ewc_typo is no option"),
        ({"ewc": {"ewc_data": "/no/where.jsonl"}}, "no such file of samples"),
    ):
        code, output = attempt("sft", arguments(folder, "refused", 2, one, **changes))
        assert code != 0
        assert message in output
