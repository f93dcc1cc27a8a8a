"""Recipe internvl3.5-8b itself, on one GPU, with random weights of the model's full shape.

Makes the weights on the GPU and saves them to memory or a local disk (17 GB), with a real tokenizer
where --tokenizer gives one; then two chunks of 64 samples with pictures of real sizes, StrLoRA and
LoRA. Random weights never end an answer: every one takes all tokens that it may.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sized import write_model, write_stream
from step import GpuMemory, Step, answers_per_second, metrics, run_recipe, step_seconds
from stream_overhead import chunks

NEEDED = 20 * 2**30
LAYERS = 36 * 7  # decoder layers x adapted linear layers


def room(step: Step, fallback: Path) -> Path:
    """Returns a folder with room for the weights: memory, TMPDIR, or beside the repository."""
    here = Path(__file__).resolve().parents[3] / "runs"
    for folder in (Path("/dev/shm"), fallback, here):
        if step.cpu:
            return fallback
        if folder.is_dir() and shutil.disk_usage(folder).free > NEEDED:
            return Path(tempfile.mkdtemp(prefix="strlora-8b-", dir=folder))
    raise SystemExit(f"no 20 GB free in /dev/shm, {fallback} or {here}")


def check_adapter(step: Step, name: str, folder: Path, layers: int) -> None:
    """Records how many layers an adapter holds, and whether all of it is float32 and finite."""
    import torch
    from safetensors import safe_open

    adapted, other, bad = set(), 0, 0
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(key)
            if tensor.is_floating_point():
                other += tensor.dtype is not torch.float32
                bad += not bool(tensor.isfinite().all())
            if key.endswith((".A", "lora_A.weight")):
                adapted.add(key)
    size = (folder / "adapter_model.safetensors").stat().st_size
    step.figure(f"{name}_adapter_size_mib", size / 2**20)
    step.figure(f"{name}_layers_missing", layers - len(adapted), at_most=0)
    step.figure(f"{name}_tensors_not_float32", other, at_most=0)
    step.figure(f"{name}_tensors_not_finite", bad, at_most=0)


def one_method(step: Step, method: str, folder: Path, words: list[str], samples: int) -> None:
    """Runs the recipe with a method and reads its figures from the run folder."""
    run = folder / method
    with GpuMemory() as memory:
        run_recipe(run, *words, f"method={method}")
    rows = chunks(run, {})
    last = metrics(run, 2)
    seconds = statistics.mean(step_seconds(metrics(run, n)) for n in (1, 2))
    step.figure(f"{method}_step_s", seconds)
    step.figure(f"{method}_samples_per_s", samples / len(last) / seconds)
    if "num_input_tokens_seen" in last[-1]:
        tokens = float(last[-1]["num_input_tokens_seen"]) / len(last)
        step.figure(f"{method}_tokens_per_s", tokens / seconds)
    held = [float(row["memory(GiB)"]) for row in last if "memory(GiB)" in row]
    if held:
        step.figure(f"{method}_training_gib", max(held))
    if memory.most:
        step.figure(f"{method}_gpu_peak_gib", memory.most)
    step.figure(f"{method}_training_share", statistics.mean(r["training_share"] for r in rows))
    step.figure(f"{method}_answers_per_s", answers_per_second(run, 2))
    step.result["details"][method] = {"chunks": rows, "losses": [row["loss"] for row in last]}
    check_adapter(step, method, run / "chunks" / "002" / "adapter", 2 * 7 if step.cpu else LAYERS)
    step.save()


def main(step: Step, folder: Path) -> None:
    """Model, stream, StrLoRA, LoRA; the result is on disk after each."""
    place = room(step, folder)
    dtype = "float32" if step.cpu else "bfloat16"
    samples, questions = (4, 1) if step.cpu else (64, 8)
    try:
        made = write_model(place / "model", step.tokenizer, not step.cpu, step.device, dtype)
        for name, value in made.items():
            step.figure(f"model_{name}", value)
        step.save()
        write_stream(folder / "stream", 2, samples, questions, not step.cpu)
        small = [
            "model.dtype=float32", "launcher.cpu=true", "launcher.resident=true",
            "swift.dataloader_num_workers=0", "eval.max_new_tokens=4",
            "schedule.global_batch=2", "schedule.per_device_batch=1",
        ]  # fmt: skip
        real = ["launcher.resident=false", "eval.max_new_tokens=20", "schedule.global_batch=8",
                "schedule.per_device_batch=2"]  # fmt: skip
        words = [
            "internvl3.5-8b", f"model.path={place / 'model'}", f"data.stream={folder / 'stream'}",
            "data.chunks=2", "launcher.nproc=1", "launcher.deepspeed=null",
            "schedule.later.freeze_routers_from_chunk=0", "eval.every=2",
            "swift.include_num_input_tokens_seen=true",
            *(small if step.cpu else real),
        ]  # fmt: skip
        step.result["settings"] = {"words": words[3:], "samples_a_chunk": samples,
                                   "tokenizer": "real" if step.tokenizer else "tiny"}  # fmt: skip
        for method in ("strlora", "lora"):
            one_method(step, method, folder, words, samples)
    finally:
        if place != folder:
            shutil.rmtree(place, ignore_errors=True)
    ratio = step.result["figures"]["strlora_step_s"] / step.result["figures"]["lora_step_s"]
    step.figure("strlora_step_to_lora", ratio, **({} if step.cpu else {"at_most": 1.05}))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    sys.exit(Step("c_internvl_8b", __doc__).main(main))
