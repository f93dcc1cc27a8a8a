"""The tasks of the embedded stream, by their StrCVIT name."""

from __future__ import annotations

from data_prep.mini.assets import Assets
from data_prep.mini.tasks.ad import AD
from data_prep.mini.tasks.base import SPLITS, Question, Scene, Task, sample_rng
from data_prep.mini.tasks.chartqa import ChartQA
from data_prep.mini.tasks.fin import Fin
from data_prep.mini.tasks.gqa import GQA
from data_prep.mini.tasks.grounding import Grounding
from data_prep.mini.tasks.imagenet import ImageNet
from data_prep.mini.tasks.ocrvqa import OCRVQA
from data_prep.mini.tasks.places365 import Places365
from data_prep.mini.tasks.rs import RS
from data_prep.mini.tasks.textcaps import TextCaps
from data_prep.mini.tasks.vqav2 import VQAv2

_ALL = (VQAv2, OCRVQA, Fin, Grounding, ImageNet, Places365, AD, ChartQA, GQA, RS, TextCaps)
TASKS: dict[str, type[Task]] = {task.name: task for task in _ALL}


def load_task(name: str, assets: Assets) -> Task:
    """Return task `name` with its data read. Raises KeyError with the known names."""
    if name not in TASKS:
        raise KeyError(f"task {name!r} is unknown, expected one of {', '.join(TASKS)}")
    return TASKS[name](assets)


__all__ = ["SPLITS", "TASKS", "Question", "Scene", "Task", "load_task", "sample_rng"]
