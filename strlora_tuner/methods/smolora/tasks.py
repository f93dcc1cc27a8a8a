"""The task of a text, for the published way of SMoLoRA (`sentence: task`)."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from strlora_tuner.options import TASKS_FILE
from strlora_tuner.routing_record.format import instruction_key


def task_of_text(text: str) -> str:
    """Returns the task that the file of STRLORA_TASKS_FILE, JSON {text: task}, names for a text.

    Raises:
        ValueError: no such file is named, or the text is not in it.
    """
    path = os.environ.get(TASKS_FILE)
    if not path:
        raise ValueError(
            f"tuner.sentence = task needs the tasks of all texts: set {TASKS_FILE} to a JSON file "
            "{text: task} (the orchestrator does), or train with tuner.sentence: prompt"
        )
    task = _tasks(path).get(instruction_key(text))
    if task is None:
        raise ValueError(f"tuner.sentence = task: {path} does not hold the text {text[:80]!r}")
    return task


@lru_cache(maxsize=1)
def _tasks(path: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))
    return {instruction_key(text): task for text, task in found.items()}
