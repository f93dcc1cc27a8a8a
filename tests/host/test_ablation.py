"""The routing record and the ablations inside the real host, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.host.swift import QUESTIONS, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow
ABLATIONS = ["", "stage1_off", "stage2_uniform", "without_expert_1"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter whose experts say something: B is made large, stage 1 decided."""
    folder = tmp_path_factory.mktemp("ablation")
    make_chunk(folder / "train.jsonl", 12, seed=1)
    make_chunk(folder / "test.jsonl", 18, seed=2)
    run("sft", train_arguments(folder / "train.jsonl", folder / "out", max_steps=3, save_steps=3))
    path = folder / "out" / "checkpoint-3"
    weights = load_file(path / "adapter_model.safetensors")
    torch.manual_seed(0)
    for key in weights:
        if key.endswith((".A", ".B")):
            weights[key].normal_(std=0.2)
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})
    texts = {text.removeprefix("<image>"): {task: 1.0} for task, text in QUESTIONS.items()}
    (folder / "probe.json").write_text(json.dumps({"tasks": list(QUESTIONS), "texts": texts}))
    return path


def infer(adapter: Path, out: Path, ablation: str = "", processes: int = 1) -> tuple[dict, list]:
    """Returns routing.json and the answers of `swift infer`."""
    folder = adapter.parents[1]
    arguments = dict(
        adapters=adapter, val_dataset=folder / "test.jsonl", result_path=out / "answers.jsonl",
        temperature=0, max_new_tokens=4, max_batch_size=6, dataset_num_proc=1,
    )  # fmt: skip
    environment = {
        "STRLORA_ROUTING_FILE": str(out / "routing.json"),
        "STRLORA_PROBE_FILE": str(folder / "probe.json"),
        "STRLORA_ABLATION": ablation,
    }
    run("infer", arguments, processes, **environment)
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    left = [path.name for path in out.iterdir() if path.name.startswith(".routing")]
    assert left == [], "parts of the record must not stay behind"
    return json.loads((out / "routing.json").read_text()), [line["response"] for line in lines]


def test_each_switch_changes_routing_as_it_says(adapter: Path, tmp_path: Path) -> None:
    found = {}
    for name in ABLATIONS:
        (tmp_path / f"on{name}").mkdir()
        found[name] = infer(adapter, tmp_path / f"on{name}", name)
        assert found[name][0]["ablation"] == (name or None)
        groups = found[name][0]["groups"]
        assert [group["name"] for group in groups] == list(QUESTIONS)
        assert sum(group["rows"] for group in groups) == 18
        for group in groups:
            assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in group["use"])
    intact = found[""][0]["groups"]
    for group in found["stage1_off"][0]["groups"]:
        assert all(layer == [1.0] * 4 for layer in group["selected"])
    for group, before in zip(found["stage2_uniform"][0]["groups"], intact, strict=True):
        assert group["sets"] == before["sets"], "the instruction chooses as before"
        assert all(set(layer) == {0.0, 0.5} for layer in group["use"])
    for group in found["without_expert_1"][0]["groups"]:
        assert all(layer[1] == 0 for key in ("use", "selected") for layer in group[key])
        assert all(sum(layer) == pytest.approx(2) for layer in group["selected"])
    answers = [found[name][1] for name in ABLATIONS]
    assert all(answer != answers[0] for answer in answers[1:]), "a switch must change answers"


def test_two_processes_record_what_one_does(adapter: Path, tmp_path: Path) -> None:
    records = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        records.append(infer(adapter, out, processes=processes)[0])
    one, two = records
    assert one["rows"] == two["rows"] == 18
    assert one["layers"] == two["layers"]
    for group, other in zip(one["groups"], two["groups"], strict=True):
        assert (group["name"], group["rows"], group["sets"]) == (
            other["name"], other["rows"], other["sets"]
        )  # fmt: skip
        # Batches are cut differently: float32 rounding, no more.
        assert torch.allclose(torch.tensor(group["use"]), torch.tensor(other["use"]), atol=1e-3)
    assert torch.allclose(torch.tensor(one["cka"]), torch.tensor(two["cka"]), atol=1e-2)
    assert [e["text"] for e in one["instructions"]] == [e["text"] for e in two["instructions"]]


def test_an_unknown_ablation_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="expected one of stage1_off"):
        infer(adapter, tmp_path, "stage3_off")
