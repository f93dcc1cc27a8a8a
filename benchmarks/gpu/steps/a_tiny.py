"""CUDA is usable; recipe `tiny` over two chunks on the GPU gives the CPU's losses and scores.

The CPU's own are in benchmarks/gpu/tiny_cpu.json, which is this step's result with --cpu.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step import Step, metrics, run_recipe, scores, step_seconds

REFERENCE = Path(__file__).resolve().parents[1] / "tiny_cpu.json"
FIRST = 5  # steps: later ones drift apart by rounding alone


def main(step: Step, folder: Path) -> None:
    """Checks arithmetic on the device, then runs the recipe and compares."""
    import torch

    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 512, dtype=torch.float64)
    product = (a.float().to(step.device) @ b.float().to(step.device)).cpu().double()
    error = float((product - a @ b).norm() / (a @ b).norm())
    step.figure("matmul_relative_error", error, at_most=1e-5)
    step.save()
    words = [
        "tiny",
        "data.chunks=2",
        "eval.limit=25",
        f"launcher.cpu={str(step.cpu).lower()}",
        "launcher.resident=false",
    ]
    step.result["settings"] = {"words": words}
    run_recipe(folder / "run", *words)
    found = scores(folder / "run")
    losses = {n: [row["loss"] for row in metrics(folder / "run", n)] for n in (1, 2)}
    step.result["details"] = {
        "scores": {f"{chunk} {task}": score for (chunk, task), score in found.items()},
        "losses": {str(n): values for n, values in losses.items()},
    }
    step.save()
    step.figure("step_ms", 1000 * step_seconds(metrics(folder / "run", 2)))
    if not REFERENCE.is_file():
        raise SystemExit(f"{REFERENCE} is missing")
    wanted = json.loads(REFERENCE.read_text("utf-8"))["details"]
    pairs = zip(losses[1][:FIRST], wanted["losses"]["1"][:FIRST], strict=True)
    step.figure("first_losses_off", max(abs(a / b - 1) for a, b in pairs), at_most=0.01)
    for chunk in (0, 1, 2):
        means = [
            statistics.mean(float(v) for k, v in each.items() if k.startswith(f"{chunk} "))
            for each in (step.result["details"]["scores"], wanted["scores"])  # type: ignore[index]
        ]
        step.figure(f"score_after_{chunk}", means[0])
        step.figure(f"score_after_{chunk}_off", abs(means[0] - means[1]), at_most=0.03)


if __name__ == "__main__":
    sys.exit(Step("a_tiny", __doc__).main(main))
