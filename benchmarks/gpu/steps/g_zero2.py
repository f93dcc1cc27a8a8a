"""DeepSpeed ZeRO-2 with one process: recipe `tiny`, one chunk, with DeepSpeed and without."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step import Step, metrics, run_recipe, step_seconds

FIRST = 5


def main(step: Step, folder: Path) -> None:
    """Runs both ways in float32 and compares losses and adapters."""
    import torch
    from safetensors.torch import load_file

    words = ["tiny", "data.chunks=1", "eval.limit=1", f"launcher.cpu={str(step.cpu).lower()}",
             "launcher.kind=torchrun", "launcher.resident=false"]  # fmt: skip
    step.result["settings"] = {"words": words}
    losses, adapters = {}, {}
    for way, value in (("plain", "null"), ("zero2", "zero2")):
        run = folder / way
        run_recipe(run, *words, f"launcher.deepspeed={value}")
        rows = metrics(run, 1)
        losses[way] = [row["loss"] for row in rows]
        step.figure(f"{way}_step_ms", 1000 * step_seconds(rows))
        adapters[way] = load_file(run / "chunks/001/adapter/adapter_model.safetensors")
        step.save()
    pairs = list(zip(losses["plain"][:FIRST], losses["zero2"][:FIRST], strict=True))
    step.figure("first_losses_off", max(abs(b / a - 1) for a, b in pairs), at_most=0.01)
    missing = adapters["plain"].keys() ^ adapters["zero2"].keys()
    step.figure("tensors_differ_in_name", len(missing), at_most=0)
    kinds = [t.dtype for t in adapters["zero2"].values() if t.is_floating_point()]
    step.figure("tensors_not_float32", sum(k is not torch.float32 for k in kinds), at_most=0)


if __name__ == "__main__":
    sys.exit(Step("g_zero2", __doc__).main(main))
