"""The published benchmarks as data: tasks, scorers, image folders and mixtures, in one place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names of the scorers in eval/scorers (eval is not imported here; a test holds the two equal).
SCORERS = (
    "vqa",
    "exact",
    "compact",
    "label",
    "choice",
    "contains",
    "grounding",
    "relaxed",
    "anls",
    "caption",
)
_MIXTURE = Path(__file__).with_name("strcvit_mixture.json")


@dataclass(frozen=True)
class ImageSet:
    """Images that a task needs: the folders below the image root, and where they come from."""

    folders: tuple[str, ...]
    source: str
    site: str


@dataclass(frozen=True)
class Task:
    """One task of a benchmark: its scorer and its images."""

    name: str
    scorer: str
    images: ImageSet


COCO = ImageSet(("COCO2014/train2014", "COCO2014/val2014"), "COCO 2014", "https://cocodataset.org")
_PLACES = ImageSet(
    ("Places/train_256", "Places/val_256"),
    "Places365, small images",
    "http://places2.csail.mit.edu",
)
STRCVIT = {
    task.name: task
    for task in (
        Task(
            "AD",
            "choice",
            ImageSet(
                ("AD/images/drivelm/stitch",), "DriveLM", "https://github.com/OpenDriveLab/DriveLM"
            ),
        ),
        Task(
            "ChartQA",
            "relaxed",
            ImageSet(
                ("ChartQA/train", "ChartQA/test"),
                "ChartQA",
                "https://github.com/vis-nlp/ChartQA",
            ),
        ),
        Task(
            "Fin",
            "compact",
            ImageSet(
                ("Fin/images/train", "Fin/images/test"),
                "FinVis",
                "https://huggingface.co/datasets/MLLM-CL/MLLM-CL",
            ),
        ),
        Task(
            "GQA",
            "vqa",
            ImageSet(("GQA/images",), "GQA", "https://cs.stanford.edu/people/dorarad/gqa"),
        ),
        Task("Grounding", "grounding", COCO),
        Task(
            "ImageNet",
            "label",
            ImageSet(
                ("ImageNet_withlabel/train", "ImageNet_withlabel/val"),
                "ImageNet ILSVRC 2012, one folder a class",
                "https://www.image-net.org",
            ),
        ),
        Task(
            "OCRVQA",
            "exact",
            ImageSet(("OCR-VQA/images",), "OCR-VQA", "https://ocr-vqa.github.io"),
        ),
        Task("Places365", "label", _PLACES),
        Task(
            "RS", "choice", ImageSet(("RS/images",), "RSVQA-HR", "https://rsvqa.sylvainlobry.com")
        ),
        Task(
            "TextCaps",
            "caption",
            ImageSet(("Textcaps",), "TextCaps", "https://textvqa.org/textcaps"),
        ),
        Task("VQAv2", "vqa", COCO),
    )
}
# MLLM-CL in its order of training. Scorers follow eval/tasks.py ("MLLM-CL/<name>").
DCL = {"RS": "contains", "Med": "contains", "AD": "contains", "Sci": "choice", "Fin": "exact"}
ACL = {"OCR": "anls", "Math": "choice", "VP": "exact", "APP": "choice"}


def strcvit_mixture() -> list[dict[str, int]]:
    """Return samples by instruction group for each of the 25 published chunks of StrCVIT."""
    content: dict[str, Any] = json.loads(_MIXTURE.read_text(encoding="utf-8"))
    groups = content["groups"]
    return [{group: int(chunk[group]) for group in groups} for chunk in content["chunks"]]


# Tasks behind the group "short" of the mixture: they share one instruction template, OCRVQA's
# membership is probable (see the note in the file).
SHORT = ("AD", "GQA", "RS", "VQAv2", "OCRVQA")


def group_of(task: str) -> str:
    """Return the instruction group of a StrCVIT task in the mixture."""
    return "short" if task in SHORT else task
