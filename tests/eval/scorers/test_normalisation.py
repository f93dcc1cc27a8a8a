"""Text in any script: what is the same, what is not, and containment."""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.scorers.text import contains_words, evalai, fold, plain, vqa_text
from tests.eval.scorers import score_sample

SAME = [
    ("दिन", "दिन"),
    ("cafe\u0301", "CAFÉ"),
    ("ＹＥＳ", "yes"),
    ("ｶﾒﾗ", "カメラ"),
    ("２０１０", "2010"),
    ("५", "5"),
    ("٣", "3"),
    ("H₂O", "H2O"),
    ("x²", "x^2"),
    ("ﬁre", "fire"),
    ("Straße", "STRASSE"),
    ("İstanbul", "istanbul"),
    ("Coca-Cola™", "coca cola"),
    ("−5", "-5"),
    ("don’t", "don't"),
    ("می‌خواهم", "میخواهم"),  # the invisible joiner
    ("\ufeffred", "red"),
    ("❤️", "❤"),
    ("**Art_Gallery**", "art gallery"),
    ("1,000", "1000"),
    ("Pride & Prejudice", "pride and prejudice"),
    ("F♯", "F#"),
    ("红 色", "红色"),
    ("C++.", "c++"),
]
# Words of Indian scripts that differ in a vowel sign: openai/whisper#2849, whisper_normalizer#25.
DIFFERENT = [
    ("दिन", "दान"),
    ("कि", "की"),
    ("தி", "து"),
    ("കമ്പ്യൂട്ടർ", "കമപയടടർ"),
    ("ที่", "ที"),
    ("กา", "กำ"),
    ("גּ", "ג"),
    ("résumé", "resume"),
    ("x²", "x2"),
    ("10³", "103"),
    ("㎡", "m2"),
    ("½", "12"),
    ("C++", "C#"),
    ("C++", "C"),
    ("C#", "C"),
    ("A+", "A-"),
    ("A+", "A"),
    ("O-", "O"),
    ("-5", "5"),
    ("−5", "5"),  # inspect_ai#4636: other dashes than the ASCII one
    ("3.14", "314"),
    ("$5", "€5"),
    ("50%", "50"),
    ("<5", ">5"),
    ("≤5", "≥5"),
    ("♥", "♣"),
    ("→", "←"),
    ("×", "÷"),
    ("🎉", "😀"),
    ("红色", "绿色"),
    ("は", "ば"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one: str, other: str) -> None:
    assert plain(one) == plain(other)
    assert plain(one)
    for scorer in ("exact", "compact", "label", "contains"):
        assert score_sample(scorer, one, {"gold": other}) == 1.0
        assert score_sample(scorer, other, {"gold": one}) == 1.0


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_the_same(one: str, other: str) -> None:
    assert plain(one) != plain(other)
    for scorer in ("exact", "label", "ocr"):
        if not (scorer == "ocr" and one == "50%"):  # 50 does stand in 50%
            assert score_sample(scorer, one, {"gold": other}) == 0.0, scorer
        assert score_sample(scorer, other, {"gold": one}) == 0.0, scorer


def test_vqa_keeps_what_evalai_drops() -> None:
    for one, other in (("C++", "C"), ("C++", "C#"), ("-5", "5"), ("A+", "A-")):
        assert vqa_text(one) != vqa_text(other)
    assert vqa_text("ＹＥＳ") == "yes"
    assert vqa_text("−5") == vqa_text("-5")
    for text in ("The man's 2 dogs, don't!", "well-known", "red and white", "two", "it's 3:50"):
        assert vqa_text(text) == evalai(text)


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("红色", "这是一辆红色的汽车。", 1),
        ("汽车", "这是一辆红色的汽车。", 1),
        ("绿色", "这是一辆红色的汽车。", 0),
        ("テレビ", "これはテレビです", 1),
        ("แมว", "มีแมวดำ", 1),
        ("rouge", "une voiture rouge", 1),
        ("rouge", "des infrarouges", 0),
        ("빨간", "빨간 차", 1),
        ("दिन", "आज का दिन", 1),
        ("दि", "आज का दिन", 0),
        ("C", "C++ and C#", 0),
        ("C++", "I prefer C++.", 1),
        ("1", "1/2", 0),
        ("200", "The total is 1,200.", 0),
        ("urban", "suburban", 0),
        ("OPEN", "现在OPEN了", 1),
    ],
)
def test_containment(gold: str, answer: str, score: float) -> None:
    assert score_sample("contains", answer, {"gold": gold}) == score
    assert score_sample("ocr", answer, {"gold": gold}) == score
    options = {"gold": gold, "options": [gold, "something else"]}
    assert score_sample("choice", answer, options) == score or gold == "C"


def test_marks_alone_are_compared_as_they_are() -> None:
    assert score_sample("exact", "...", {"gold": "..."}) == 1.0
    assert score_sample("exact", "...", {"gold": "!"}) == 0.0
    assert score_sample("exact", "", {"gold": ""}) == 0.0


@given(text=st.text(max_size=20))
def test_normalisation_is_stable(text: str) -> None:
    assert plain(unicodedata.normalize("NFD", text)) == plain(unicodedata.normalize("NFC", text))
    assert plain(plain(text)) == plain(text)
    if plain(text):
        assert contains_words(plain(text), plain(text))


@given(text=st.text(st.characters(max_codepoint=127), max_size=30))
def test_folding_leaves_ascii_alone(text: str) -> None:
    assert fold(text) == text
