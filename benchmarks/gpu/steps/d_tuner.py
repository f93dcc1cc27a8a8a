"""tuner_speed.py at the shape of Qwen3-8B: step, decoding and memory against PEFT LoRA."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step import Step, script

GOALS = {"step": 1.05, "memory": 1.05, "decode": 1.10}
SMALL = ["--hidden", "256", "--layers", "2", "--heads", "4", "--seq", "128", "--new-tokens", "4",
         "--repeats", "2", "--warmup", "1"]  # fmt: skip
FULL = ["--device", "cuda", "--dtype", "bfloat16", "--shape", "qwen3-8b", "--batch", "2",
        "--seq", "2048", "--new-tokens", "16", "--repeats", "5"]  # fmt: skip


def main(step: Step, folder: Path) -> None:
    """Runs the script with its profile and takes over its ratios; goals are for the GPU."""
    words = [*(SMALL if step.cpu else FULL), "--methods", "peft_lora", "strlora", "--profile"]
    report = script(step, folder, "benchmarks/tuner_speed.py", *words)
    for name in ("peft_lora", "strlora"):
        step.figure(f"{name}_step_ms", 1000 * report["figures"][name]["step"])
        step.figure(f"{name}_decode_ms", 1000 * report["figures"][name]["decode"])
        step.figure(f"{name}_memory_gib", report["figures"][name]["memory"] * 1e6 / 2**30)
    for name, limit in GOALS.items():
        ratio = report["relative_to_peft_lora"]["strlora"][name]
        step.figure(f"strlora_{name}_to_lora", ratio, **({} if step.cpu else {"at_most": limit}))


if __name__ == "__main__":
    sys.exit(Step("d_tuner", __doc__).main(main))
