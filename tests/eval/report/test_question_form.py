"""The form of a run's questions: where pictures stand, the system turn, and several forms."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from eval.question_form import Form, form_of


def asked(text: str, pictures: int = 1, system: str | None = None) -> dict[str, Any]:
    before = [] if system is None else [{"role": "system", "content": system}]
    images = [f"{number}.png" for number in range(pictures)]
    return {"messages": [*before, {"role": "user", "content": text}], "images": images}


@pytest.mark.parametrize(
    ("recorded", "pictures", "words"),
    [
        ("<image>What is it?", 1, "What is it?"),
        ("<image>\nWhat is it?", 1, "What is it?"),
        ("What is it?\n<image>", 1, "What is it?"),
        ("What is it?<image>", 1, "What is it?"),
        ("What is it? <image>\n", 1, "What is it?"),
        ("\n<image> What is it? ", 1, "What is it? "),
        ("<image><image>\nThe same?", 2, "The same?"),
        ("<image>\n<image>\nThe same?", 2, "The same?"),
        ("The same?\n<image> <image>", 2, "The same?"),
        ("Why?", 0, "Why?"),
    ],
)
@pytest.mark.parametrize("system", [None, "Be brief.", ""])
def test_a_test_question_is_put_as_it_stands(
    recorded: str, pictures: int, words: str, system: str | None
) -> None:
    record = asked(recorded, pictures, system)
    form = form_of([record])
    assert form.turns(words, pictures) == record["messages"]
    assert form.note is None
    assert Form(**json.loads(json.dumps(asdict(form)))) == form


def test_what_was_never_asked_follows_it() -> None:
    form = form_of([asked("What is it?\n<image>", 1, "Be brief.")])
    system = {"role": "system", "content": "Be brief."}
    behind = {"role": "user", "content": "Which?\n<image>\n<image>"}
    assert form.turns("Which?", 2) == [system, behind]
    assert form.turns("Why?", 0) == [system, {"role": "user", "content": "Why?"}]
    marked = {"role": "user", "content": "Is <image> it?"}
    assert form.turns("Is <image> it?", 1) == [system, marked]


def test_of_several_forms_the_most_frequent_is_taken_and_the_rest_is_told() -> None:
    lines = [asked("What?\n<image>"), asked("<image>\nWhat?"), asked("<image>\nWho?")]
    form = form_of(lines)
    assert form.turns("How?", 1)[-1]["content"] == "<image>\nHow?"
    assert form.note is not None
    assert "1 of the run's questions are put otherwise" in form.note
    assert r'"<image>\nQUESTION"' in form.note
    assert r'"What?\n<image>"' in form.note
    assert form_of(lines[:2]).turns("How?", 1)[-1]["content"] == "How?\n<image>", "the first"
    two = form_of([asked("<image>\nWhat?"), asked("<image><image>\nThe same?", 2)])
    assert two.note is None
    assert two.turns("How?", 2)[-1]["content"] == "<image><image>\nHow?"


def test_pictures_inside_a_text_and_another_system_turn_are_told() -> None:
    """No question without marks can be put so."""
    form = form_of([asked("Name <image> in a word."), asked("First <image>, then <image>?", 2)])
    assert form.turns("What?", 1) == [{"role": "user", "content": "<image>What?"}]
    assert form.others == 2
    assert '"Name <image> in a word."' in str(form.note)
    form = form_of([asked("<image>What?"), asked("Why?", 0, "Think.")])
    assert (form.system, form.others) == (None, 1)
    assert "Think." in str(form.note)


def test_marks_that_lack_stand_where_the_host_puts_them() -> None:
    """In front of the first turn."""
    assert form_of([asked("What?")]).turns("What?", 1)[-1]["content"] == "<image>What?"
    assert form_of([asked("What?")]).note is None
    assert form_of([]) == Form()
