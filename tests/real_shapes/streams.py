"""Samples in the published forms, turned into streams by the command line that users have.

StrCVIT's form: JSON arrays `train/data_001.json`, `test/TASK/test.json`, image paths behind a
placeholder. LLaVA's form: one JSON array of conversations beside a folder of pictures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.real_shapes.pictures import SIZES, draw

ROOT = Path(__file__).resolve().parents[2]
IMAGE_ROOT = "<STRCVIT_IMAGE_ROOT>"
SHORT = "Answer the question using a single word or phrase."
REGION = "Please provide the bounding box coordinate of the region this sentence describes:"


class Kind(NamedTuple):
    """What the samples of one task look like, in training and in its test set."""

    picture: str
    folder: str
    question: str
    answers: tuple[str, ...]


KINDS = {
    "VQAv2": Kind("coco", "COCO2014/train2014", f"What is on the left?\n{SHORT}", ("dog", "2")),
    "Grounding": Kind("coco", "COCO2014/train2014", f"{REGION} the box",
                      ("[0.10, 0.20, 0.50, 0.60]", "[0.00, 0.11, 0.93, 0.71]")),
    "ImageNet": Kind("imagenet", "ImageNet_withlabel/train/n01440764",
                     "What is the object in the image?\n" + SHORT, ("Tench", "Brambling")),
    "TextCaps": Kind("textcaps", "Textcaps", "Provide a one-sentence caption for the image.",
                     ("A sign that says stop stands beside a road.", "A box of cereals.")),
    "Places365": Kind("places", "Places/train_256",
                      f"What is the background of the image?\n{SHORT}", ("Airfield", "Bakery")),
    "RS": Kind("aerial", "RS/images", f"Is there a road?\n{SHORT}", ("yes", "no")),
    "OCRVQA": Kind("places", "OCR-VQA/images", f"Who wrote this book?\n{SHORT}",
                   ("Ursula K. Le Guin", "Jane Austen")),
}  # fmt: skip
# Odd chunks hold pictures of one tile and even ones of thirteen: where both stand in a batch, the
# host keeps the logits of all positions from the shorter one's answer on (12 GB a process).
ORDERS = (("VQAv2", "ImageNet", "Grounding", "OCRVQA"), ("Places365", "RS", "OCRVQA", "ImageNet"))
# Pictures of another size than their task's: the largest among the large, the smallest else.
ODD = ({"OCRVQA": "scan"}, {"ImageNet": "icon"})
SAMPLES = (64, 32)  # two optimizer steps and one, at the recipes' global batch


def published(folder: Path, samples: Sequence[int] = SAMPLES, tests: int = 2) -> tuple[Path, Path]:
    """Writes a small StrCVIT as published, `samples` a chunk; returns its source and image root."""
    source, images = folder / "strcvit", folder / "images"
    for chunk, count in enumerate(samples, start=1):
        rows = [_trained(images, chunk, number) for number in range(count)]
        _write(source / "train" / f"data_{chunk:03d}.json", rows)
    for task in KINDS:
        rows = [_asked(images, task, number) for number in range(tests)]
        proxy = "val_proxy" if task in ("Places365", "TextCaps", "VQAv2") else "test_proxy"
        _write(source / "test" / task / f"{proxy}.json", rows)
    return source, images


def strcvit(folder: Path, samples: Sequence[int] = SAMPLES, tests: int = 2) -> Path:
    """Makes a stream of a small StrCVIT by `python -m data_prep.strcvit`; returns its folder."""
    out = folder / "stream"
    if not (out / "stream.json").is_file():
        source, images = published(folder, samples, tests)
        options = ["--source", source, "--images", images, "--out", out]
        _run("data_prep.strcvit", *map(str, options))
    return out


def llava(folder: Path, chunks: int = 2, samples: int = 32, tests: int = 4) -> Path:
    """Makes a stream of LLaVA conversations by `python -m data_prep.chunk`; returns its folder."""
    rows = [_conversation(folder / "images", number) for number in range(chunks * samples)]
    _write(folder / "llava_v1_5_mix.json", rows)
    asked = [_asked(folder / "images", "VQAv2", number) for number in range(tests)]
    for row in asked:
        row["image"] = row["image"].removeprefix(f"{IMAGE_ROOT}/")
    _write(folder / "vqa_test.json", asked)
    out = folder / "stream"
    options = ["--source", folder / "llava_v1_5_mix.json", "--images", folder / "images"]
    options += ["--size", samples, "--task", "VQAv2", "--scorer", "vqa", "--out", out]
    _run("data_prep.chunk", *map(str, options), "--test", f"VQAv2={folder / 'vqa_test.json'}")
    return out


def _picture(images: Path, task: str, name: str, size: str) -> str:
    """Draws the picture of one sample; returns its path behind the placeholder."""
    path = f"{KINDS[task].folder}/{name}.jpg"
    draw(images / path, SIZES[size], f"{task} {name}")
    return f"{IMAGE_ROOT}/{path}"


def _trained(images: Path, chunk: int, number: int) -> dict[str, Any]:
    """One training sample in the host's form, with a newline behind the placeholder."""
    order, odd = ORDERS[chunk % 2], ODD[chunk % 2]
    task = order[number % len(order)]
    kind = KINDS[task]
    size = odd.get(task, kind.picture)
    image = _picture(images, task, f"train_{chunk}_{number:06d}", size)
    answer = kind.answers[number % len(kind.answers)]
    return {
        "messages": [
            {"role": "user", "content": f"<image>\n{kind.question}"},
            {"role": "assistant", "content": answer},
        ],
        "images": [image],
    }


def _asked(images: Path, task: str, number: int) -> dict[str, Any]:
    """One test sample: no placeholder in its text."""
    kind = KINDS[task]
    image = _picture(images, task, f"test_{number:06d}", kind.picture)
    row: dict[str, Any] = {"question_id": number, "image": image, "text": kind.question}
    answer = kind.answers[number % len(kind.answers)]
    if task == "Grounding":
        return {**row, "answer": answer, "answer_bbox": answer, "size": list(SIZES["coco"])}
    return {**row, "answer": [answer] * 5 if task == "TextCaps" else answer}


def _conversation(images: Path, number: int) -> dict[str, Any]:
    """One sample of LLaVA's instruction mixture; the second has its picture behind the question."""
    image = _picture(images, "VQAv2", f"train_{number:06d}", "coco")
    question, answer = KINDS["VQAv2"].question, KINDS["VQAv2"].answers[number % 2]
    asked = f"{question}\n<image>" if number == 1 else f"<image>\n{question}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    turns += [{"from": "human", "value": "Are you sure?"}, {"from": "gpt", "value": "Yes."}]
    path = image.removeprefix(f"{IMAGE_ROOT}/")
    return {"id": f"{number:012d}", "image": path, "conversations": turns}


def _run(module: str, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
