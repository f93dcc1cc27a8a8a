"""Builds a stream and a run folder for tests: invented answers, nothing that was ever measured."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from data_prep.files import sha256_file, write_jsonl
from eval.matrix import append_scores
from eval.predictions import chunk_scores, split_results

COLOURS = ["red", "green", "blue", "orange"]
TITLES = ["The Quiet Harbour", "Nine Letters", "A Winter Road", "Salt and Stone"]
SCORERS = {
    "VQAv2": "vqa",
    "OCRVQA": "exact",
    "Fin": "choice",
    "Grounding": "grounding",
    "TextCaps": "caption",
}
PROMPTS = {
    "VQAv2": "What colour is shape {n}? Answer with one word.",
    "OCRVQA": "What is written on cover {n}?",
    "Fin": "Does chart {n} rise? A. yes B. no",
    "Grounding": "Where is shape {n}? Give [x1, y1, x2, y2].",
    "TextCaps": "Describe picture {n} in one sentence.",
}


def _gold(task: str, draw: random.Random) -> dict[str, Any]:
    if task == "VQAv2":
        return {"answer": draw.choice(COLOURS)}
    if task == "OCRVQA":
        return {"answer": draw.choice(TITLES)}
    if task == "Fin":
        return {"answer": draw.choice("AB")}
    if task == "Grounding":
        x, y = draw.randint(5, 40) / 100, draw.randint(5, 40) / 100
        box = f"[{x:.2f}, {y:.2f}, {x + 0.4:.2f}, {y + 0.4:.2f}]"
        return {"answer": box, "answer_bbox": box, "size": [112, 112]}
    colour, shape = draw.choice(COLOURS), draw.choice(["square", "circle", "house"])
    texts = [f"A {colour} {shape} on a table.", f"a {shape} that is {colour}", f"{colour} {shape}"]
    return {"answer": texts[0], "references": texts}


def _wrong(task: str, draw: random.Random) -> str:
    guesses = {"Fin": "C", "Grounding": "[0.90, 0.90, 0.99, 0.99]", "TextCaps": "something"}
    return guesses.get(task, draw.choice(["purple", "none at all"]))


def make_stream(folder: Path, tasks: list[str], chunks: int, tests: int = 20) -> Path:
    """Write a stream folder with `tests` test samples a task; chunks hold text only."""
    draw = random.Random(7)
    records = {t: [_test_record(folder, t, n, draw) for n in range(tests)] for t in tasks}
    tested = {t: _file_entry(folder, f"test/{t}.jsonl", lines) for t, lines in records.items()}
    mixtures = [_mixture(tasks, chunk, draw) for chunk in range(1, chunks + 1)]
    manifest = {
        "format": "strlora-stream/1",
        "name": "fixture-stream",
        "seed": 7,
        "tasks": {
            task: {
                "scorer": SCORERS.get(task, "vqa"),
                "test": entry.pop("file"),
                **entry,
                "majority": 0.2,
            }
            for task, entry in tested.items()
        },
        "chunks": [
            {"index": i, **_file_entry(folder, f"chunks/{i:03d}.jsonl", _chunk(i, m)), "tasks": m}
            for i, m in enumerate(mixtures, start=1)
        ],
    }
    (folder / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _file_entry(folder: Path, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    write_jsonl(folder / name, records)
    return {"file": name, "samples": len(records), "sha256": sha256_file(folder / name)}


def _chunk(index: int, mixture: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{task}-{index}-{n}",
            "task": task,
            "messages": [
                {"role": "user", "content": PROMPTS.get(task, "{n}?").format(n=n)},
                {"role": "assistant", "content": "yes"},
            ],
        }
        for task, samples in mixture.items()
        for n in range(samples)
    ]


def _mixture(tasks: list[str], chunk: int, draw: random.Random) -> dict[str, int]:
    chosen = [tasks[(chunk - 1) % len(tasks)], *draw.sample(tasks, k=min(2, len(tasks)))]
    weights = {task: draw.randint(20, 100) for task in dict.fromkeys(chosen)}
    return {task: round(300 * w / sum(weights.values())) for task, w in weights.items()}


def _test_record(folder: Path, task: str, n: int, draw: random.Random) -> dict[str, Any]:
    fields = _gold(task, draw)
    answer = fields.pop("answer")
    image = f"images/test/{task}/{n:06d}.png"
    path = folder / image
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (112, 112), "white")
    ink = answer if answer in COLOURS else draw.choice(COLOURS)
    ImageDraw.Draw(picture).rectangle((20 + n % 30, 25, 70 + n % 30, 85), fill=ink)
    picture.save(path)
    prompt = PROMPTS.get(task, task + " question {n}").format(n=n)
    turns = [("user", "<image>" + prompt), ("assistant", answer)]
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "images": [image],
        "task": task,
        "id": f"{task}-test-{n:06d}",
        **fields,
    }


def host_results(stream: Path, tasks: list[str], skill: dict[str, float], seed: int) -> list[dict]:
    """Return lines as `swift infer` writes them, right with probability `skill[task]`."""
    draw = random.Random(seed)
    lines = []
    for task in tasks:
        for line in (stream / "test" / f"{task}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            right = draw.random() < skill[task]
            answer = record["messages"][-1]["content"] if right else _wrong(task, draw)
            said = {"role": "assistant", "content": answer}
            lines.append(
                {
                    "response": answer,
                    "labels": None,
                    "logprobs": None,
                    "messages": [*record["messages"][:-1], said],
                    "images": [{"bytes": None, "path": path} for path in record["images"]],
                    "dataset": "val.jsonl",
                }
            )
    return lines


def make_run(root: Path, chunks: int = 8, done: int = 8, tests: int = 20,
             tasks: list[str] | None = None, routed: bool = True) -> tuple[Path, Path]:  # fmt: skip
    """Write a stream and a run of `done` of `chunks` chunks; return (run folder, stream folder)."""
    names = list(SCORERS) if tasks is None else tasks
    stream = make_stream(root / "data" / "fixture", names, chunks, tests)
    manifest = json.loads((stream / "stream.json").read_text("utf-8"))
    run = root / "runs" / "fixture"
    skill = dict.fromkeys(names, 0.03)
    for chunk in range(done + 1):
        folder = run / "chunks" / f"{chunk:03d}"
        if chunk:
            _learn(skill, manifest["chunks"][chunk - 1]["tasks"])
            _write_training(folder, chunk)
            if routed:
                _write_routing(folder, stream, names, chunk)
        _answer(folder, stream, names, skill, chunk)
        scores = chunk_scores(folder / "predictions", stream)
        (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
        append_scores(run / "matrix.csv", chunk, scores)
    _write_state(run, stream, chunks, done)
    return run, stream


def second_run(run: Path, method: str = "lora") -> Path:
    """Copy a run as another method with other answers; return its folder."""
    other = run.with_name(f"{run.name}-{method}")
    shutil.copytree(run, other)
    manifest = json.loads((other / "manifest.json").read_text("utf-8"))
    stream = Path(manifest["data"]["stream"])
    tasks = list(json.loads((stream / "stream.json").read_text("utf-8"))["tasks"])
    manifest["recipe"]["method"] = method
    (other / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for folder in sorted((other / "chunks").iterdir())[1:]:
        (folder / "routing.json").unlink(missing_ok=True)
        _answer(folder, stream, tasks, dict.fromkeys(tasks, 0.4), 900 + int(folder.name))
        append_scores(
            other / "matrix.csv", int(folder.name), chunk_scores(folder / "predictions", stream)
        )
    return other


def _answer(
    folder: Path, stream: Path, tasks: list[str], skill: dict[str, float], seed: int
) -> None:
    """Write prediction files into a folder."""
    lines = host_results(stream, tasks, skill, seed)
    results = folder / "answers.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    split_results(results, stream, folder / "predictions")


def ablate_run(run: Path, stream: Path, names: list[str], chunk: int) -> None:
    """Write what `recipes.ablate` leaves: predictions of a weaker model for every ablation."""
    tasks = list(json.loads((stream / "stream.json").read_text("utf-8"))["tasks"])
    for number, name in enumerate(names):
        _answer(run / "ablation" / name, stream, tasks, dict.fromkeys(tasks, 0.2), 50 + number)


def _learn(skill: dict[str, float], mixture: dict[str, int]) -> None:
    for task in skill:
        samples = mixture.get(task, 0)
        skill[task] += (0.95 - skill[task]) * min(samples / 200, 0.8) if samples else 0.0
        skill[task] *= 1.0 if samples else 0.86


def _write_training(folder: Path, chunk: int) -> None:
    draw = random.Random(chunk)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "loss": 0.4 + 2.6 * 0.93**step + 0.1 * draw.random(),
            "stability_loss": 0.0 if chunk == 1 else 0.002 * step**0.5 + 0.001 * draw.random(),
            "global_step/max_steps": f"{step}/38",
            "memory(GiB)": 0.5 + 0.01 * (step % 7) + 0.1 * chunk,
        }
        for step in range(1, 39)
    ]
    lines.append({"train_runtime": 20.0, "train_loss": 1.0, "global_step/max_steps": "38/38"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "train_metrics.jsonl").write_text(text, encoding="utf-8")


def _write_routing(folder: Path, stream: Path, tasks: list[str], chunk: int) -> None:
    """Write routing.json as the tuner does: experts of a task differ by layer and move by chunk."""
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "down")]
    layers = [f"model.language_model.layers.{n}.{part}" for n in range(4) for part in parts]
    draw = random.Random(100 + chunk)
    groups, instructions = [], []
    for number, task in enumerate(tasks):
        lines = (stream / "test" / f"{task}.jsonl").read_text("utf-8").splitlines()
        pairs = [((number + n // 8) % 4, (number + n // 8 + 1 + n % 2) % 4) for n in range(24)]
        first = round(0.5 + 0.04 * (chunk % 8), 5)
        use = [[first if e == a else round(1 - first, 5) if e == b else 0.0 for e in range(4)]
               for a, b in pairs]  # fmt: skip
        sets = [{str(2**a | 2**b): 0.75, str(2**a | 2 ** ((a + 3) % 4)): 0.25} for a, b in pairs]
        kept = [[sum(w for m, w in found.items() if int(m) >> e & 1) for e in range(4)]
                for found in sets]  # fmt: skip
        groups.append(
            {"name": task, "rows": float(len(lines)), "use": use, "selected": kept,
             "task_entropy": [round(draw.uniform(0.4, 1.3), 5) for _ in layers],
             "token_entropy": [round(draw.uniform(0.1, 0.6), 5) for _ in layers], "sets": sets}
        )  # fmt: skip
        for line in lines[:12]:
            text = json.loads(line)["messages"][0]["content"].replace("<image>", "")
            point = [round(draw.gauss(3 * (number % 3), 1), 5), round(draw.gauss(number, 1), 5)]
            instructions.append({"text": text, "group": task, "rows": 1, "vector": point,
                                 "kept": [None if n == chunk else 3 << draw.randint(0, 2)
                                          for n in range(len(layers))]})  # fmt: skip
    pairs_of_tasks = len(tasks) * (len(tasks) - 1) // 2
    content = {
        "format": 2,
        "ablation": None,
        "layers": layers,
        "num_experts": 4,
        "top_k": 2,
        "rows": sum(group["rows"] for group in groups),
        "groups": groups,
        "cka": [[round(draw.random(), 5) for _ in range(pairs_of_tasks)] for _ in layers],
        "vector_cosine": [[1.0 if a == b else 0.5 for a in tasks] for b in tasks],
        "vector_variance": [0.6, 0.3],
        "instructions": instructions,
    }
    (folder / "routing.json").write_text(json.dumps(content), encoding="utf-8")


def _write_state(run: Path, stream: Path, chunks: int, done: int) -> None:
    records = [
        {"index": i, "trained": i > 0, "evaluated": True, "steps": 38 if i else 0,
         "train_seconds": 21.5 * (i > 0), "eval_seconds": 9.25, "loss": 0.5}
        for i in range(done + 1)
    ]  # fmt: skip
    state = {"format": 1, "done": done, "finished": done == chunks, "chunks": records}
    manifest = {
        "format": 1,
        "name": "fixture",
        "started": "2026-11-22T02:00:00+00:00",
        "git": {"sha": "0" * 40, "dirty": False},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "ms-swift": "4.6.0"},
        "hardware": {"cpu": "2 cores"},
        "recipe": {"method": "strlora", "model": {"path": "assets/tiny_base"}},
        "tuner": {"preset": "paper", "num_experts": 4, "top_k": 2},
        "data": {
            "stream": str(stream),
            "name": "fixture-stream",
            "sha256": "1" * 64,
            "chunks": ["2" * 64] * chunks,
        },
        "seed": 0,
        "processes": 1,
        "global_batch": 8,
    }
    (run / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (run / "recipe.yaml").write_text("name: fixture\nmethod: strlora\n", encoding="utf-8")
