"""Two real processes train what one process trains: DDP, ZeRO-2 and ZeRO-3 on CPU."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.host.swift import HERE, PLUGIN, logged, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow
STEPS = 3
METRICS = ("stability_loss", "task_entropy", "token_entropy", "expert_0", "expert_3")
OPTIONS = {"strlora_stability_weight": 5.0, "strlora_ema_decay": 0.5}


def train(folder, name, processes, chunk, previous=None, **changes):
    """Trains chunk `chunk` with a global batch of 8; returns the log and the adapter's folder."""
    out = folder / f"{name}-{chunk}"
    if previous is not None:
        changes["adapters"] = previous
    if processes > 1:
        changes["external_plugins"] = [PLUGIN, HERE / "rank_check_plugin.py"]
        changes["callbacks"] = ["strlora", "rank_check"]
    arguments = train_arguments(
        folder / f"{chunk}.jsonl",
        out,
        max_steps=STEPS,
        save_steps=STEPS,
        # Adam divides by tiny gradients and so blows up rounding; SGD shows real differences.
        optim="sgd",
        learning_rate=0.1,
        options=OPTIONS,
        **changes,
    )
    more = {"RANK_CHECK_DEEPSPEED": "1"} if "deepspeed" in changes else {}
    output = run("sft", arguments, processes, **more)
    if processes > 1:
        assert output.count("RANK-CHECK") == processes, "carried buffers must be compared"
    return logged(out), out / f"checkpoint-{STEPS}"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    for chunk in (1, 2):
        make_chunk(folder / f"{chunk}.jsonl", 8 * STEPS, seed=chunk)
    first = train(folder, "single", 1, 1, per_device_train_batch_size=8)
    second = train(folder, "single", 1, 2, first[1], per_device_train_batch_size=8)
    return folder, [first, second]


VARIANTS = {
    "accumulation": (1, dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)),
    "checkpointing": (1, dict(per_device_train_batch_size=8, gradient_checkpointing="true")),
    "ddp": (2, dict(per_device_train_batch_size=4)),
    "ddp-accumulation": (2, dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)),
    "zero2": (2, dict(per_device_train_batch_size=4, deepspeed="zero2")),
    "zero3": (2, dict(per_device_train_batch_size=4, deepspeed="zero3")),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_two_chunks_equal_those_of_one_process(single, name):
    folder, wanted = single
    processes, changes = VARIANTS[name]
    previous = None
    for chunk, (expected, reference) in enumerate(wanted, start=1):
        found, adapter = train(folder, name, processes, chunk, previous, **changes)
        previous = adapter
        for step, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-3), (name, chunk, step)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-3), (name, chunk, step)
            for metric in METRICS:
                near = pytest.approx(b[metric], rel=2e-2, abs=1e-6)
                assert a[metric] == near, (name, chunk, step, metric)
        _same_adapter(load_file(adapter / "adapter_model.safetensors"),
                      load_file(reference / "adapter_model.safetensors"))  # fmt: skip


def _same_adapter(found, expected):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape, key
        if tensor.dtype == torch.int64:
            assert torch.equal(found[key], tensor), key
        else:
            torch.testing.assert_close(found[key], tensor, rtol=1e-2, atol=2e-5, msg=key)
