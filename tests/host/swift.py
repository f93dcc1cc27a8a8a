"""Runs the real `swift sft` and `swift infer` on the shipped tiny model."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "assets" / "tiny_base"
PLUGIN = ROOT / "strlora_tuner" / "swift_plugins" / "routed_tuners.py"
HERE = Path(__file__).parent
QUESTIONS = {
    "colour": "<image>What color is the shape? Answer with one word.",
    "count": "<image>How many bars are there in this picture? Give a number.",
}
COLOURS = ("red", "green", "blue", "yellow")


def make_chunk(path: Path, samples: int, seed: int = 0) -> Path:
    """Writes `samples` image questions of two kinds, with answers of different lengths."""
    rng = random.Random(seed)
    (path.parent / "img").mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for index in range(samples):
            colour, count = rng.choice(COLOURS), rng.randint(1, 3)
            image = Image.new("RGB", (112, 112), "white")
            for bar in range(count):
                left = 8 + 34 * bar
                ImageDraw.Draw(image).rectangle([left, 20, left + 24, 90], fill=colour)
            picture = path.parent / "img" / f"{path.stem}-{index}.png"
            image.save(picture)
            kind = rng.choice(list(QUESTIONS))
            answer = colour if kind == "colour" else f"{count} {'bar' if count == 1 else 'bars'}"
            turns = [
                {"role": "user", "content": QUESTIONS[kind]},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": turns, "images": [str(picture)]}) + "\n")
    return path


def environment(processes: int = 1) -> dict[str, str]:
    """Returns the environment of a host process on CPU, offline."""
    wanted = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if processes > 1:
        wanted |= {"NPROC_PER_NODE": str(processes), "MASTER_PORT": str(29600 + os.getpid() % 300)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **wanted, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(command: str, arguments: dict[str, object], processes: int = 1, **more: str) -> str:
    """Runs `swift COMMAND`; returns its output.

    Raises:
        AssertionError: it failed; the message ends with its output.
    """
    done = attempt(command, arguments, processes, **more)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def attempt(
    command: str, arguments: dict[str, object], processes: int = 1, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs `swift COMMAND` and returns the finished process, whatever its status."""
    argv = [sys.executable, "-m", "swift.cli.main", command]
    for name, value in arguments.items():
        argv.append(f"--{name}")
        if isinstance(value, (list, tuple)):
            argv += [str(item) for item in value]
        else:
            argv.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return subprocess.run(
        argv,
        env={**environment(processes), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        cwd=ROOT,
    )


def train_arguments(data: Path, out: Path, **changes: object) -> dict[str, object]:
    """Returns the arguments of a short StrLoRA training; `changes` override or add."""
    options = {"strlora_router_dim": 8, **changes.pop("options", {})}  # type: ignore[dict-item]
    arguments: dict[str, object] = {
        "model": MODEL,
        "external_plugins": [PLUGIN],
        "tuner_type": "strlora",
        "callbacks": ["strlora"],
        "model_kwargs": options,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0,
        "dataset": data,
        "check_model": "false",
        "torch_dtype": "float32",
        "bf16": "false",
        "fp16": "false",
        "use_cpu": "true",
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_only_model": "true",
        "eval_strategy": "no",
        "split_dataset_ratio": 0,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "add_version": "false",
        "report_to": "none",
        "output_dir": out,
    }
    return {**arguments, **changes}


def logged(out: Path) -> list[dict[str, float]]:
    """Returns the training log's steps, numbers as floats."""
    steps = []
    for line in (out / "logging.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            steps.append({k: float(v) for k, v in entry.items() if _is_number(v)})
    return steps


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
