"""The plug-in inside the real host: train, carry on, infer, and refuse."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.swift import attempt, logged, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Two chunks trained one after the other; the aligner trains in full beside the adapter."""
    folder = tmp_path_factory.mktemp("host")
    for chunk in (1, 2):
        make_chunk(folder / f"{chunk}.jsonl", 24, seed=chunk)
    shared = dict(max_steps=3, save_steps=3, freeze_aligner="false", aligner_lr=1e-3)
    first = run(
        "sft",
        train_arguments(
            folder / "1.jsonl", folder / "out1", options={"strlora_stability_weight": 0}, **shared
        ),
    )
    second = run(
        "sft",
        train_arguments(
            folder / "2.jsonl",
            folder / "out2",
            adapters=folder / "out1" / "checkpoint-3",
            options={"strlora_stability_weight": 0.1},
            **shared,
        ),
    )
    return folder, first, second


def tensors(folder, chunk):
    return load_file(folder / f"out{chunk}" / "checkpoint-3" / "adapter_model.safetensors")


def test_the_log_says_what_is_routed_and_how(stream):
    folder, first, second = stream
    assert "strlora: new adapter, 28 layers routed" in first
    assert "28 layers routed" in second
    steps = logged(folder / "out2")
    assert len(steps) == 3
    assert steps[0]["stability_loss"] == 0, "the teacher starts as a copy of the loaded routers"
    assert steps[-1]["stability_loss"] > 0
    assert 0 < steps[-1]["task_entropy"] < 1.4
    shares = [steps[-1][f"expert_{e}"] for e in range(4)]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert all(step["stability_loss"] == 0 for step in logged(folder / "out1"))


def test_state_is_carried(stream):
    folder, *_ = stream
    one, two = tensors(folder, 1), tensors(folder, 2)
    key = "base_model.strlora_statistics."
    assert int(one[key + "count"]) == 12
    assert int(two[key + "count"]) == 12, "held from the second chunk on"
    assert torch.equal(one[key + "mean"], two[key + "mean"])
    assert int(one[key + "teacher_steps"]) == 0
    assert int(two[key + "teacher_steps"]) == 3
    aligner = [k for k in one if "multi_modal_projector" in k and k.endswith("weight")]
    assert len(aligner) == 3
    assert all(not torch.equal(one[k], two[k]) for k in aligner), "the aligner must train and go on"
    query = next(k for k in two if k.endswith("layers.0.self_attn.q_proj.strlora_mixture.query"))
    for router in (query, query.replace(".query", ".task")):
        layer, _, name = router.rpartition(".")
        teacher = f"{layer}.ema_{name}"
        # Three steps at decay 0.999: the teacher is still almost what chunk 1 ended with.
        drift = (two[teacher] - one[router]).norm() / (two[router] - one[router]).norm()
        assert 0 < drift < 0.01, name


def test_inference_changes_when_routing_does(stream, tmp_path):
    folder, *_ = stream
    source = folder / "out2" / "checkpoint-3"
    weights = tensors(folder, 2)
    torch.manual_seed(0)
    for key in weights:
        if key.endswith((".A", ".B")):
            weights[key].normal_(std=0.3)
    answers, routing = [], []
    for variant in ("as-is", "other-experts"):
        adapter = tmp_path / variant
        adapter.mkdir()
        for name in ("adapter_config.json", "args.json"):
            (adapter / name).write_text((source / name).read_text())
        if variant == "other-experts":  # stage 1 keeps the experts that it refused before
            weights = {k: -v if k.endswith(".task") else v for k, v in weights.items()}
        save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        out = tmp_path / f"{variant}.jsonl"
        run(
            "infer",
            dict(
                adapters=adapter, val_dataset=folder / "1.jsonl", result_path=out, temperature=0,
                max_new_tokens=4, max_batch_size=12, dataset_num_proc=1,
            ),
            STRLORA_ROUTING_FILE=str(tmp_path / f"{variant}.json"),
        )  # fmt: skip
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        answers.append([line["response"] for line in lines])
        routing.append(json.loads((tmp_path / f"{variant}.json").read_text()))
    assert len(answers[0]) == 24
    assert answers[0] != answers[1], "the adapter is off, or routing has no effect"
    for record in routing:
        texts = {entry["text"] for entry in record["instructions"]}
        assert texts == {
            "What color is the shape? Answer with one word.",
            "How many bars are there in this picture? Give a number.",
        }
        assert record["rows"] == sum(entry["rows"] for entry in record["instructions"]) == 24
        assert all(len(entry["kept"]) == 28 for entry in record["instructions"])
        assert all(mask.bit_count() == 2 for e in record["instructions"] for mask in e["kept"])
        (group,) = record["groups"]  # no probe file: all instructions together
        assert len(group["use"]) == len(record["layers"]) == 28
        assert all(sum(layer) == pytest.approx(2, abs=1e-3) for layer in group["selected"])
        assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in group["use"])
    assert routing[0] != routing[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"options": {"strlora_num_experts": 2}},
            "num_experts is 4 in the adapter and 2 in this run",
        ),
        ({"options": {"strlora_topk": 2}}, "topk"),
        (
            {"options": {"strlora_require_teacher": True, "strlora_stability_weight": 0.1}},
            "carries no moving average",
        ),
    ],
)
def test_a_wrong_continuation_is_refused(stream, tmp_path, changes, message):
    folder, *_ = stream
    arguments = train_arguments(
        folder / "2.jsonl",
        tmp_path / "out",
        adapters=folder / "out1" / "checkpoint-3",
        max_steps=1,
        **changes,
    )
    code, output = attempt("sft", arguments)
    assert code != 0
    assert message in output
