"""`ask`: one question to a run's model, put as its evaluation puts the test questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.errors import ERROR
from data_prep.files import Record, read_jsonl, write_jsonl
from data_prep.images import inspect
from data_prep.stream import StreamError
from eval.question_form import IMAGE, Form, form_of
from eval.questions import question_line
from recipes.processes.host_process import HostProcess
from recipes.processes.log_errors import cause_of, exit_text
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.commands import infer_command
from recipes.run_folder.start import chunks_before
from recipes.use.finished_adapter import FinishedAdapter, UseError, adapter_text
from strlora_tuner.options import PROBE_FILE, ROUTING_FILE


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer; it may be empty.
        finish_reason: `stop`, or `length` where it was cut.
        adapter: what the host said of the adapter that it loaded; None for the base model.
        expert: the chunk whose adapter or router answered, for methods that choose one; 0: one that
            came with `start_from`.
        note: what to know where the run's questions have several forms.
    """

    text: str
    finish_reason: str | None
    adapter: str | None
    expert: int | None
    note: str | None = None


def ask(
    adapter: FinishedAdapter,
    question: str,
    pictures: Sequence[Path] = (),
    max_tokens: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Puts a question to the model and returns its answer.

    Args:
        adapter: who answers.
        question: may hold <image> marks where the pictures belong; else they stand where those of
            the run's questions do.
        pictures: image files, in the order of their marks.
        max_tokens: of the answer at most; None: as the recipe's evaluation.
        environment: further variables of the host's process.

    Raises:
        UseError: a picture cannot be read, or the host failed.
    """
    form = form_of(own_questions(adapter))
    turns = checked_turns(form, question, pictures)
    recipe = adapter.alone
    if max_tokens is not None:
        limit = {"max_new_tokens": max_tokens}
        recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update=limit)})
    with adapter.beside() as layout:
        images = [str(picture.resolve()) for picture in pictures]
        write_jsonl(layout.prompts, [{"messages": turns, "images": images}])
        command = infer_command(recipe, layout, layout.prompts, adapter.chunk)
        # One question is no evaluation: which experts it took is not recorded.
        kept = {k: v for k, v in command.environment.items() if k not in (ROUTING_FILE, PROBE_FILE)}
        kept |= environment or {}
        log, answers = layout.eval_log(adapter.chunk), layout.answers(adapter.chunk)
        code = HostProcess(replace(command, environment=kept), log).wait()
        if code or not answers.is_file():
            raise UseError(f"the host {exit_text(code)} without an answer:\n{cause_of(log)}")
        line = read_jsonl(answers)[0]
        if line.get("error"):
            raise UseError(f"the question could not be answered: {line['error']}")
        finish, expert = line.get("finish_reason"), line.get("expert")
        if expert is not None:
            expert = max(expert - chunks_before(adapter.layout), 0)
        return Answer(str(line["response"]), finish, adapter_text(log), expert, form.note)


def own_questions(adapter: FinishedAdapter) -> list[Record]:
    """What the run was asked in its evaluations, else what it would be; none without its stream."""
    path = adapter.layout.prompts  # empty where an interrupted evaluation had asked all
    if path.is_file() and (asked := read_jsonl(path, torn_tail=True)):
        return asked
    try:
        stream = open_recipe_stream(adapter.recipe)
        records = [record for task in stream.tests for record in stream.test_records(task)]
        records = records or read_jsonl(stream.chunk_file(max(adapter.chunk, 1)))
    except (StreamError, OSError, ValueError):  # gone, or damaged
        return []
    return [question_line(record) for record in records]


def checked_turns(form: Form, question: str, pictures: Sequence[Path]) -> list[Record]:
    """The messages of a question whose pictures can be read.

    Raises:
        UseError: the question is empty, or pictures and their marks do not fit.
    """
    if not question.replace(IMAGE, "").strip():
        raise UseError('the question is empty; write it in quotes: "What is this?"')
    for picture in pictures:
        found = inspect(picture, str(picture)).findings
        if wrong := [text for _, text, severity in found if severity == ERROR]:
            raise UseError("; ".join(wrong))
    turns = form.turns(question, len(pictures))
    marks = str(turns[-1]["content"]).count(IMAGE)
    if marks != len(pictures):
        raise UseError(
            f"the question marks {marks} pictures with {IMAGE}, {len(pictures)} are given; give as "
            "many, or leave the marks out"
        )
    return turns
