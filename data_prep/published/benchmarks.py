"""The published benchmarks as data: tasks, scorers, image folders, sites and sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data_prep.mini.mixtures import PUBLISHED, SHORT
from data_prep.published.gold_files import GQA, GoldFile

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
        pictures: how many different ones its published files name; 0: not known.
        train, test: its files below the source, as a benchmark with a file a task has them; of
            several names the first that is there.
        gold: the file that holds the answers of its test set, where they have one of their own.
        samples: published sizes of training and test file; None: not known.
    """

    name: str
    scorer: str
    folders: tuple[str, ...]
    origin: str
    site: str
    pictures: int = 0
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    gold: GoldFile | None = None
    samples: tuple[int, int] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark with a training and a test file a task.

    Attributes:
        name: of the stream. generator, version: what makes it.
        repository: of the JSON files on the hub.
        tasks: in the order of training.
        places: folders of the source in which the tasks' files may lie.
        pictures: folders of the source that may be the root of the images.
        numbered: samples are numbered by task: the ids in its files repeat.
    """

    name: str
    generator: str
    version: str
    repository: str
    tasks: tuple[Task, ...]
    places: tuple[str, ...] = ("",)
    pictures: tuple[str, ...] = ("",)
    numbered: bool = True


COCO = ("COCO2014/train2014", "COCO2014/val2014")
COCO_SITE = "https://cocodataset.org/#download"
_TASKS = (
    Task("AD", "choice", ("AD/images/drivelm/stitch",),
         "DriveLM on nuScenes, six views in one (made by --stitch)",
         "https://github.com/OpenDriveLab/DriveLM"),
    Task("ChartQA", "relaxed", ("ChartQA/train", "ChartQA/test"), "ChartQA",
         "https://github.com/vis-nlp/ChartQA"),
    Task("Fin", "compact", ("Fin/images/train", "Fin/images/test"), "FinVis, in MLLM-CL",
         "https://github.com/bjzhb666/MLLM-CL"),
    Task("GQA", "vqa", ("GQA/images",), "GQA", "https://cs.stanford.edu/people/dorarad/gqa",
         gold=GQA),
    Task("Grounding", "grounding", COCO, "COCO 2014 (RefCOCO family)", COCO_SITE),
    Task("ImageNet", "label", ("ImageNet_withlabel/train", "ImageNet_withlabel/val"),
         "ImageNet ILSVRC 2012, a folder a class", "https://www.image-net.org/download.php"),
    Task("OCRVQA", "exact", ("OCR-VQA/images",), "OCR-VQA", "https://ocr-vqa.github.io"),
    Task("Places365", "label", ("Places/train_256", "Places/val_256"),
         "Places365, small images (256 x 256)", "http://places2.csail.mit.edu/download.html"),
    Task("RS", "choice", ("RS/images",), "RSVQA-HR", "https://rsvqa.sylvainlobry.com"),
    Task("TextCaps", "caption", ("Textcaps",), "TextCaps", "https://textvqa.org/textcaps/dataset"),
    Task("VQAv2", "vqa", COCO, "COCO 2014", COCO_SITE),
)  # fmt: skip
STRCVIT = {task.name: task for task in _TASKS}
CHUNKS, CHUNK_SAMPLES = 25, 2000  # of StrCVIT


def _mllm_cl(benchmark: str, scorers: dict[str, str], ending: str) -> Benchmark:
    """One of MLLM-CL's two benchmarks; `ending` is what its test folders are called behind."""
    site = "https://huggingface.co/datasets/MLLM-CL/MLLM-CL"
    tasks = tuple(
        Task(
            name, scorer, tuple(dict.fromkeys((f"{name}/images", f"{name}{ending}/images"))),
            "MLLM-CL's own archives", site,
            train=(f"{name}/train", f"{name}_train/train"),
            test=(f"{name}/test", f"{name}_test/test"),
        )
        for name, scorer in scorers.items()
    )  # fmt: skip
    name = f"mllm-cl-{benchmark.lower()}"
    return Benchmark(name, "data_prep.mllm_cl", "2", "MLLM-CL/MLLM-CL", tasks, numbered=False)


# MLLM-CL, in the order of its training; scorers as in eval/scorers/registry.py ("MLLM-CL/<name>").
MLLM_CL = {
    "DCL": _mllm_cl("DCL", {"RS": "contains", "Med": "contains", "AD": "contains",
                            "Sci": "science", "Fin": "compact"}, ""),
    "ACL": _mllm_cl("ACL", {"OCR": "ocr", "Math": "number", "VP": "contains", "APP": "choice"},
                    "_test"),
}  # fmt: skip
# Descriptions of the experts in the prompt of MR-LoRA's router.
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
    "ImageNet-R": "objects in paintings, cartoons, sculptures and other renditions",
    "ArxivQA": "figures of scientific papers: plots, diagrams, multiple choice",
    "VizWiz": "photographs taken by blind people",
    "IconQA": "drawings for children: counting, comparing, shapes, numbers",
    "CLEVR": "rendered solids: how many are left or exist after adding and subtracting",
    "Flickr30k": "photographs of people and what they do, described in a sentence",
    "ScienceQA": "school science, geography and language, multiple choice",
    "TextVQA": "text in photographs: signs, labels, screens",
    "ImageNet": "photographs of one object: what it is",
    "GQA": "photographs: where things are, their attributes and relations",
    "Grounding": "boxes: the coordinates of what a sentence describes",
    "VQAv2": "photographs: short answers about anything in them",
    "OCRVQA": "book covers: title, author, genre, year",
}


def strcvit_mixture() -> list[dict[str, int]]:
    """Return samples by instruction group for each of the 25 published chunks of StrCVIT."""
    content: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    groups = content["groups"]
    return [{group: int(chunk[group]) for group in groups} for chunk in content["chunks"]]


def group_of(task: str) -> str:
    """Return the instruction group of a StrCVIT task in the published mixture."""
    return "short" if task in SHORT else task
