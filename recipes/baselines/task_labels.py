"""The table in which a tuner looks up a text's task or template (`tuner.sentence`, the oracle).

The published code looks the embedding of a task's instruction template up by a number, in training
and in evaluation. Here the tuner looks the text up in this table, which exists for no other
setting.
"""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from pathlib import Path

from data_prep.files import read_jsonl, write_json
from data_prep.stream import Stream, StreamError
from eval.routing.record import instruction_keys_of

INSTEAD = "take tuner.sentence: prompt, or a method that needs no task labels"


def write_label_table(
    stream: Stream, chunks: int, sentence: str, path: Path, experts: int | None = None
) -> list[str]:
    """Writes {text: what is embedded} of the first `chunks` chunks and of the test sets.

    The texts are those that answers follow: of a conversation its user turns so far, each time.

    Returns notes on texts that belong to several tasks: with `number` the first of the tasks gets
    them, and stays the first when the stream grows.

    In a stream that grew a task keeps the template of its first batch: what was trained with it
    stays as it was.

    Args:
        sentence: `task`: the task's name. `template`: the lines that all texts of the task begin
            with and those that all end with (words, if no line), which several tasks may share.
            `number`: from 0, in the order in which the chunks bring the tasks, and the name.
        experts: how many tasks there may be; None: any number.

    Raises:
        StreamError: a sample has no task, a text has two labels (`task` and `template`), a task
            has no template, or there are more tasks than experts.
    """
    names = [stream.chunk(index).file for index in range(1, chunks + 1)]
    names += [stream.task(task).test.file for task in stream.tasks]
    batches = enumerate(stream.facts.get("batches") or (), 1)
    batch_of = {name: number for number, batch in batches for name in batch["files"]}
    # A stable sort: inside a batch the order of the stream stays.
    names.sort(key=lambda name: batch_of.get(name, 0))
    files = [stream.root / name for name in names]
    first_batch: dict[str, int] = {}
    tasks: dict[str, dict[str, None]] = {}  # in the order of the stream
    texts: dict[str, set[str]] = {}
    places: dict[str, str] = {}
    if gone := [file.name for file in files if not file.is_file()]:
        raise StreamError(
            f"{stream.root}: {', '.join(gone)} were removed, and tuner.sentence = {sentence} looks "
            f"the texts of all chunks up: bring them back, or {INSTEAD} in a new run"
        )
    for name, file in zip(names, files, strict=True):
        batch = batch_of.get(name, 0)
        for number, sample in enumerate(read_jsonl(file), 1):
            task = sample.get("task")
            if not task:
                raise StreamError(
                    f"{file}:{number}: the sample has no task, which tuner.sentence = {sentence} "
                    f"looks up; add it, or {INSTEAD}"
                )
            turns = [str(m["content"]) for m in sample["messages"] if m["role"] == "user"]
            for text in instruction_keys_of(sample):
                tasks.setdefault(text, {})[task] = None
                places.setdefault(f"{text} {task}", f"{file}:{number}")
            if first_batch.setdefault(task, batch) == batch:
                texts.setdefault(task, set()).add("\n".join(turns).replace("<image>", " "))
    if experts is not None and len(texts) > experts:
        raise StreamError(
            f"{stream.root}: {len(texts)} tasks ({', '.join(texts)}), and tuner.task_experts = "
            f"{experts}: start a run with at least as many as tasks"
        )
    labels = {task: task for task in texts}
    if sentence == "number":
        labels = {task: f"{number} {task}" for number, task in enumerate(texts)}
    if sentence == "template":
        labels = {task: _template(task, found) for task, found in texts.items()}
    table, shared = {}, Counter[str]()
    for text, owners in tasks.items():
        meanings = list(dict.fromkeys(labels[task] for task in owners))
        if len(meanings) > 1 and sentence != "number":
            place = places[f"{text} {max(owners)}"]
            raise StreamError(
                f"{place}: {text[:60]!r} is a text of {' and of '.join(sorted(owners))}, so that "
                f"tuner.sentence = {sentence} cannot tell which is meant; {INSTEAD}"
            )
        if len(meanings) > 1:
            shared[" and of ".join(owners)] += 1
        table[text] = meanings[0]
    write_json(path, table)
    return [
        f"{count} text{'s' * (count > 1)} of {names}: the first one's expert answers"
        for names, count in shared.items()
    ]


def _template(task: str, texts: set[str]) -> str:
    """The lines that all texts of a task begin and end with; if there are none, the words."""
    lines = [[" ".join(line.split()) for line in text.splitlines()] for text in texts]
    for split in ([list(filter(None, found)) for found in lines], [t.split() for t in texts]):
        first = _shared(split)
        last = _shared([parts[len(first) :][::-1] for parts in split])
        if first or last:
            return " ".join([*first, *reversed(last)])
    raise StreamError(
        f"task {task}: its {len(texts)} texts neither begin nor end with a word in common, so "
        f"that tuner.sentence = template finds none; use tuner.sentence: task, or {INSTEAD}"
    )


def _shared(texts: list[list[str]]) -> list[str]:
    """What all texts begin with."""
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*texts, strict=False))
    return [parts[0] for parts in same]
