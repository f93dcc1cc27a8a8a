"""Runs the real `swift sft` and `swift infer` on the shipped tiny model."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from recipes.processes.command import Command, free_port
from tests.recipes.real_host import host_worker

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
    """Returns what the environment of a host process on CPU, offline, has of its own."""
    wanted = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if processes > 1:
        wanted |= {"NPROC_PER_NODE": str(processes), "MASTER_PORT": str(free_port())}
    return {**wanted, "PYTHONPATH": str(ROOT)}


def run(command: str, arguments: dict[str, object], processes: int = 1, **more: str) -> str:
    """Runs `swift COMMAND`; returns its output.

    Raises:
        AssertionError: it failed; the message ends with its output.
    """
    code, output = attempt(command, arguments, processes, **more)
    assert code == 0, output[-6000:]
    return output


def attempt(
    command: str, arguments: dict[str, object], processes: int = 1, **more: str
) -> tuple[int, str]:
    """Runs `swift COMMAND`; returns its exit code and its output.

    It is a fork of the resident worker, which imports the host once for all tests of a process:
    most of a short training's time is imports. tests/recipes starts the host as a program.
    """
    words: list[str] = []
    for name, value in arguments.items():
        words.append(f"--{name}")
        if isinstance(value, (list, tuple)):
            words += [str(item) for item in value]
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    wanted = Command(command, tuple(words), {**environment(processes), **more}, processes)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        code = host_worker().start(wanted, log).wait(timeout=600)
        return code, log.read_text(encoding="utf-8")


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
