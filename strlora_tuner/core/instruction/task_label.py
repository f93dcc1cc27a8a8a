"""The label of a text: its task or its template (`tuner.sentence: task | template`)."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from strlora_tuner.options import TASKS_FILE
from strlora_tuner.routing_record.format import instruction_key


def task_label(text: str) -> str:
    """Returns what the file of STRLORA_TASKS_FILE, JSON {text: label}, holds for a text.

    Raises:
        ValueError: no such file is named, or the text is not in it.
    """
    path = os.environ.get(TASKS_FILE)
    if not path:
        raise ValueError(
            f"tuner.sentence is not prompt, or the method is oracle; both need a table of all "
            f"texts: set {TASKS_FILE} to a JSON file {{text: task or template}} (the orchestrator "
            "does), or train with tuner.sentence: prompt"
        )
    label = _labels(path).get(instruction_key(text))
    if label is None:
        raise ValueError(f"{path} (what tuner.sentence looks up) does not hold {text[:80]!r}")
    return label


@lru_cache(maxsize=1)
def _labels(path: str) -> dict[str, str]:
    table: dict[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))
    return {instruction_key(text): label for text, label in table.items()}
