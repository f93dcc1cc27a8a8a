"""Yes and no with an explanation behind: the first clause decides, hedges are wrong."""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import pytest

from eval.scorers.yes_no import is_yes_no, says, verdict
from tests.eval.scorers import score_sample

YES = [
    "yes",
    "Yes.",
    "**Yes**",
    "(Yes)",
    "'Yes'",
    "\\boxed{Yes}",
    "Yes, there is no obstacle ahead.",  # CRIPAC-DIG/LogicCheckGPT#1
    "Yes. No car blocks the lane.",
    "Yes; no lane is free",
    "Yes - the car is red",
    "Yes because no car is there",
    "Yes there is no car",
    "yes\n\nThere is no car.",
    "Yes, it might rain",
    "The answer is yes.",
    "The answer is: yes, there is no car",
    "I would say yes",
    "Well, yes.",
    "Yeah, it is",
    "No doubt, yes",
    "There is no car, so yes.",
    "I see no car. Yes.",
]
NO = [
    "No",
    "No, there is no car.",
    "No, yes-men are not in the picture",
    "No car is there.",
    "There is no obstacle ahead.",
    "Answer: No",
    "nope",
    "Yes! Final answer: no",
]
NEITHER = [
    "",
    "yes, no",
    "No, yes",
    "yes or no",
    "Yes and no.",
    "yes/no",
    "Yes. Wait, no.",
    "Neither yes nor no",
    "Maybe",
    "Maybe yes",
    "Probably yes.",
    "Perhaps, yes",
    "Yes, maybe.",
    "It could be yes",
    "I'm not sure, but yes",
    "It depends.",
    "I do not know",
    "unknown",
    "yesterday",
    "notes",
    "It is not.",
    "no problem",
    "No. 5",
    # BradyFU/Awesome-Multimodal-Large-Language-Models#86: neither word is a wrong answer.
    "The photo is taken inside a greenhouse.",
]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [(a, True) for a in YES] + [(a, False) for a in NO] + [(a, None) for a in NEITHER],
)
def test_what_an_answer_says(answer: str, wanted: bool | None) -> None:
    assert verdict(answer) == wanted
    for scorer in ("choice", "contains", "relaxed", "number", "science"):
        assert score_sample(scorer, answer, {"gold": "yes"}) == float(wanted is True), scorer
        assert score_sample(scorer, answer, {"gold": "No"}) == float(wanted is False), scorer


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("是的，没有障碍", "是", True),
        ("不是", "是", False),
        ("不是", "否", True),
        ("はい、車はいません", "はい", True),
        ("いいえ、あります", "はい", False),
        ("아니요, 없습니다", "아니요", True),
        ("Oui, il n'y a pas de non-fumeur", "oui", True),
        ("Nein, das ist rot", "nein", True),
        ("No, no hay", "no", True),
        ("Нет, это да", "нет", True),
    ],
)
def test_other_languages(answer: str, gold: str, right: bool) -> None:
    assert is_yes_no(gold)
    assert says(answer, gold) == right


def test_other_golds_are_none() -> None:
    assert not any(map(is_yes_no, ["", "unknown", "yes, it is", "none", "not"]))
    with pytest.raises(ValueError, match="expected yes or no"):
        says("yes", "maybe")


def test_options_with_a_third_are_read_as_options() -> None:
    record = {"gold": "yes", "options": ["yes", "no", "unclear"]}
    assert score_sample("choice", "It is yes", record) == 1.0
    assert score_sample("choice", "It is unclear, yes or no", record) == 0.0
