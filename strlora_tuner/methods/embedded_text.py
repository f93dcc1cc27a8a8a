"""What a sentence embedder reads of an instruction: its own text, its task's name or template.

Which of them is `tuner.sentence`; the last two are looked up by the text.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from strlora_tuner.core.instruction.sentence import sentence_embedder
from strlora_tuner.embedder_files import embedder_folder
from strlora_tuner.options import TASKS_FILE
from strlora_tuner.routing_record.format import instruction_key


def use_embedder(model: Any, config: Any) -> None:
    """Lets the embedder of an adapter's configuration read the instructions of a routed model.

    Raises:
        ValueError: there is no such embedder.
    """
    embedder_folder(config.options().embedder)  # before anything is trained
    model.routing.embed_sentence = partial(_embed_instruction, model)


def _embed_instruction(model: Any, adapter: str, ids: tuple[int, ...]) -> Tensor:
    """Returns the vector (embedding_width) of an instruction's token ids.

    Raises:
        ValueError: the embedder's vectors have another width than `options.embedding_width`, or
            `options.sentence` wants a label and the text has none.
    """
    options = model.routing.configs[adapter].options()
    embedder = sentence_embedder(options.embedder)
    if embedder.width != options.embedding_width:
        raise ValueError(
            f"tuner.embedder = {options.embedder!r} gives vectors of width {embedder.width}, "
            f"tuner.embedding_width is {options.embedding_width}: set it to {embedder.width}"
        )
    text = model.tokenizer.decode(list(ids)).strip()
    return embedder.embed(text if options.sentence == "prompt" else task_label(text))


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
