"""eval_speed.py at the shape of InternVL3.5-8B: batches against one question at a time."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step import STREAM, Step, script

SMALL = ["--samples", "1", "--max-new-tokens", "8"]
FULL = ["--device", "cuda", "--shape", "internvl3.5-8b", "--samples", "8", "--max-new-tokens", "16"]


def main(step: Step, folder: Path) -> None:
    """Runs the script and takes over its figures; the goal is for the GPU."""
    words = [*(SMALL if step.cpu else FULL), "--repeats", "1", "--stream", str(STREAM)]
    report = script(step, folder, "benchmarks/eval_speed.py", *words)
    rates = report["samples_per_second"]
    step.figure("one_by_one_answers_per_s", rates["published"])
    step.figure("batched_answers_per_s", rates["ours"])
    step.figure("faster_times", report["speedup"], **({} if step.cpu else {"at_least": 10.0}))
    # Sums in another order may turn an answer of random weights: told, no goal.
    step.figure("same_answers_share", report["same_answers"] / report["samples"])


if __name__ == "__main__":
    sys.exit(Step("e_evaluation", __doc__).main(main))
