"""What the steps of accept.sh share: arguments, the result's file, runs of a recipe."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from results import FORMAT, Result, goal

from recipes.processes.machine import git, gpus, hardware, versions

ROOT = Path(__file__).resolve().parents[2]
STREAM = ROOT / "data" / "mini-tiny"


def card(cpu: bool) -> dict[str, object]:
    """Returns name, memory and driver of the first GPU, or the machine's processor."""
    about: dict[str, object] = {"name": "cpu", "cores": hardware()["cores"]}
    if cpu:
        return about
    import torch

    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return about | {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": f"driver {driver[0]}" if driver else None,
        "cuda": torch.version.cuda,
    }


class Step:
    """One step: its arguments, and its result, which is on disk after every `save`."""

    def __init__(self, name: str, doc: str | None) -> None:
        parser = argparse.ArgumentParser(description=doc)
        parser.add_argument("--cpu", action="store_true", help="small shapes, without a GPU")
        parser.add_argument("--out", type=Path, required=True, help="the result's folder")
        parser.add_argument("--tokenizer", type=Path, help="a folder with a real tokenizer")
        options = parser.parse_args()
        self.cpu: bool = options.cpu
        self.tokenizer: Path | None = options.tokenizer
        self.device = "cpu" if self.cpu else "cuda"
        self.started = time.monotonic()
        about = card(self.cpu)
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", str(about["name"])).strip("-")
        self.path = options.out / slug / f"{name}.json"
        self.result: Result = {
            "format": FORMAT,
            "step": name,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "complete": False,
            "card": about,
            "versions": versions(),
            "commit": git(ROOT),
            "settings": {},
            "figures": {},
            "goals": [],
            "details": {},
        }

    def figure(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Records and prints a figure; its goal, too, where it has one."""
        self.result["figures"][name] = value = round(float(value), 6)
        text = f"{name} = {value:g}"
        for sense, limit in (("at most", at_most), ("at least", at_least)):
            if limit is not None:
                wanted = goal(name, value, sense, limit)
                self.result["goals"].append(wanted)
                text += f"   (goal: {sense} {limit:g}: {'met' if wanted['met'] else 'MISSED'})"
        print(text, flush=True)

    def save(self, complete: bool = False) -> None:
        """Writes the result as it stands."""
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        self.result["complete"] = complete
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: accept.sh stops a step in the middle when its time is over.
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def main(self, work: Callable[[Step, Path], None]) -> int:
        """Runs `work` in a temporary folder; the result is complete when it returns."""
        with tempfile.TemporaryDirectory(prefix="strlora-accept-") as name:
            work(self, Path(name))
        self.save(complete=True)
        return 0 if all(each["met"] for each in self.result["goals"]) else 3


class GpuMemory:
    """The most memory in use on the first GPU, in GiB, by nvidia-smi, twice a second."""

    def __init__(self) -> None:
        self.most = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GpuMemory:
        if gpus():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        # Training runs in processes of its own, whose torch cannot be asked from here.
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.5):
            words = subprocess.run(query, capture_output=True, text=True).stdout.split()
            if words and words[0].isdigit():
                self.most = max(self.most, int(words[0]) / 1024)


def script(step: Step, folder: Path, *words: str) -> dict[str, Any]:
    """Runs a benchmark of ours with this interpreter; returns its JSON, the step's details.

    Raises:
        SystemExit: it failed.
    """
    file = folder / "report.json"
    words = (*words, "--json", str(file))
    step.result["settings"] = {"words": list(words[1:-2])}
    print("$ " + " ".join(["python", *words]), flush=True)
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        raise SystemExit(f"{' '.join(words)} ended with exit code {code}")
    report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    step.result["details"] = report
    return report


def run_recipe(folder: Path, *words: str) -> None:
    """Runs a recipe through the orchestrator, with the command of a user."""
    command = ["bash", "recipes/run_stream.sh", "--no-setup", *words, f"run_dir={folder}"]
    print("$ " + " ".join(command), flush=True)
    code = subprocess.run(command, cwd=ROOT, env={**environment(), "PYTHON": sys.executable})
    if code.returncode:
        for log in sorted(folder.glob("chunks/*/*.log")):
            print(f"--- {log}\n{log.read_text('utf-8', 'replace')[-3000:]}", flush=True)
        raise SystemExit(f"{' '.join(words)} ended with exit code {code.returncode}")


def environment() -> dict[str, str]:
    """This process's environment, for one that needs no network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def metrics(folder: Path, chunk: int) -> list[dict[str, Any]]:
    """Returns what the host logged at every step of a chunk."""
    path = folder / "chunks" / f"{chunk:03d}" / "train_metrics.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def step_seconds(rows: list[dict[str, Any]]) -> float:
    """Returns the median seconds a step, the first (which warms up) left out.

    The host logs the mean over all steps so far; the time of step k is k times its mean less what
    all steps before it took.
    """
    ends = [n * float(row["train_speed(s/it)"]) for n, row in enumerate(rows, start=1)]
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(steps) if steps else float("nan")


def answers_per_second(folder: Path, chunk: int) -> float:
    """Returns the questions a second that the host itself counted: generating alone, no start."""
    path = folder / "chunks" / f"{chunk:03d}" / "eval.log"
    found = re.findall(r"'samples/s': ([0-9.]+)", path.read_text("utf-8", "replace"))
    return float(found[-1]) if found else float("nan")


def scores(folder: Path) -> dict[tuple[int, str], float]:
    """Returns (chunk, task) -> score from matrix.csv."""
    lines = (folder / "matrix.csv").read_text("utf-8").splitlines()[1:]
    rows = (line.split(",") for line in lines)
    return {(int(chunk), task): float(score) for chunk, task, score, *_ in rows}
