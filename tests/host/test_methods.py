"""Every routed tuner in the real host: however a chunk is split or resumed, it trains the same.

Per tuner chunk 1 and chunk 2 are trained by one process, with reentrant checkpointing (the host's
default). Then again: by two processes under DDP (where the host's checkpointing is not reentrant),
ZeRO-2 and ZeRO-3, with accumulation, with the other modes of checkpointing, and from a checkpoint
in the middle of chunk 2. FULL_METHODS=1 runs all pairs.
"""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file

from data_prep.files import write_json
from strlora_tuner.methods import folders
from strlora_tuner.options import TASKS_FILE
from tests.host.swift import HERE, PLUGIN, QUESTIONS, logged, make_chunk, run, train_arguments
from tests.strlora_tuner.models import BY_BATCH

pytestmark = pytest.mark.slow
STRLORA = "strlora"
STEPS = 4
WHOLE = dict(per_device_train_batch_size=8)
HALF = dict(per_device_train_batch_size=4)
QUARTER = dict(per_device_train_batch_size=2)
VARIANTS = {
    "resumed": (1, WHOLE),
    "no-checkpointing": (1, dict(**WHOLE, gradient_checkpointing="false")),
    "not-reentrant": (1, dict(**WHOLE, gradient_checkpointing_kwargs={"use_reentrant": False})),
    "accumulation": (1, dict(**HALF, gradient_accumulation_steps=2)),
    "ddp": (2, HALF),
    "ddp-accumulation": (2, dict(**QUARTER, gradient_accumulation_steps=2)),
    "zero2": (2, dict(**HALF, deepspeed="zero2")),
    "zero3": (2, dict(**HALF, deepspeed="zero3")),
}
# What leaves the batch in one piece.
WHOLE_BATCH = ("resumed", "no-checkpointing", "not-reentrant")
OPTIONS = {STRLORA: {"strlora_stability_weight": 5.0, "strlora_ema_decay": 0.5}}
METRICS = ("stability_loss", "task_entropy", "token_entropy", "expert_0", "expert_3")
# What CI has time for. "ddp-accumulation" holds what "ddp" and "accumulation" hold.
QUICK = {(STRLORA, name) for name in ("ddp-accumulation", "zero2", "zero3")}
FULL = os.environ.get("FULL_METHODS") == "1"
CASES = [
    pytest.param(
        method,
        variant,
        marks=pytest.mark.skipif(
            not FULL and (method, variant) not in QUICK,
            reason="minutes more; FULL_METHODS=1 runs it",
        ),
    )
    for method in folders()
    for variant in VARIANTS
    if method not in BY_BATCH or variant in WHOLE_BATCH
]


def train(folder, method, name, chunk, processes=1, previous=None, **changes):
    """Trains chunk `chunk` with a global batch of 8; returns the log and the run's folder."""
    out = folder / f"{name}-{chunk}"
    if previous is not None:
        changes["adapters"] = previous
    if processes > 1:
        changes["external_plugins"] = [PLUGIN, HERE / "rank_check_plugin.py"]
        changes["callbacks"] = ["strlora", "rank_check"]
    arguments = train_arguments(
        folder / f"{chunk}.jsonl",
        out,
        tuner_type=method,
        max_steps=STEPS,
        # Only one process is resumed in the middle.
        save_steps=STEPS // 2 if processes == 1 else STEPS,
        save_only_model="false" if processes == 1 else "true",
        # Adam divides by tiny gradients and so blows up rounding; SGD shows real differences.
        optim="sgd",
        learning_rate=0.1,
        options=OPTIONS.get(method, {}),
        **changes,
    )
    if method != STRLORA:
        del arguments["model_kwargs"]
    more = {"RANK_CHECK_DEEPSPEED": "1"} if "deepspeed" in changes else {}
    if method == "oracle":  # which the orchestrator tells the tasks
        table = {text.replace("<image>", ""): f"{i} x" for i, text in enumerate(QUESTIONS.values())}
        write_json(folder / "tasks.json", table)
        more[TASKS_FILE] = str(folder / "tasks.json")
    output = run("sft", arguments, processes, **more)
    if processes > 1:
        assert output.count("RANK-CHECK") == processes, "carried buffers must be compared"
    return logged(out), out


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """Returns for a method the folder of its data, and log and folder of each chunk."""
    done = {}

    def of(method):
        if method not in done:
            folder = tmp_path_factory.mktemp(method)
            for chunk in (1, 2):
                make_chunk(folder / f"{chunk}.jsonl", 8 * STEPS, seed=chunk)
            first = train(folder, method, "single", 1, **WHOLE)
            second = train(folder, method, "single", 2, previous=last(first[1]), **WHOLE)
            done[method] = folder, [first, second]
        return done[method]

    return of


def last(out):
    return out / f"checkpoint-{STEPS}"


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_two_chunks_equal_those_of_one_undisturbed_process(singles, method, variant):
    folder, wanted = singles(method)
    processes, changes = VARIANTS[variant]
    if variant == "resumed":
        middle = wanted[1][1] / f"checkpoint-{STEPS // 2}"
        changes = {**changes, "resume_from_checkpoint": middle}
    if method == STRLORA and variant != "resumed":
        chunks, previous = (1, 2), None
    else:  # chunk 2 alone, from the same adapter of chunk 1
        chunks, previous = (2,), last(wanted[0][1])
    for chunk in chunks:
        log, out = train(folder, method, variant, chunk, processes, previous, **changes)
        previous = last(out)
        expected, reference = wanted[chunk - 1]
        same_log(method, log, expected[-len(log) :], f"{variant}, chunk {chunk}")
        same_adapter(previous, last(reference), exact=variant == "resumed")
    assert len(log) == (STEPS // 2 if variant == "resumed" else STEPS)


def same_log(method, found, expected, where):
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3), (where, step)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-3), (where, step)
        ours = {name for name in b if name in METRICS or name.endswith("_loss")}
        assert ours >= set(METRICS if method == STRLORA else METRICS[1:4]), ours
        for name in ours:
            assert a[name] == pytest.approx(b[name], rel=2e-2, abs=1e-6), (where, step, name)


def same_adapter(checkpoint, reference, exact):
    """Equal, or as near as sums in another order are; what counts is equal always."""
    found, wanted = (load_file(c / "adapter_model.safetensors") for c in (checkpoint, reference))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        same = exact or not tensor.is_floating_point()
        limits = dict(rtol=0, atol=0) if same else dict(rtol=1e-2, atol=2e-5)
        torch.testing.assert_close(found[key], tensor, **limits, msg=key)
