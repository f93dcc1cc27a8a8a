"""The `released` scorers against verdicts that the published scripts really gave."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.scorers.cider import cider_d
from eval.scorers.published_scores import published_scores
from eval.scorers.registry import STRCVIT, find_task

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RELEASED = json.loads((FIXTURES / "released_scores.json").read_text("utf-8"))
CORPORA = json.loads((FIXTURES / "cider_corpus.json").read_text("utf-8"))["corpora"]
CASES = [c for task, cases in RELEASED["cases"].items() if task != "TextCaps" for c in cases]


@pytest.mark.parametrize("task", [t for t in RELEASED["cases"] if t != "TextCaps"])
def test_released_gives_every_published_verdict(task: str) -> None:
    score = find_task(task).scorer("released").sample
    assert score is not None
    wrong = [
        case
        for case in RELEASED["cases"][task]
        if score(case["prediction"], case) != float(case["released_correct"])
    ]
    assert wrong == []


def test_the_fixture_is_whole() -> None:
    assert len(CASES) == 413
    assert len(CORPORA) == 8


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus["name"])
def test_released_captions(corpus: dict[str, Any]) -> None:
    images = corpus["images"]
    scores = (
        find_task("TextCaps")
        .scorer("released")
        .score_all([image["prediction"] for image in images], images)
    )
    expected = [image["released_cider"] for image in images]
    assert [10 * score for score in scores] == pytest.approx(expected, abs=1e-12)
    tokens = [image["prediction"].split() for image in images]
    references = [[text.split() for text in image["gold"]] for image in images]
    oracle = [image["pycocoevalcap_cider"] for image in images]
    assert cider_d(tokens, references) == pytest.approx(oracle, abs=1e-12)


def test_published_scores_of_prediction_lines() -> None:
    line = {"id": "1", "gold": "A", "prediction": "A"}
    caption = line | {"gold": "a b", "references": ["a b c d e"] * 5, "prediction": "a b c d e"}
    box = line | {"answer_bbox": "[0.1, 0.1, 0.5, 0.9]", "size": [4, 4],
                  "prediction": "(0.1, 0.1, 0.5, 0.9)"}  # fmt: skip
    lines = {task: [dict(line)] for task in STRCVIT if task not in ("TextCaps", "Grounding")}
    other = caption | {"id": "2", "references": ["f g h i j"] * 5, "prediction": "f g h i j"}
    lines |= {"TextCaps": [caption, other], "Grounding": [box]}
    found = published_scores(lines)
    assert found["crashes"] == {}
    assert found["tasks"]["TextCaps"] == pytest.approx(1000)
    assert found["tasks"].pop("GQA") == 0.0  # the gold keeps its capital there
    assert {v for k, v in found["tasks"].items() if k != "TextCaps"} == {100.0}
    assert found["mean"] == pytest.approx((8 * 100 + 1000) / 9)
    del lines["Fin"]
    assert published_scores(lines)["mean"] is None


@pytest.mark.parametrize("task", ["AD", "RS", "Fin"])
def test_a_failed_sample_leaves_no_published_score(task: str) -> None:
    line = {"id": "1", "gold": "A", "prediction": None, "error": "no memory"}
    found = published_scores({task: [line], "VQAv2": [line]})
    assert found["tasks"] == {task: None, "VQAv2": 0.0}
    assert "without a prompt" in found["crashes"][task]


TEN = ["stop"] * 3 + ["go"] * 7


@pytest.mark.parametrize(
    ("task", "prediction", "gold", "score"),
    [
        ("UCIT/ImageNet-R", "TENCH", "Tench", 1),
        ("UCIT/ImageNet-R", "Tench.", "Tench", 0),
        ("UCIT/ArxivQA", "B. red", "B", 0),
        ("CoIN/ImageNet", "", "Tench", 1),  # defect: nothing stands in everything
        ("CoIN/ImageNet", "tench", "Tench", 0),  # case counts
        ("CoIN/ImageNet", "a Tench", "Tench", 1),
        ("CoIN/VizWiz", "soda", "Soda", 1),
        ("CoIN/GQA", "Yes..", "yes", 1),
        ("CoIN/GQA", "yes", "Yes", 0),  # the gold keeps its case
        ("CoIN/GQA", " Yes.", "yes", 1),  # one blank before the answer goes
        ("CoIN/GQA", "  yes", "yes", 0),
        ("CoIN/OCRVQA", "JANE AUSTEN", "Jane Austen", 1),
        ("CoIN/OCRVQA", "Unanswerable", "Unanswerable", 0),
        ("CoIN/ScienceQA", "B", "B", 1),
        ("CoIN/ScienceQA", "B. Utah", "B", 1),
        ("CoIN/ScienceQA", "the answer is b", "B", 1),
        ("CoIN/ScienceQA", "It is a dog, so B", "B", 0),  # defect: "a" is the first letter
        ("CoIN/ScienceQA", "", "B", 0),
        ("CoIN/TextVQA", "Stop.", TEN, (3 * 2 / 3 + 7) / 10),  # 3 of 10 agree: 2 or 3 of nine
        ("CoIN/TextVQA", "the go", TEN, 1),
        ("CoIN/TextVQA", "halt", TEN, 0),
    ],
)
def test_scripts_of_ucit_and_coin(task: str, prediction: str, gold: Any, score: float) -> None:
    """Worked by hand from their scripts' arithmetic."""
    found = find_task(task).scorer("released").score_all([prediction], [{"gold": gold}])
    assert found == pytest.approx([score])


@pytest.mark.parametrize(
    ("task", "prediction", "gold", "fixed", "released"),
    [
        ("UCIT/ImageNet-R", "Tench.", "Tench", 1, 0),
        ("UCIT/ArxivQA", "B. red", "B", 1, 0),
        ("UCIT/ArxivQA", "A or B", "B", 0, 0),
        ("UCIT/IconQA", "The answer is B", "B", 1, 0),
        ("UCIT/CLEVR", "There are 3 cubes.", "3", 1, 0),
        ("UCIT/CLEVR", "13", "3", 0, 0),
        ("CoIN/ImageNet", "", "Tench", 0, 1),
        ("CoIN/ImageNet", "tench", "Tench", 1, 0),
        ("CoIN/GQA", "yes", "Yes", 1, 0),
        ("CoIN/VizWiz", "the soda", "Soda", 1, 0),
        ("CoIN/VQAv2", "two", "2", 1, 0),
        ("CoIN/OCRVQA", "Unanswerable", "Unanswerable", 1, 0),
        ("CoIN/OCRVQA", "Jane", "Jane Austen", 0, 0),
        ("CoIN/ScienceQA", "(b) Utah", "B", 1, 1),
        ("CoIN/ScienceQA", "2 of them: C", "C", 1, 0),
        ("CoIN/TextVQA", "Stop.", TEN, 1, 0.9),  # 3 of 10: min(3/3, 1)
        ("CoIN/TextVQA", "halt", TEN, 0, 0),
    ],
)
def test_fixed_beside_the_scripts_of_ucit_and_coin(
    task: str, prediction: str, gold: Any, fixed: float, released: float
) -> None:
    """Worked by hand: what an answer is worth, and what the scripts give it."""
    found = [
        find_task(task).scorer(variant).score_all([prediction], [{"gold": gold}])[0]
        for variant in ("fixed", "released")
    ]
    assert found == pytest.approx([fixed, released])


def test_coin_s_boxes_lose_a_leading_blank_first() -> None:
    record = {"answer_bbox": "[0.1, 0.2, 0.5, 0.6]", "size": [40, 30]}
    both = [find_task(name).scorer("released").judge for name in ("CoIN/Grounding", "Grounding")]
    for text in ("[0.1, 0.2, 0.5, 0.6]", " [0.1, 0.2, 0.5, 0.6]", "[0.10, 0.20, 0.50, 0.60]"):
        bare = text.removeprefix(" ")
        # .1, .2, .5, 0. and .10, .20, .50, 0.6: only the second box has an area
        assert [judge(bare, record) for judge in both if judge] == [bare.count("0.60")] * 2
    assert both[0] is not None
    assert both[0](" [0.10, 0.20, 0.50, 0.60]", record) == 1.0


def test_a_stream_s_name_says_whose_scripts() -> None:
    line: Any = {"prediction": "tench", "gold": "Tench", "prompt": "What?"}
    ours = {"ImageNet": [line]}
    assert published_scores(ours)["tasks"] == {"ImageNet": 100.0}  # StrCVIT's ignores the case
    found = published_scores(ours, "coin")
    assert (found["tasks"], found["mean"]) == ({"ImageNet": 0.0}, None)


CAPTIONS = ("a red car stands near the old wooden house", "two dogs run over the wet grass",
            "he plays a guitar on stage tonight")  # fmt: skip
CAPTION_LINES: Any = [{"prediction": t, "gold": t, "references": [t] * 5} for t in CAPTIONS]


def test_ucit_s_captions_say_what_their_script_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    scores = published_scores({"VizWiz": CAPTION_LINES}, "ucit")
    assert (scores["tasks"], scores["mean"]) == ({"VizWiz": None}, None)
    assert "pip install pycocoevalcap" in scores["crashes"]["VizWiz"]
    with pytest.raises(ValueError, match=r"one score for the whole test set: .*scores\.json"):
        find_task("UCIT/Flickr30k").scorer("released")


def test_ucit_s_captions_are_the_mean_of_seven_metrics() -> None:
    """Captions equal to their references: six metrics are 100, CIDEr is 10 x 100."""
    pytest.importorskip("pycocoevalcap")
    scores = published_scores({"Flickr30k": CAPTION_LINES}, "ucit")
    assert scores["tasks"]["Flickr30k"] == pytest.approx((6 * 100 + 1000) / 7, abs=1e-3)
