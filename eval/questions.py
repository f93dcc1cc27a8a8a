"""The questions of one evaluation: a file for the host, and what is left of it after a kill.

`swift infer --val_dataset COMBINED --result_path RESULTS` (ms-swift 4.6) writes one line an answer:
`response`, `labels` (the gold turn, null where the question file has none), `messages` with the
answer appended, `images` as [{"bytes": null, "path": as given}]. Other columns survive only with
`--remove_unused_columns false`, several processes write in another order, and a second run appends.
So answers are joined by content (turns and images), never by position, and equal questions are
asked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from data_prep.files import read_jsonl, write_jsonl
from eval.question_form import IMAGE
from eval.run_files import JsonObject
from eval.scorers.answer_text import gold_answers
from eval.scorers.registry import open_scored_stream

Question = tuple[tuple[tuple[str, str], ...], tuple[str, ...]]


def question_of(record: JsonObject, folder: Path) -> Question:
    """Return what identifies a question: its turns without the last answer, and its images.

    Args:
        record: a test sample, a line of the question file or a line of the host's results.
        folder: the stream folder; absolute image paths inside it are made relative.
    """
    turns = tuple((str(m["role"]), str(m["content"])) for m in _turns_asked(record))
    return turns, tuple(_image_name(i, folder) for i in record.get("images") or [])


def _turns_asked(record: JsonObject) -> list[JsonObject]:
    """Return a record's turns without the answer at their end."""
    turns = list(record["messages"])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return turns


def _image_name(image: object, folder: Path) -> str:
    path = Path(str(image["path"] if isinstance(image, dict) else image))
    if path.is_absolute():  # the stream's own names are not, and each step to a real path is a call
        real, root = path.resolve(), folder.resolve()
        path = real.relative_to(root) if real.is_relative_to(root) else path
    return path.as_posix()


def prompt_of(record: JsonObject) -> str:
    """Return the text of the last user turn, image placeholders removed."""
    users = [m["content"] for m in record["messages"] if m["role"] == "user"]
    return str(users[-1]).replace(IMAGE, "").strip() if users else ""


def write_combined(
    stream_dir: Path,
    tasks: Sequence[str],
    out_path: Path,
    limit: int | None = None,
    answered: Path | None = None,
) -> int:
    """Write one question file of all tasks for one `swift infer` process; return its lines.

    Questions come without the gold answer and their task, and each only once. They are grouped by
    task, tasks with long answers first (a memory limit shows at once), and sorted by length inside,
    so that batches are even.

    Args:
        stream_dir: the stream folder.
        tasks: the tasks to ask.
        out_path: the JSONL to write.
        limit: at most so many samples a task.
        answered: a result file of a killed evaluation; what it answers is left out.

    Raises:
        ValueError: an unknown task or an unreadable test set.
    """
    stream = open_scored_stream(stream_dir)
    done = _answered_questions(answered, stream_dir)
    lines: list[JsonObject] = []
    for records in sorted((stream.test_records(t, limit) for t in tasks), key=_answer_length)[::-1]:
        for record in sorted(records, key=_question_length, reverse=True):
            question = question_of(record, stream_dir)
            if question not in done:
                done.add(question)
                lines.append(question_line(record))
    write_jsonl(out_path, lines)
    return len(lines)


def _answered_questions(answered: Path | None, stream_dir: Path) -> set[Question]:
    if answered is None or not answered.is_file():
        return set()
    return {question_of(line, stream_dir) for line in read_jsonl(answered, torn_tail=True)}


def _answer_length(records: Sequence[JsonObject]) -> float:
    return fmean(len(gold_answers(record)[0]) for record in records)


def _question_length(record: JsonObject) -> tuple[int, int]:
    return len(record.get("images") or []), sum(len(m["content"]) for m in record["messages"])


def question_line(record: JsonObject) -> JsonObject:
    """Return what the host may know: no answer, no task, and no id, which names the task."""
    return {"messages": _turns_asked(record), "images": record.get("images") or []}


def repair_results(path: Path) -> int:
    """Cut a half-written last line off a killed run's result file; return the lines that stay."""
    if not path.is_file():
        return 0
    records = read_jsonl(path, torn_tail=True)
    text = path.read_text(encoding="utf-8")
    # The host appends: its next answer would go on in the middle of the torn line.
    if text and not text.endswith("\n"):
        write_jsonl(path, records)
    return len(records)
