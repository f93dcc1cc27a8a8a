"""How well a router chose among adapters of single chunks (MR-LoRA), from the predictions alone.

The truth is the stream's own mixture: an adapter knows a task when its chunk held samples of it.
Two figures, because chunks of a stream share tasks:

    home       share of questions that went to the chunk with most samples of their task so far;
               on pure chunks (a task or domain each) this is the routing accuracy of MLLM-CL
    held       share of questions that went to any chunk that held their task

Tasks that no chunk held yet have no right adapter and are left out of both.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from eval.files import Record
from eval.predictions import read_predictions
from eval.stream import Stream, load_stream


def score_choices(predictions_dir: Path, stream_dir: Path, chunk: int) -> dict[str, Any]:
    """Return how the questions of each task were routed after `chunk`.

    By task: `n` questions, `experts` (chunk -> questions), `home`, `held` (parts of 1, null for a
    task not held yet), `illegal` (answers of the router that named no adapter), `unrouted`
    (questions without a record). Over all questions of held tasks: `home`, `held`; over all:
    `illegal`, `n`.

    Raises:
        ValueError: a prediction file does not fit the stream.
    """
    stream = load_stream(stream_dir)
    tasks = {
        path.stem: _task(read_predictions(predictions_dir, stream, path.stem), stream, chunk)
        for path in sorted(predictions_dir.glob("*.jsonl"))
    }
    judged = [entry for entry in tasks.values() if entry["home"] is not None]
    total = sum(entry["n"] for entry in judged)
    content: dict[str, Any] = {"chunk": chunk, "n": sum(e["n"] for e in tasks.values())}
    for key in ("home", "held"):
        right = sum(entry[key] * entry["n"] for entry in judged)
        content[key] = round(right / total, 6) if total else None
    content["illegal"] = sum(entry["illegal"] for entry in tasks.values())
    return {**content, "tasks": tasks}


def _task(lines: list[Record], stream: Stream, chunk: int) -> dict[str, Any]:
    task = str(lines[0]["task"]) if lines else ""
    counts = {c["index"]: c["tasks"].get(task, 0) for c in stream.chunks if c["index"] <= chunk}
    routed = [line["expert"] for line in lines if line.get("expert") is not None]
    experts = Counter(int(expert) for expert in routed)
    most = max(counts.values(), default=0)
    entry: dict[str, Any] = {"n": len(lines), "home": None, "held": None}
    if most and lines:
        home = sum(n for expert, n in experts.items() if counts.get(expert) == most)
        held = sum(n for expert, n in experts.items() if counts.get(expert))
        entry |= {"home": round(home / len(lines), 6), "held": round(held / len(lines), 6)}
    entry["illegal"] = sum(line.get("routed") is False for line in lines)
    entry["unrouted"] = len(lines) - len(routed)
    return {**entry, "experts": {str(c): n for c, n in sorted(experts.items())}}
