"""Any answer to any gold: no crash, a score in 0..1, and the same score for the same answer.

The long run, ten minutes at most, belongs to `make long` (FULL_LONG=1).
"""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import json
import os
import unicodedata
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eval.score import score_records
from eval.scorers.registry import FIXED, TASKS, find_scorer

PIECES = st.sampled_from(
    [
        *(
            "A",
            "B",
            "a",
            "I",
            "(B)",
            "B.",
            "**B**",
            "option ",
            "the answer is ",
            "not ",
            "or ",
            "and ",
        ),
        *(
            "yes",
            "no",
            "maybe",
            ", ",
            ". ",
            "\n",
            " ",
            "",
            "1",
            "1,200",
            "3 1/2",
            "−5",
            "½",
            "%",
            "$",
        ),
        *("€", "km²", "2010", "10:30", "[1, 2, 3, 4]", "(1,2),(3,4)", "<box>", "</box>", '"x1": '),
        *(
            "<ref>2 dogs</ref>",
            "<think>",
            "</think>",
            "<answer>",
            "\\boxed{",
            "}",
            "{",
            "\\frac{1}{2}",
        ),
        *(
            "红色",
            "दिन",
            "ที่",
            "C++",
            "C#",
            "x²",
            "Ａ",
            "答案",
            "選",
            "😀",
            "\u200d",
            "\u0301",
            "\x00",
        ),
        *("\ud800", "'", '"', "['a', 'b']", "=", "-", "####", "left", "right", '{"bbox_2d": '),
    ]
)
ANSWERS = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=40))
WORDS = st.text("abcdé 12.,-()ßदिन红色Б", min_size=1, max_size=12)
EQUALITY = [name for name in FIXED if name not in ("caption", "grounding")]


def _record(gold: Any) -> dict[str, Any]:
    record = {"gold": gold, "answer_bbox": "[0.1, 0.2, 0.3, 0.4]", "size": [10, 10]}
    return record | {"options": ["up", "down"], "box_format": "thousand"}


def _scores_in_range(answer: str, gold: Any) -> None:
    for name, scorer in FIXED.items():
        try:
            scores = scorer.score_all([answer], [_record(gold)])
        except ValueError as error:  # a gold that is refused, and said so
            assert "gold" in str(error), name  # noqa: PT017
            continue
        assert len(scores) == 1
        assert 0.0 <= scores[0] <= 1.0, name


def _scores_are_told(answer: Any, gold: Any) -> None:
    """One result a sample, a score or an error, whatever stands in the file."""
    for task in TASKS.values():
        for variant in ("fixed", "released"):
            if variant == "released" and task.released is None:
                continue
            records = [
                {"question_id": 1, "gold": gold, "prediction": answer},
                {"question_id": 2, "gold": "a", "prediction": "a"},
            ]
            results = score_records(records, task.scorer(variant))
            assert [result["question_id"] for result in results] == [1, 2]
            assert all(0.0 <= result["score"] <= 1.0 for result in results)
            json.dumps(results)


def _same_score(answer: str, gold: str) -> None:
    """Forms of one answer, and of one gold, earn the same."""
    forms = [
        unicodedata.normalize("NFD", answer),
        unicodedata.normalize("NFC", answer),
        f" {answer}\n",
        f"<think>yes, no, 5, (A)</think>{answer}",
        f"<answer>{answer}</answer>",
    ]
    golds: list[Any] = [[gold], [{"answer": gold, "answer_id": 1}], json.dumps([gold]), str([gold])]
    for name in EQUALITY:
        scorer = find_scorer(name)
        assert scorer.sample is not None
        score = scorer.sample(answer, {"gold": gold})
        for form in forms:
            assert scorer.sample(form, {"gold": gold}) == score, (name, form)
        for other in golds:
            assert scorer.sample(answer, {"gold": other}) == score, (name, other)


def _gold_is_right(gold: str) -> None:
    """The gold as an answer is right, in capitals and in full width too."""
    assume(any(character.isalnum() for character in gold))
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in gold)
    for name in ("exact", "compact", "label", "contains", "relaxed", "ocr"):
        scorer = find_scorer(name)
        assert scorer.sample is not None
        for answer in (gold, gold.upper(), wide, f"**{gold}**", f"<think>no</think>{gold}"):
            if name == "label" and "," in gold:
                continue
            assert scorer.sample(answer, {"gold": gold}) == 1.0, (name, answer)


# A library loaded by another test in this process may have switched subnormal numbers off.
FLOATS = st.floats(allow_subnormal=False)


@given(answer=ANSWERS, gold=st.one_of(ANSWERS, st.integers(), FLOATS, st.lists(ANSWERS)))
def test_any_answer_has_a_score(answer: str, gold: Any) -> None:
    _scores_in_range(answer, gold)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, ANSWERS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["answer", "answers", "answer_bbox", "size", "text"]), inner
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(answer=JSON, gold=JSON)
def test_any_line_is_told(answer: Any, gold: Any) -> None:
    _scores_are_told(answer, gold)


@given(answer=st.one_of(WORDS, ANSWERS.filter(lambda text: "<" not in text)), gold=WORDS)
def test_the_same_answer_earns_the_same(answer: str, gold: str) -> None:
    _same_score(answer, gold)


@given(gold=WORDS)
def test_the_gold_is_right(gold: str) -> None:
    _gold_is_right(gold)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FULL_LONG") != "1", reason="FULL_LONG=1: minutes of examples")
@settings(max_examples=6000)
@given(answer=ANSWERS, gold=ANSWERS, words=WORDS, line=JSON)
def test_for_long(answer: str, gold: str, words: str, line: Any) -> None:
    _scores_in_range(answer, gold)
    if "<" not in answer:
        _same_score(answer, words)
    _scores_are_told(answer, line)
    if any(character.isalnum() for character in words):
        _gold_is_right(words)
