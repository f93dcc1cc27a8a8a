"""What SMoLoRA is told of a text: its task, or the template (`sentence: task | template`)."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from strlora_tuner.options import TASKS_FILE
from strlora_tuner.routing_record.format import instruction_key


def told_of_text(text: str) -> str:
    """Returns what the file of STRLORA_TASKS_FILE, JSON {text: told}, holds for a text.

    Raises:
        ValueError: no such file is named, or the text is not in it.
    """
    path = os.environ.get(TASKS_FILE)
    if not path:
        raise ValueError(
            f"tuner.sentence is not prompt, or the method is oracle; both need a table of all "
            f"texts: set {TASKS_FILE} to a JSON file {{text: task or template}} (the orchestrator "
            "does), or train SMoLoRA with tuner.sentence: prompt"
        )
    told = _tasks(path).get(instruction_key(text))
    if told is None:
        raise ValueError(f"{path} (what tuner.sentence looks up) does not hold {text[:80]!r}")
    return told


@lru_cache(maxsize=1)
def _tasks(path: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))
    return {instruction_key(text): told for text, told in found.items()}
