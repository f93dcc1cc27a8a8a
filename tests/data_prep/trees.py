"""Builds small trees in the layout of the published benchmarks, with real image files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from data_prep.published.benchmarks import MLLM_CL, STRCVIT, Benchmark, Task

ROOT = "<STRCVIT_IMAGE_ROOT>"
IMAGE = {
    "AD": "AD/images/drivelm/stitch/{}.jpg",
    "ChartQA": "ChartQA/train/{}.png",
    "Fin": "Fin/images/train/{}.png",
    "GQA": "GQA/images/{}.jpg",
    "Grounding": "COCO2014/train2014/{}.jpg",
    "ImageNet": "ImageNet_withlabel/train/n01440764/{}.jpg",
    "OCRVQA": "OCR-VQA/images/{}.jpg",
    "Places365": "Places/train_256/{}.jpg",
    "RS": "RS/images/{}.png",
    "TextCaps": "Textcaps/{}.jpg",
    "VQAv2": "COCO2014/val2014/{}.jpg",
}
QUESTION = {"Grounding": "Give the bounding box of the cat.", "TextCaps": "Describe the picture."}
ANSWER = {"Grounding": "[0.10, 0.20, 0.50, 0.60]", "TextCaps": "a sign that says stop"}


def picture(path: Path, number: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """Write a picture of random pixels, another for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = Random(f"{number}/{path.parent}/{path.name}").randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def strcvit(folder: Path, chunks: int = 3, samples: int = 22, tests: int = 3) -> tuple[Path, Path]:
    """Build a small StrCVIT in `folder`; return its source and its image root.

    Odd chunks hold the host's form, even ones LLaVA's.
    """
    source, images = folder / "source", folder / "images"
    tasks = list(STRCVIT)
    for chunk in range(1, chunks + 1):
        rows = [_train(images, tasks[n % 11], chunk, n) for n in range(samples)]
        write_json(source / "train" / f"data_{chunk:03d}.json", rows)
    for task in tasks:
        rows = [_test(images, task, n) for n in range(tests)]
        write_json(source / "test" / task / "test.json", rows * 2)
        if task in ("Places365", "TextCaps", "VQAv2"):
            write_json(source / "test" / task / "val_proxy.json", rows)
        elif task != "ChartQA":
            write_json(source / "test" / task / "test_proxy.json", rows)
    counts = {f"train/data_{n:03d}.json": samples for n in range(1, chunks + 1)}
    write_json(
        source / "manifest.json", {"files": [{"path": p, "samples": n} for p, n in counts.items()]}
    )
    write_json(source / "train" / "record.json", {"note": "not a chunk"})
    return source, images


def _train(images: Path, task: str, chunk: int, number: int) -> dict[str, Any]:
    name = IMAGE[task].format(f"train_{chunk}_{number}")
    picture(images / name, number)
    question, answer = QUESTION.get(task, f"What is {number}? Short."), ANSWER.get(task, "yes")
    if chunk % 2:
        turns = [
            {"role": "user", "content": f"<image>\n{question}"},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": turns, "images": [f"{ROOT}/{name}"], "origin": f"set-{number}"}
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": f"{ROOT}/{name}", "conversations": turns, "origin": "llava"}


def _test(images: Path, task: str, number: int) -> dict[str, Any]:
    name = IMAGE[task].format(f"test_{number}")
    picture(images / name, 1000 + number)
    row: dict[str, Any] = {
        "question_id": number,
        "image": f"{ROOT}/{name}",
        "text": QUESTION.get(task, f"What is test {number}?"),
        "answer": "no",
    }
    if task == "Grounding":
        row |= {"answer": None, "answer_bbox": "[0.1, 0.2, 0.5, 0.6]", "size": [40, 30]}
    if task == "TextCaps":
        row["answer"] = [f"caption {n} of {number}" for n in range(5)]
    return row


def mllm_cl(folder: Path, benchmark: str = "DCL", train: int = 30, tests: int = 4) -> Path:
    """Build a small MLLM-CL in `folder`; return it."""
    for task in (each.name for each in MLLM_CL[benchmark].tasks):
        rows = []
        for number in range(train):
            picture(folder / task / "images" / f"{number}.png", number)
            question = {"from": "human", "value": f"<image>\nWhat is {task} {number}?"}
            rows.append(
                {
                    "id": f"{task}-{number}",
                    "image": f"{task}/images/{number}.png" if number % 2 else f"{number}.png",
                    "conversations": [question, {"from": "gpt", "value": f"answer {number % 3}"}],
                }
            )
        write_json(folder / task / "train.json", rows)
        ending = "_test" if benchmark == "ACL" else ""
        rows = []
        for number in range(tests):
            picture(folder / f"{task}{ending}" / "images" / f"t{number}.png", 1000 + number)
            rows.append(
                {
                    "question_id": number // 2,  # published ids repeat
                    "image": f"images/t{number}.png",
                    "text": f"<image>\nWhat is {task} test {number}?",
                    "answer": f"answer {number}",
                }
            )
        write_json(folder / f"{task}{ending}" / "test.json", rows)
    return folder


SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
CAPTION = "What is happening in the image?\nGenerate a brief caption for the image."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: the box"
BOX = "[0.10, 0.20, 0.50, 0.60]"
ASKED = {  # question and answers of a task, as published; "How many?" and a number else
    "ImageNet-R": (f"What is the object in the image?{SHORT}", ("Tench", "Goldfish")),
    "ArxivQA": (f"Which curve is higher?{LETTER}", ("A", "B")),
    "VizWiz": (f"What is this?{SHORT}", ("Soda", "unanswerable")),
    "ScienceQA": (f"Which colour is it?{LETTER}", ("A", "B")),
    "TextVQA": (f"What does it say?{SHORT}", ("stop", "exit")),
    "ImageNet": (f"What is the object in the image?{SHORT}", ("Tench", "Brambling")),
    "Grounding": (REGION, (BOX,)),
    "OCRVQA": (f"Who wrote this book?{SHORT}", ("Jane Austen", "Ursula K. Le Guin")),
}


def task_files(folder: Path, benchmark: Benchmark, train: int = 12, tests: int = 4) -> Path:
    """Build a small UCIT or CoIN in `folder` as published; return it."""
    place, root = folder / benchmark.places[0], folder / benchmark.pictures[0]
    for task in benchmark.tasks:
        question, answers = ASKED.get(task.name, (f"How many?{SHORT}", ("1", "2", "3")))
        if task.scorer == "caption":
            question, answers = CAPTION, ("A dog runs.", "Two men talk.")
        learned, asked = [], []
        for number in range(train):
            image = f"{task.folders[0]}/train_{number:06d}.jpg"
            picture(root / image, number)
            turns = [{"from": "human", "value": f"<image>\n{question}"},
                     {"from": "gpt", "value": answers[number % len(answers)]}]  # fmt: skip
            key = "question_id" if benchmark.name == "ucit" and number % 2 else "id"
            learned.append({key: f"{number:08d}", "image": image, "conversations": turns})
        for number in range(tests):
            image = f"{task.folders[-1]}/test_{number:06d}.jpg"
            picture(root / image, 1000 + number)
            row = {"question_id": str(number), "image": image, "text": question}
            row["answer"] = answers[number % len(answers)]
            if task.scorer == "grounding":
                row |= {"answer_bbox": BOX, "size": [40, 30]}  # type: ignore[dict-item]
            asked.append(row)
        write_json(place / f"{task.train[0]}.json", learned)
        test = place / f"{task.test[0]}.json"
        write_json(test, asked)
        if task.gold is not None and task.gold.always:
            write_json(test.with_name(task.gold.name), _golds(task, asked))
    return folder


def _golds(task: Task, asked: list[dict[str, Any]]) -> Any:
    """The file beside a test set: five captions a picture, or ten answers a question."""
    if task.scorer == "caption":
        images = [{"id": n, "file_name": Path(r["image"]).name} for n, r in enumerate(asked, 1)]
        said = [(n, f"caption {k} of {n}") for n in range(1, len(asked) + 1) for k in range(5)]
        captions = [{"image_id": n, "caption": text} for n, text in said]
        return {"images": images, "annotations": captions}
    rows = [
        {"question_id": int(r["question_id"]), "answers": [r["answer"]] * 9 + ["x"]} for r in asked
    ]
    return {"data": rows}
