"""Every method of methods/ in the real host: two processes train what one does, resumed or not.

Per method chunk 1 and chunk 2 are trained by one process; then chunk 2 again, from the same adapter
of chunk 1, by two processes and from a checkpoint in its middle. FULL_METHODS=1 runs all pairs.
"""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file

from strlora_tuner.methods import folders
from tests.host.swift import HERE, PLUGIN, logged, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow
STEPS = 4
TWO = dict(per_device_train_batch_size=4)
VARIANTS = {
    "resumed": (1, dict(per_device_train_batch_size=8)),
    "zero2": (2, dict(**TWO, deepspeed="zero2")),
    "zero3": (2, dict(**TWO, deepspeed="zero3")),
    "ddp": (2, TWO),
}
# What CI has time for: the method that carries most, whole and in the middle of a chunk.
QUICK = {("branchlora", "zero2"), ("branchlora", "resumed")}
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
]


def train(folder, method, name, processes, chunk, **changes):
    """Trains chunk `chunk` with a global batch of 8; returns the log and the run's folder."""
    out = folder / name
    if processes > 1:
        changes["external_plugins"] = [PLUGIN, HERE / "rank_check_plugin.py"]
        changes["callbacks"] = ["strlora", "rank_check"]
    arguments = train_arguments(
        folder / f"{chunk}.jsonl",
        out,
        tuner_type=method,
        max_steps=STEPS,
        save_steps=STEPS // 2,
        save_only_model="false",
        # Adam divides by tiny gradients and so blows up rounding; SGD shows real differences.
        optim="sgd",
        learning_rate=0.1,
        **changes,
    )
    del arguments["model_kwargs"]
    more = {"RANK_CHECK_DEEPSPEED": "1"} if "deepspeed" in changes else {}
    output = run("sft", arguments, processes, **more)
    if processes > 1:
        assert output.count("RANK-CHECK") == processes, "carried buffers must be compared"
    return logged(out), out


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """Returns for a method the folder of its data and the log of chunk 2, trained once."""
    done = {}

    def of(method):
        if method not in done:
            folder = tmp_path_factory.mktemp(method)
            for chunk in (1, 2):
                make_chunk(folder / f"{chunk}.jsonl", 8 * STEPS, seed=chunk)
            whole = dict(per_device_train_batch_size=8)
            train(folder, method, "first", 1, 1, **whole)
            previous = folder / "first" / f"checkpoint-{STEPS}"
            log, _ = train(folder, method, "second", 1, 2, adapters=previous, **whole)
            done[method] = folder, log
        return done[method]

    return of


@pytest.mark.parametrize(("method", "variant"), CASES)
def test_chunk_two_equals_that_of_one_undisturbed_process(singles, method, variant):
    folder, expected = singles(method)
    processes, changes = VARIANTS[variant]
    changes = {**changes, "adapters": folder / "first" / f"checkpoint-{STEPS}"}
    if variant == "resumed":
        changes["resume_from_checkpoint"] = folder / "second" / f"checkpoint-{STEPS // 2}"
    log, out = train(folder, method, variant, processes, 2, **changes)
    for a, b in zip(log, expected[-len(log) :], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3), variant
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-3), variant
        for name in ("token_entropy", "expert_0", "orthogonality_loss"):
            assert (name in a) == (name in b), name
            if name in b:
                assert a[name] == pytest.approx(b[name], rel=2e-2, abs=1e-6), name
    name = f"checkpoint-{STEPS}/adapter_model.safetensors"
    found, wanted = load_file(out / name), load_file(folder / "second" / name)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        exact = variant == "resumed" or not tensor.is_floating_point()
        limits = dict(rtol=0, atol=0) if exact else dict(rtol=1e-2, atol=2e-5)
        torch.testing.assert_close(found[key], tensor, **limits, msg=key)
