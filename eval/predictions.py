"""To and from the host: one question file for all tasks, answers back to the test records.

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
from typing import Any

from eval.files import Record, read_jsonl, write_jsonl
from eval.scorers.fixed import gold_answers
from eval.stream import Stream, load_stream

Question = tuple[tuple[tuple[str, str], ...], tuple[str, ...]]
GOLD_FIELDS = (
    "references", "answer_bbox", "size", "options", "synonyms", "box_format", "answer_type"
)  # fmt: skip
# What methods that choose a chunk note in their results: the chunk whose adapter or router was
# taken, and, where a model was asked for it, what it said.
CHOICE_FIELDS = ("expert", "router_answer", "routed")


def question_of(record: Record, folder: Path) -> Question:
    """Return what identifies a question: its turns without the last answer, and its images.

    Args:
        record: a test sample, a line of the question file or a line of the host's results.
        folder: the stream folder; absolute image paths inside it are made relative.
    """
    turns = [(str(m["role"]), str(m["content"])) for m in record["messages"]]
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    return tuple(turns), tuple(_image_name(i, folder) for i in record.get("images") or [])


def _image_name(image: Any, folder: Path) -> str:
    path = Path(str(image.get("path") if isinstance(image, dict) else image))
    root = folder.resolve()
    if path.is_absolute() and path.resolve().is_relative_to(root):
        path = path.resolve().relative_to(root)
    return path.as_posix()


def prompt_of(record: Record) -> str:
    """Return the text of the last user turn, image placeholders removed."""
    users = [m["content"] for m in record["messages"] if m["role"] == "user"]
    return str(users[-1]).replace("<image>", "").strip() if users else ""


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
    stream = load_stream(stream_dir)
    done = _answered_questions(answered, stream_dir)
    lines: list[Record] = []
    for records in sorted((stream.test_records(t, limit) for t in tasks), key=_answer_length)[::-1]:
        for record in sorted(records, key=_question_length, reverse=True):
            question = question_of(record, stream_dir)
            if question not in done:
                done.add(question)
                lines.append(_question_line(record))
    write_jsonl(out_path, lines)
    return len(lines)


def _answered_questions(answered: Path | None, stream_dir: Path) -> set[Question]:
    if answered is None or not answered.is_file():
        return set()
    return {question_of(line, stream_dir) for line in read_jsonl(answered, torn_tail=True)}


def _answer_length(records: Sequence[Record]) -> float:
    return fmean(len(gold_answers(record)[0]) for record in records)


def _question_length(record: Record) -> tuple[int, int]:
    return len(record.get("images") or []), sum(len(m["content"]) for m in record["messages"])


def _question_line(record: Record) -> Record:
    """Return what the host may know: no answer, no task, and no id, which names the task."""
    turns = list(record["messages"])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    return {"messages": turns, "images": record.get("images") or []}


def repair_results(path: Path) -> int:
    """Cut a half-written last line off a killed run's result file; return the lines that stay."""
    if not path.is_file():
        return 0
    records = read_jsonl(path, torn_tail=True)
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        write_jsonl(path, records)
    return len(records)


def split_results(
    result_jsonl: Path,
    stream_dir: Path,
    out_dir: Path,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
) -> dict[str, int]:
    """Write `<out_dir>/<task>.jsonl`, one line a test record in the test file's order.

    A line holds id, task, prompt, prediction, gold, finish_reason (stop: the model ended its
    answer; length: it was cut at max_new_tokens; null: the host did not say), images and the gold
    fields that scorers need. A record without an answer becomes an error entry: prediction null,
    `error` says why.

    Args:
        result_jsonl: what `swift infer` wrote.
        stream_dir: the stream folder.
        out_dir: where the prediction files go.
        tasks: the tasks that were asked; None means all of the stream.
        limit: as given to `write_combined`.

    Returns:
        The number of error entries by task.

    Raises:
        ValueError: a result that answers no test record, or two results for one question.
    """
    stream = load_stream(stream_dir)
    names = list(stream.tasks if tasks is None else tasks)
    asked = {task: stream.test_records(task, limit) for task in names}
    known = {question_of(r, stream_dir) for records in asked.values() for r in records}
    answers = _read_answers(result_jsonl, stream_dir, known)
    failed: dict[str, int] = {}
    for task, records in asked.items():
        lines = [
            _prediction_line(task, r, answers.get(question_of(r, stream_dir))) for r in records
        ]
        failed[task] = sum(line["prediction"] is None for line in lines)
        write_jsonl(out_dir / f"{task}.jsonl", lines)
    return failed


def _read_answers(path: Path, stream_dir: Path, known: set[Question]) -> dict[Question, Record]:
    """Return the host's result lines by question."""
    answers: dict[Question, Record] = {}
    for number, line in enumerate(read_jsonl(path, torn_tail=True), start=1):
        if "response" not in line or not line.get("messages"):
            found = sorted(line)
            raise ValueError(
                f"{path}:{number}: not a result of swift infer; found the keys {found}"
            )
        question = question_of(line, stream_dir)
        if question not in known:
            raise ValueError(
                f"{path}:{number}: answers no test record of {stream_dir}: {prompt_of(line)!r}"
                f" with images {list(question[1])}; was the stream made again since?"
            )
        if question in answers:
            raise ValueError(
                f"{path}:{number}: a second answer to {prompt_of(line)!r} with images"
                f" {list(question[1])}; the host appends to an existing file: delete it and"
                " evaluate again"
            )
        answers[question] = line
    return answers


def _prediction_line(task: str, record: Record, result: Record | None) -> Record:
    answer = None if result is None else result["response"]
    line: Record = {
        "id": record["id"],
        "task": task,
        "prompt": prompt_of(record),
        "prediction": answer if isinstance(answer, str) else None,
        "gold": _gold_text(record),
        "finish_reason": None if result is None else result.get("finish_reason"),
        "images": record.get("images") or [],
    }
    line |= {key: record[key] for key in GOLD_FIELDS if key in record}
    line |= {key: result[key] for key in CHOICE_FIELDS if result is not None and key in result}
    if result is None:
        line["error"] = "no answer in the host's results"
    elif result.get("error") or line["prediction"] is None:
        line["prediction"] = None
        line["error"] = str(result.get("error") or f"found {answer!r}")
    return line


def _gold_text(record: Record) -> str:
    turns = record["messages"]
    if turns[-1]["role"] == "assistant":
        return str(turns[-1]["content"])
    return gold_answers(record)[0]


def read_predictions(folder: Path, stream: Stream, task: str) -> list[Record]:
    """Return the prediction lines of one task.

    Raises:
        FileNotFoundError: the task was not evaluated here.
        ValueError: an id twice, or an id that the test set does not have.
    """
    path = folder / f"{task}.jsonl"
    lines = read_jsonl(path)
    known = {record["id"] for record in stream.test_records(task)}
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        name = line.get("id")
        if name not in known:
            raise ValueError(f"{path}:{number}: id {name!r} is not in the test set of {task}")
        if name in seen:
            raise ValueError(f"{path}:{number}: id {name!r} stands there twice")
        seen.add(str(name))
    return lines
