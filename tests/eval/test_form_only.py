"""Scores blind to case and format: worked by hand, never below the official one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.form_only import bare, lenient_scores
from eval.predictions import TaskScores, score_lines, sum_up
from eval.report.tables import form_losses, form_table
from eval.scorers.registry import FIXED, find_scorer

CHOICES = "Which?\nA. West Virginia\nB. Louisiana\nAnswer with the option's letter."
NUMBERED = "How many?\n0. 72\n1. 71"
STEPS = "How many?\n0. 1\n1. 2"
BOX = {"answer_bbox": "[0.1, 0.2, 0.5, 0.6]", "size": [40, 30]}
TEN = {"references": ["net"] * 2 + ["the net"] + ["racket"] * 7}


@pytest.mark.parametrize(
    ("scorer", "answer", "more", "official", "blind"),
    [
        ("vqa", "It is a dog.", {"gold": "dog"}, 0, 1),
        ("vqa", "Yes, it is", {"gold": "yes"}, 0, 1),
        ("vqa", "no, yes was wrong", {"gold": "yes"}, 0, 0),
        ("vqa", "There are three.", {"gold": "3"}, 0, 1),
        ("vqa", "a cat", {"gold": "dog"}, 0, 0),
        ("vqa", "It's the net", {"gold": "net", **TEN}, 0, 1),
        ("exact", "UrsulaK. LeGuin", {"gold": "Ursula K. Le Guin"}, 0, 1),
        ("exact", "The answer is: Tench", {"gold": "tench"}, 0, 1),
        ("choice", "louisiana", {"gold": "B", "prompt": CHOICES}, 0, 1),
        ("choice", "West Virginia", {"gold": "B", "prompt": CHOICES}, 0, 0),
        ("choice", "B", {"gold": "Louisiana", "prompt": CHOICES}, 0, 1),
        ("choice", "(B) Louisiana", {"gold": "B", "prompt": CHOICES}, 1, 1),
        ("choice", "up", {"gold": "B", "options": ["down", "up"]}, 0, 1),
        ("choice", "A", {"gold": "yes", "options": ["yes", "no"]}, 0, 1),
        ("choice", "B", {"gold": "yes", "options": ["yes", "no"]}, 0, 0),
        ("choice", "0. 72", {"gold": "72", "prompt": NUMBERED}, 0, 1),
        ("choice", "0", {"gold": "72", "prompt": NUMBERED}, 0, 1),
        ("choice", "71", {"gold": "1", "prompt": NUMBERED}, 0, 1),
        ("choice", "1", {"gold": "72", "prompt": NUMBERED}, 0, 0),
        # Two numbers are not the one that their digits make; blanks as thousands separators are.
        ("exact", "3,5", {"gold": "35"}, 0, 0),
        ("vqa", "9-5", {"gold": "95"}, 0, 0),
        ("vqa", "10:30", {"gold": "1030"}, 0, 0),
        ("relaxed", "1 2", {"gold": "12"}, 0, 0),
        ("vqa", "one two", {"gold": "12"}, 0, 0),
        ("exact", "1 2 000", {"gold": "12000"}, 0, 0),
        ("exact", "9, 5 dogs", {"gold": "nine five dogs"}, 0, 1),
        ("exact", "12 345 678", {"gold": "12345678"}, 0, 1),
        ("choice", "1", {"gold": "2", "prompt": STEPS}, 0, 0),  # the option 1, or the number 1
        ("label", "tabby cat", {"gold": "Tabby_Cat"}, 1, 1),
        ("label", "It is a tabby.", {"gold": "tabby, tabby cat"}, 0, 1),
        ("label", "It's a kitty", {"gold": "cat", "synonyms": ["kitty"]}, 0, 1),
        ("label", "", {"gold": "Tench"}, 0, 0),
        ("grounding", "100, 267, 500, 800", BOX, 0, 1),  # thousandths of each side: the same box
        ("grounding", "[100, 267, 500, 800]", {**BOX, "box_format": "thousand"}, 1, 1),
        ("grounding", "[4, 8, 20, 24]", BOX, 0, 1),  # pixels: 40 times the gold
        ("grounding", "[0.6, 0.6, 0.9, 0.7]", BOX, 0, 0),
        ("grounding", "no box", BOX, 0, 0),
    ],
)
def test_by_hand(
    scorer: str, answer: str, more: dict[str, Any], official: float, blind: float
) -> None:
    line: Any = {"id": "1", "prediction": answer, "gold": "", "prompt": "", **more}
    judge = find_scorer(scorer)
    scores = score_lines([line], judge)
    assert (scores, lenient_scores([line], scores, judge)) == ([official], [blind])


def test_ten_answers_agree_as_in_vqa() -> None:
    line: Any = {"prediction": "It is net", "gold": "net", "references": ["net"] * 2 + ["bat"] * 8}
    assert lenient_scores([line], [0.0], FIXED["vqa"]) == [pytest.approx(2 / 3)]


def test_without_an_answer_it_earns_nothing_and_captions_keep_their_score() -> None:
    line: Any = {"id": "1", "prediction": None, "gold": "dog", "prompt": ""}
    assert lenient_scores([line], [0.0], FIXED["vqa"]) == [0.0]
    assert lenient_scores([line], [0.3], FIXED["caption"]) == [0.3]


def test_a_task_sums_up_both_and_older_lines_none() -> None:
    lines: list[Any] = [
        {"id": "1", "prediction": "x", "score": 0.0, "lenient": 1.0},
        {"id": "2", "prediction": "x", "score": 1.0, "lenient": 1.0},
    ]
    found = sum_up(lines, FIXED["vqa"])
    assert (found.score, found.lenient) == (0.5, 1.0)
    del lines[1]["lenient"]
    assert sum_up(lines, FIXED["vqa"]).lenient != sum_up(lines, FIXED["vqa"]).lenient  # NaN


def test_bare_words() -> None:
    assert bare("**The Art_Gallery**.") == bare("art gallery") == "artgallery"
    assert bare("Two dogs") == "2dogs"
    assert bare("3 to 5, 6") == "3to5 6"


def test_style_drift_and_lost_knowledge_are_told_apart() -> None:
    """VQAv2 only answers in sentences by now; half of GQA's loss is real; AD has no blind score."""

    def scored(score: float, lenient: float) -> TaskScores:
        return TaskScores([], [], 0, score, 0.0, lenient)

    values = np.array([[0.9, math.nan, math.nan], [0.8, 0.6, 0.6], [0.1, 0.2, 0.2]])
    matrix = SimpleNamespace(values=values)
    run: Any = SimpleNamespace(tasks=["VQAv2", "GQA", "AD"], evaluated=2, matrix=matrix)
    run.has_no_stream = False
    run.scored = {
        (0, "VQAv2"): scored(0.9, 0.9),  # the base model is no best chunk
        (1, "VQAv2"): scored(0.8, 0.8), (2, "VQAv2"): scored(0.1, 0.8),
        (1, "GQA"): scored(0.6, 0.7), (2, "GQA"): scored(0.2, 0.5),
        (1, "AD"): scored(0.6, math.nan), (2, "AD"): scored(0.2, math.nan),
    }  # fmt: skip
    table = form_table(run)
    assert table is not None
    # score, blind, form only | lost since best: official, blind, the difference
    assert table.rows == [
        ["VQAv2", "10.0", "80.0", "70.0", "70.0", "0.0", "70.0"],
        ["GQA", "20.0", "50.0", "30.0", "40.0", "20.0", "20.0"],
        ["mean", "15.0", "65.0", "50.0", "55.0", "10.0", "45.0"],
    ]
    # Compared over chunk 2 alone, nothing is lost since a chunk that is not compared.
    assert form_losses(run, [0, 2])["VQAv2"] == pytest.approx((0.1, 0.8, 0.7, 0.0, 0.0, 0.0))
    # Without the predictions of chunk 1 the loss is that of matrix.csv, blind it is not known.
    del run.scored[1, "VQAv2"]
    table = form_table(run)
    assert table is not None
    unknown = "\N{EN DASH}"
    assert table.rows[0] == ["VQAv2", "10.0", "80.0", "70.0", "70.0", unknown, unknown]
    assert table.rows[2][-2:] == [unknown, unknown]
    run.scored = {(2, "AD"): scored(0.2, math.nan)}
    assert form_table(run) is None
