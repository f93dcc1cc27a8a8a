"""The published benchmarks as data: tasks, scorers, image folders, sites and sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data_prep.mini.mixtures import PUBLISHED, SHORT

# Names of the scorers in eval/scorers (eval is not imported here; a test holds the two equal).
SCORERS = (
    *("vqa", "exact", "compact", "label", "choice", "contains"),
    *("grounding", "relaxed", "ocr", "science", "number", "caption"),
)


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: in streams and in the published folders.
        scorer: its `fixed` scorer.
        folders: where its images lie below the image root.
        origin: the data set that its images come from. site: where that is had.
    """

    name: str
    scorer: str
    folders: tuple[str, ...]
    origin: str
    site: str


_COCO = ("COCO2014/train2014", "COCO2014/val2014")
_COCO_SITE = "https://cocodataset.org/#download"
_TASKS = (
    Task("AD", "choice", ("AD/images/drivelm/stitch",),
         "DriveLM on nuScenes, six views in one (made by --stitch)",
         "https://github.com/OpenDriveLab/DriveLM"),
    Task("ChartQA", "relaxed", ("ChartQA/train", "ChartQA/test"), "ChartQA",
         "https://github.com/vis-nlp/ChartQA"),
    Task("Fin", "compact", ("Fin/images/train", "Fin/images/test"), "FinVis, in MLLM-CL",
         "https://github.com/bjzhb666/MLLM-CL"),
    Task("GQA", "vqa", ("GQA/images",), "GQA", "https://cs.stanford.edu/people/dorarad/gqa"),
    Task("Grounding", "grounding", _COCO, "COCO 2014 (RefCOCO family)", _COCO_SITE),
    Task("ImageNet", "label", ("ImageNet_withlabel/train", "ImageNet_withlabel/val"),
         "ImageNet ILSVRC 2012, a folder a class", "https://www.image-net.org/download.php"),
    Task("OCRVQA", "exact", ("OCR-VQA/images",), "OCR-VQA", "https://ocr-vqa.github.io"),
    Task("Places365", "label", ("Places/train_256", "Places/val_256"),
         "Places365, small images (256 x 256)", "http://places2.csail.mit.edu/download.html"),
    Task("RS", "choice", ("RS/images",), "RSVQA-HR", "https://rsvqa.sylvainlobry.com"),
    Task("TextCaps", "caption", ("Textcaps",), "TextCaps", "https://textvqa.org/textcaps/dataset"),
    Task("VQAv2", "vqa", _COCO, "COCO 2014", _COCO_SITE),
)  # fmt: skip
STRCVIT = {task.name: task for task in _TASKS}
CHUNKS, CHUNK_SAMPLES = 25, 2000  # of StrCVIT

# MLLM-CL, in the order of its training; scorers as in eval/scorers/registry.py ("MLLM-CL/<name>").
MLLM_CL = {
    "DCL": {
        "RS": "contains",
        "Med": "contains",
        "AD": "contains",
        "Sci": "science",
        "Fin": "compact",
    },
    "ACL": {"OCR": "ocr", "Math": "number", "VP": "contains", "APP": "choice"},
}
# What the router of MR-LoRA is told about each expert.
EXPERTS = {
    "RS": "remote sensing: aerial and satellite pictures, presence, comparison, counting, areas",
    "Med": "medical pictures: pathology slides and clinical photographs",
    "AD": "driving: six camera views in one picture, objects, their motion, what to do next",
    "Sci": "science: diagrams of physics, chemistry and biology, and maps",
    "Fin": "finance: candlestick charts, trends and indicators of stocks",
    "OCR": "reading: text in documents, signs, charts and handwriting",
    "Math": "mathematics and logic: geometry, functions, tables, puzzles",
    "VP": "visual perception: counting things, where they are, which is nearer",
    "APP": "screens: which element of an app or an HTML page to use for a task",
}


def strcvit_mixture() -> list[dict[str, int]]:
    """Return samples by instruction group for each of the 25 published chunks of StrCVIT."""
    content: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    groups = content["groups"]
    return [{group: int(chunk[group]) for group in groups} for chunk in content["chunks"]]


def group_of(task: str) -> str:
    """Return the instruction group of a StrCVIT task in the published mixture."""
    return "short" if task in SHORT else task
