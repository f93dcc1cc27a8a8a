"""The published benchmarks as data: tasks, scorers, image folders, sites and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.published.gold_files import CAPTIONS, GQA, SCIENCEQA, TEXTVQA, GoldFile

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
        origin: the data set that its images come from. site: where to get it.
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


_GOLD_FILES = {"captions": CAPTIONS, "gqa": GQA, "scienceqa": SCIENCEQA, "textvqa": TEXTVQA}
_TABLES: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}


def _task(name: str, entry: dict[str, Any]) -> Task:
    gold = _GOLD_FILES[entry["gold"]] if "gold" in entry else None
    return Task(**{**_tuples(entry), "name": name, "gold": gold})


def _benchmark(name: str) -> Benchmark:
    table = _TABLES[name]
    tasks = tuple(_task(task, entry) for task, entry in table["tasks"].items())
    return Benchmark(**{**_tuples(table), "name": name, "tasks": tasks})


STRCVIT = {name: _task(name, entry) for name, entry in _TABLES["strcvit"].items()}
UCIT, COIN = _benchmark("ucit"), _benchmark("coin")
EXPERTS: dict[str, str] = _TABLES["experts"]
CHUNK_SAMPLES = 2000  # of StrCVIT


def _mllm_cl(benchmark: str, scorers: dict[str, str], ending: str) -> Benchmark:
    """One of MLLM-CL's two benchmarks; `ending` is what its test folders are called behind."""
    site = "https://huggingface.co/datasets/MLLM-CL/MLLM-CL"
    # The abilities are tested on other data sets than they are trained on: folders of their own.
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
