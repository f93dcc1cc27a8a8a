"""A renamed name of the host stops a plug-in before anything runs unprotected."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
    get_scheduler,
    trainer,
)

from recipes import REPO
from recipes.run.commands import HOST_PLUGIN, INFER_PLUGIN, POOL_PLUGIN

pytest.importorskip("swift")


def load(path: Path) -> None:
    """Runs a plug-in's file as the host does, under a name of its own."""
    spec = importlib.util.spec_from_file_location("plugin_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("plugin", "module", "name", "protects"),
    [
        (
            HOST_PLUGIN,
            "transformers.dynamic_module_utils",
            "get_cached_module_file",
            "Python files that come with a model are not run",
        ),
        (
            HOST_PLUGIN,
            "transformers.trainer",
            "rotate_checkpoints",
            "the newest checkpoint is kept",
        ),
        (
            HOST_PLUGIN,
            "swift.model.register:ModelLoader",
            "default_trust_remote_code",
            "Python files that come with a model are not run",
        ),
        (HOST_PLUGIN, "swift.utils.shutdown_manager", "ShutdownManager", "/tmp/stop"),
        (
            INFER_PLUGIN,
            "swift.pipelines.infer.infer:SwiftInfer",
            "infer_dataset",
            "the answers of all processes are written",
        ),
    ],
)
def test_a_renamed_name_stops_the_plugin(
    plugin: Path, module: str, name: str, protects: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for imported in ("swift.callbacks.deepspeed_elastic", "swift.model", "swift.pipelines.infer"):
        importlib.import_module(imported)
    path, _, owner = module.partition(":")
    holder = importlib.import_module(path)
    monkeypatch.delattr(getattr(holder, owner) if owner else holder, name)
    with pytest.raises(ImportError, match=name) as caught:
        load(plugin)
    assert protects in str(caught.value)


def test_the_checkpoint_of_most_steps_stays_whatever_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "rotate_checkpoints", trainer.rotate_checkpoints)
    load(HOST_PLUGIN)
    for hours, step in enumerate((100, 50, 9)):  # written by a clock that went back
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, times=(3600 * hours, 3600 * hours))
    trainer.rotate_checkpoints(output_dir=str(tmp_path), save_total_limit=1, use_mtime=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-100"]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "polynomial"])
def test_a_chunk_of_one_step_is_no_warm_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of all steps of a chunk, by transformers' own schedules; longer ones stay."""
    monkeypatch.setattr(TrainingArguments, "get_warmup_steps", TrainingArguments.get_warmup_steps)
    load(HOST_PLUGIN)
    count = TrainingArguments.get_warmup_steps

    def rates(steps: int, ratio: float) -> list[float]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        warm = count(SimpleNamespace(warmup_steps=ratio), steps)  # type: ignore[arg-type]
        schedule = get_scheduler(kind, optimizer, warm, steps)
        found = []
        for _ in range(steps):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    assert rates(1, 0.05) == [1.0], "the host's count is 1 step of 1, at a rate of 0"
    assert rates(2, 0.9)[1] == 1.0
    assert rates(1, 0.0) == [1.0]
    assert [count(SimpleNamespace(warmup_steps=0.05), steps) for steps in (20, 21, 75)] == [1, 2, 4]


def test_a_mixed_batch_keeps_labelled_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short and a long sample: the loss of all logits, from those with a label."""
    from swift.trainers.mixin import SwiftMixin

    monkeypatch.setattr(SwiftMixin, "prepare_logits_to_keep", SwiftMixin.prepare_logits_to_keep)
    load(HOST_PLUGIN)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config).double()
    ids = torch.randint(50, (3, 40))
    labels = torch.full_like(ids, -100)
    labels[0, 37:], labels[1, 5:8], labels[2, 6] = ids[0, 37:], ids[1, 5:8], ids[2, 6]
    scale = torch.rand(3, 40, dtype=torch.float64) * (labels != -100)
    inputs = {"input_ids": ids, "labels": labels, "loss_scale": scale}
    trainer = SimpleNamespace(args=SimpleNamespace(bf16=True, fp16=False))
    SwiftMixin.prepare_logits_to_keep(trainer, inputs)
    kept_scale = inputs.pop("loss_scale")
    found, wanted = model(**inputs), model(input_ids=ids, labels=labels)
    assert found.logits.shape[1] == 1 + 6  # positions 4-6 and 36-38 see a label, and the last one
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-12, atol=0)
    assert kept_scale.shape == inputs["labels"].shape
    assert torch.equal(kept_scale > 0, inputs["labels"] != -100)


def test_a_type_is_known_by_the_architecture_where_it_is_one() -> None:
    load(HOST_PLUGIN)
    meta = importlib.import_module("swift.model.model_meta")
    found = {
        name: meta.get_matched_model_types([f"{name}ForConditionalGeneration"])
        for name in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3_5", "Gemma3", "InternVL", "Llava")
    }
    assert len(found.pop("Llava")) == 3  # models with templates of their own: the host asks
    kinds = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3_vision", "internvl"]
    assert list(found.values()) == [[kind] for kind in kinds]


def test_lines_that_are_not_true_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the host writes them itself, on a model whose own code is not run."""
    from swift.model.model_meta import ModelMeta
    from swift.utils import get_logger

    monkeypatch.delenv("STRLORA_REMOTE_CODE", raising=False)
    logger = get_logger()
    monkeypatch.setattr(logger, "filters", [])
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [handler])

    def written(*requires: str) -> list[str]:
        lines.clear()
        ModelMeta.check_requires(SimpleNamespace(requires=list(requires)), None)
        return list(lines)

    hints = ["timm>=99"], ["timm>=99", "decord"], ["no-such-package"], ["timm>=99", "no-such-one"]
    assert [len(written(*requires)) for requires in hints] == [1, 1, 1, 1]
    load(HOST_PLUGIN)
    assert [len(written(*requires)) for requires in hints] == [0, 0, 1, 1]
    lines.clear()
    _get_model_info = importlib.import_module("swift.model.model_meta")._get_model_info
    _get_model_info(str(REPO / "assets" / "tiny_base"), None, None)
    assert not [line for line in lines if "trust_remote_code" in line]
    logger.warning("something else")
    assert lines[-1] == "something else"


@pytest.mark.slow
@pytest.mark.parametrize("order", ["pool", "inference pool", "pool inference"])
def test_inference_is_installed_once_whatever_the_order(order: str) -> None:
    files = {"pool": POOL_PLUGIN, "inference": INFER_PLUGIN}
    words = [str(files[word]) for word in order.split()]
    code = """
import sys
from swift.pipelines.infer.infer import SwiftInfer
from swift.utils import import_external_file
for path in sys.argv[1:]:
    import_external_file(path)
assert SwiftInfer.infer.__name__ == "route_and_answer", SwiftInfer.infer
inner = SwiftInfer.infer_dataset.__closure__[0].cell_contents
assert inner.__module__ == "swift.pipelines.infer.infer", inner
"""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_process_waits_for_gloo_before_python_ends() -> None:
    """What was registered first runs last: it sees what the plug-in left.

    A thread of Python's that bears the name of gloo's stands for one that a busy machine holds up.
    """
    code = f"""
import atexit
import hashlib
import runpy
import threading
from pathlib import Path

done = []
started = threading.Event()

@atexit.register
def tell():
    print("done:", done)

def work():
    Path(f"/proc/self/task/{{threading.get_native_id()}}/comm").write_text("pt_gloo_runloop")
    started.set()
    hashlib.sha512(bytes(400_000_000))
    done.append(True)

runpy.run_path({str(HOST_PLUGIN)!r})
threading.Thread(target=work, daemon=True).start()
started.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "done: [True]"), done.stderr
