"""Speed and memory of data_prep.chunk and data_prep.check, against plain `datasets`, in one run.

    python benchmarks/data_speed.py --records 20000 200000 1000000 --images 10000 --json speed.json
    python benchmarks/data_speed.py --records --images 50000 --pixels 112 112 --no-datasets

Every measurement is a process of its own; seconds are wall clock, start-up included, and processor
seconds count all its processes; memory is the peak of the process and of its largest child.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
# Runs the rest of its arguments as a program, then prints peak memory in KiB: self, largest child.
WRAP = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("PEAK", *(u.ru_maxrss for u in used), sum(u.ru_utime + u.ru_stime for u in used))
"""
LOAD = """
import sys
from datasets import disable_progress_bars, load_dataset
disable_progress_bars()
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
print(sum(len(row["messages"]) for row in rows))
"""
LOAD_IMAGES = """
import sys
from pathlib import Path
from datasets import Image, List, disable_progress_bars, load_dataset
disable_progress_bars()
root = Path(sys.argv[1])
rows = load_dataset("json", data_files=str(root / "chunks/001.jsonl"), split="train",
                    cache_dir=sys.argv[2])
rows = rows.map(lambda row: {"images": [str(root / name) for name in row["images"]]})
rows = rows.cast_column("images", List(Image()))
print(sum(image.size[0] for row in rows for image in row["images"] if image.load()))
"""
DECODE = """
import os, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from PIL import Image

def decode(path):
    with Image.open(path) as image:
        image.load()
        return image.size[0]

if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).glob("images/*.*"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        print(sum(pool.map(decode, paths, chunksize=64)))
"""


def measure(arguments: list[str]) -> dict[str, float]:
    """Run a program in a process of its own; return seconds and peak memory in MB."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WRAP, *arguments], capture_output=True, text=True, env=environment
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    own, child, cpu = (float(word) for word in done.stdout.split("PEAK")[1].split())
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "mb": round(own / 1024),
        "child_mb": round(child / 1024),
    }


def write_records(path: Path, count: int) -> None:
    """Write `count` samples in LLaVA's form, about 300 bytes each."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = f"<image>\nWhat is in picture {number}? Answer in one word, please."
            record = {
                "id": f"s{number}",
                "image": f"pictures/{number % 5000:06d}.jpg",
                "conversations": [
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": ("a cat", "a red car", "nothing")[number % 3]},
                ],
                "task": "ABC"[number % 3],
            }
            file.write(json.dumps(record) + "\n")


def write_host(source: Path, target: Path) -> None:
    """Write the samples of `source` in the host's form, for plain `datasets` to load."""
    with source.open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as out:
        for line in rows:
            record = json.loads(line)
            roles = zip(("user", "assistant"), record["conversations"], strict=True)
            turns = [{"role": role, "content": turn["value"]} for role, turn in roles]
            content = {"messages": turns, "images": [record["image"]], "id": record["id"]}
            out.write(json.dumps(content | {"task": record["task"]}) + "\n")


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write a stream folder of `count` samples with a picture of soft noise each.

    Every fourth is a PNG, the others JPEG (about 15 kB at 448 x 336 pixels).
    """
    import numpy as np
    from PIL import Image

    state = np.random.RandomState(0)
    (folder / "images").mkdir(parents=True)
    (folder / "chunks").mkdir()
    with (folder / "chunks/001.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            coarse = state.randint(0, 256, (size[1] // 8, size[0] // 8, 3)).astype("uint8")
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            name = f"images/{number:06d}.{'jpg' if number % 4 else 'png'}"
            picture.save(folder / name, None, **({"quality": 85} if number % 4 else {}))
            turns = [
                {"role": "user", "content": f"<image>\nWhat is number {number}?"},
                {"role": "assistant", "content": "noise"},
            ]
            record = {"messages": turns, "images": [name], "task": "noise", "id": str(number)}
            file.write(json.dumps(record) + "\n")


def chunking(folder: Path, count: int) -> dict[str, Any]:
    """Return seconds and memory of chunk and of `datasets` on `count` samples."""
    source, host = folder / f"{count}.jsonl", folder / f"{count}.host.jsonl"
    write_records(source, count)
    write_host(source, host)
    load = folder / "load.py"
    load.write_text(LOAD)
    out = folder / f"out-{count}"
    ours = measure(["data_prep.chunk", "--source", str(source), "--out", str(out)])
    peer = measure([str(load), str(host), str(folder / f"cache-{count}")])
    return _row(count, {"chunk": ours, "datasets": peer}, "chunk", "datasets")


def checking(
    folder: Path, count: int, size: tuple[int, int], repeats: int, datasets: bool
) -> dict[str, Any]:
    """Return seconds and memory of check, of `datasets` and of bare decoding on all cores.

    Decoding and check alternate; the ratios are medians over the pairs.
    """
    stream = folder / "pictures"
    write_pictures(stream, count, size)
    load, decode = folder / "load_images.py", folder / "decode.py"
    load.write_text(LOAD_IMAGES)
    decode.write_text(DECODE)
    report = ["--report", str(folder / "report.json"), "--allow", "manifest-missing"]
    pairs = []
    for _ in range(repeats):
        bare = measure([str(decode), str(stream)])
        pairs.append((bare, measure(["data_prep.check", str(stream), *report])))
    runs = {"decode": pairs[-1][0], "check": pairs[-1][1]}
    if datasets:
        runs["datasets"] = measure([str(load), str(stream), str(folder / "cache-images")])
    row = _row(count, runs, "check", "datasets" if datasets else "decode")
    row["pixels"] = list(size)
    for key, name in (("seconds", "check_over_decode"), ("cpu_seconds", "check_over_decode_cpu")):
        ratios = [check[key] / bare[key] for bare, check in pairs]
        row[name] = round(statistics.median(ratios), 2)
        row[f"{name}_each"] = [round(ratio, 2) for ratio in ratios]
    return row


def _row(count: int, runs: dict[str, dict[str, float]], ours: str, peer: str) -> dict[str, Any]:
    for run in runs.values():
        run["records_per_second"] = round(count / run["seconds"])
    ratio = runs[peer]["seconds"] / runs[ours]["seconds"]
    return {"records": count, **runs, f"speed_{ours}_over_{peer}": round(ratio, 2)}


def main() -> None:
    """Measure, print a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--records", type=int, nargs="*", default=[20_000, 200_000])
    parser.add_argument("--images", type=int, default=5_000, help="0: leave checking out")
    parser.add_argument("--pixels", type=int, nargs=2, default=[448, 336], help="of a picture")
    parser.add_argument("--repeats", type=int, default=1, help="of decoding and checking")
    parser.add_argument("--no-datasets", action="store_true", help="check against decoding only")
    parser.add_argument("--json", type=Path, help="keep the result")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["chunking"] = [chunking(folder, count) for count in args.records]
        if args.images:
            size, repeats = (args.pixels[0], args.pixels[1]), args.repeats
            result["checking"] = checking(folder, args.images, size, repeats, not args.no_datasets)
    if args.records:
        result["memory_growth"] = _growth(result["chunking"])
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    growth = rows[-1]["chunk"]["mb"] / rows[0]["chunk"]["mb"]
    return {
        "records": round(rows[-1]["records"] / rows[0]["records"], 1),
        "chunk": round(growth, 2),
        "datasets": round(rows[-1]["datasets"]["mb"] / rows[0]["datasets"]["mb"], 2),
    }


if __name__ == "__main__":
    main()
