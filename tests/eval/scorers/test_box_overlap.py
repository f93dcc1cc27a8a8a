"""Boxes in answers: read by structure first, loose digits last."""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.scorers.box_overlap import parse_box
from tests.eval.scorers import score_sample

BOX = (100.0, 200.0, 500.0, 800.0)
# All hold one box, most beside other digits.
ONE = [
    "[100, 200, 500, 800]",
    "100 200 500 800",
    "<ref>2 dogs</ref><box>(100,200),(500,800)</box>",  # modelscope/ms-swift#99
    "<ref>2 dogs</ref><box>[[100, 200, 500, 800]]</box>",
    "The 2 dogs in image 3: <box>100 200 500 800</box>",
    "<box><100><200><500><800></box>",
    "<|object_ref_start|>dog 3<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|>",
    "<|box_start|>(100,200),(500,800)",
    'Sure:\n```json\n[{"bbox_2d": [100, 200, 500, 800], "label": "2 dogs"}]\n```',
    # om-ai-lab/VLM-R1#44, EvolvingLMMs-Lab/lmms-eval#1373: JSON of several shapes, cut ones too.
    '{"bbox_2d": [100, 200, 500, 800], "label": "man, 40 years"}',
    '[{"bbox": [100, 200, 500, 800], "score": 0.9}]',
    '```json\n[{"bbox_2d": [100, 200, 500, 800], "label": "2 do',
    '{"x1": 100, "y1": 200, "x2": 500, "y2": 800, "score": 0.9, "label": "dog 2"}',
    '{"xmin": 100, "ymin": 200, "xmax": 500, "ymax": 800}',
    "left: 100, top: 200, right: 500, bottom: 800, 1 dog",
    "[x1=100, y1=200, x2=500, y2=800]",
    "There are 2 dogs at [100, 200, 500, 800], 95% sure.",
    "The box is at (100, 200) to (500, 800) in a 640x480 image with 3 dogs",
    "[[100, 200], [500, 800]]",
    "2 dogs: 100, 200, 500, 800",
    # The same box twice is one box.
    "[100, 200, 500, 800] and again [100, 200, 500, 800]",
    "<box>(100,200),(500,800)</box><box>(100,200),(500,800)</box>",
    "(100,200),(500,800); (100,200),(500,800)",
    "[100, 200, 500, 800] = [100.0, 200.0, 500.0, 800.0]",
    "[１００, 200, 500, 800]",
]
NONE = [
    "",
    "2 dogs",
    "[100, 200, 500]",
    "[100, 200, 500, 800, 0.9]",
    "[100, 200, 500, 800] or [1, 2, 3, 4]",
    "<box>(100,200),(500,800)</box><box>(1,2),(3,4)</box>",
    '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]',
    "5 100 200 500 800",
    "[nan, 200, 500, 800]",
]


@pytest.mark.parametrize("text", ONE)
def test_one_box(text: str) -> None:
    assert parse_box(text) == BOX
    gold = {"answer_bbox": "[0.1, 0.1, 0.5, 0.4]", "size": [1000, 500]}
    for record in (
        {"gold": gold, "box_format": "thousand"},
        {"gold": {**gold, "box_format": "thousand"}},
        {**gold, "gold": "[0.1, 0.1, 0.5, 0.4]", "box_format": "thousand"},
        {"gold": {"answer_bbox": [0.1, 0.1, 0.5, 0.4], "size": "[1000, 500]",
                  "box_format": "thousand"}},
    ):  # fmt: skip
        assert score_sample("grounding", text, record) == 1.0
    assert score_sample("grounding", text, {"gold": gold}) == 0.0


@pytest.mark.parametrize("text", NONE)
def test_no_box(text: str) -> None:
    assert parse_box(text) is None


def test_a_sign_of_any_kind() -> None:
    assert parse_box("[−1, 2, 3, 4]") == (-1, 2, 3, 4)


def test_an_unknown_format_in_the_gold_is_named() -> None:
    gold = {"answer_bbox": "[0, 0, 1, 1]", "size": [1, 1], "box_format": "percent"}
    with pytest.raises(ValueError, match="box_format: found 'percent'"):
        score_sample("grounding", "[0, 0, 1, 1]", {"gold": gold})


NUMBERS = st.lists(st.integers(0, 1000), min_size=4, max_size=4)
FORMS = [
    "{0} {1} {2} {3}",
    "[{0}, {1}, {2}, {3}]",
    "<ref>7 cats</ref><box>({0},{1}),({2},{3})</box>",
    '[{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "7 cats"}}]',
    "7 cats: ({0}, {1}), ({2}, {3})",
    "x1: {0}, y1: {1}, x2: {2}, y2: {3}",
]


@given(numbers=NUMBERS)
def test_every_form_says_the_same(numbers: list[int]) -> None:
    assert {parse_box(form.format(*numbers)) for form in FORMS} == {tuple(map(float, numbers))}
