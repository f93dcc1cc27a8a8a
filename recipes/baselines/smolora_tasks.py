"""The table in which SMoLoRA looks up a text's task (`tuner.sentence: task`), as published.

The published code looks the instruction's embedding up by the task's number, in training and in
evaluation. Here the tuner looks the text up in this table, which exists for no other setting.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.files import read_jsonl, write_json
from data_prep.stream import Stream, StreamError
from eval.routing.record import instruction_key_of


def write_task_table(stream: Stream, chunks: int, path: Path) -> None:
    """Writes {text: task} of all samples of the first `chunks` chunks and of the test sets.

    Raises:
        StreamError: a sample has no task, or a text belongs to two tasks.
    """
    files = [stream.chunk_file(index) for index in range(1, chunks + 1)]
    files += [stream.test_file(task) for task in stream.tasks]
    known: dict[str, str] = {}
    for file in files:
        for number, sample in enumerate(read_jsonl(file), 1):
            text, task = instruction_key_of(sample), sample.get("task")
            if not task:
                raise StreamError(
                    f"{file}:{number}: the sample has no task, which tuner.sentence = task looks "
                    "up; add it, or set tuner.sentence: prompt"
                )
            if known.setdefault(text, task) != task:
                raise StreamError(
                    f"{file}:{number}: {text[:60]!r} is a text of {known[text]} and of {task}, so "
                    "that tuner.sentence = task cannot tell the task; set tuner.sentence: prompt"
                )
    write_json(path, known)
