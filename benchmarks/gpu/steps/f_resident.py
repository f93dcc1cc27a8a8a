"""benchmarks/stream_overhead.py: the resident worker against a process each, recipe `tiny`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step import Step, script


def main(step: Step, folder: Path) -> None:
    """Two chunks both ways; the script itself fails when the adapters differ."""
    words = ["tiny", f"launcher.cpu={str(step.cpu).lower()}", "--chunks", "2"]
    report = script(step, folder, "benchmarks/stream_overhead.py", *words)
    for way, seconds in report["not_training_seconds_a_chunk"].items():
        step.figure(f"{way}_not_training_s", seconds)
    step.figure("fewer_times", report["ratio"], at_least=2.0)
    step.figure("resident_training_share", report["training_share"]["resident"])
    step.figure("adapters_differ", not report["same_adapters"], at_most=0)


if __name__ == "__main__":
    sys.exit(Step("f_resident", __doc__).main(main))
