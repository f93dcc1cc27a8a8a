"""Thoughts and tags around answers, and the forms that golds come in."""

# Other scripts and marks on purpose.

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.score import main
from eval.scorers.answer_text import final_answer, find_answer, gold_answers
from eval.scorers.registry import FIXED, find_scorer, find_task
from tests.eval.scorers import score_sample, score_samples

NAN = float("nan")

# Every output answers "B".
OUTPUTS = [
    "B",
    "<think>Option A shows a truck.</think>\n\nB",
    "<think>\n\n</think>\n\nB",  # Qwen3 with thinking switched off
    "<think>A?</think><answer>B</answer>",
    "<think>A?</think>\n<answer>B",  # cut behind the answer
    # Kimi K2.5 and others: the template opened the thought (NousResearch/hermes-agent#4286).
    "A could be it.</think>B",
    "<thinking>A?</thinking>B",
    "<THINK>A?</THINK> B",
    "<think time='3'>A?</think>B",
    "<thought>A?</thought>B",
    "<|think|>A?<|/think|>B",
    "<rationale>A?</rationale>B",
    "<reasoning>A?</reasoning>B",  # tinyhumansai/openhuman#6184
    "<seed:think>A?</seed:think>B",
    "[THINK]A?[/THINK]B",  # Magistral
    "◁think▷A?◁/think▷B",  # Kimi-VL
    "<|begin_of_thought|>A?<|end_of_thought|>\n<|begin_of_solution|>B<|end_of_solution|>",
    "<|START_THINKING|>A?<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>",
    "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B",
    "analysisMaybe A.assistantfinalB",  # the same without its special tokens
    "<unused94>thought\nA?<unused95>B",  # MedGemma
    "<think>I write <think> tags now. A?</think>B",
    "<think>A?</think>A, no.</think>B",
    "<think>A?</think> Let me look. <think>A!</think> B",
    "B<think>A would be wrong.</think>",  # nothing follows: what came before
    "<answer>A</answer> Wait. <answer>B</answer>",
    "<SUMMARY>A car.</SUMMARY><REASONING>A?</REASONING><CONCLUSION>B</CONCLUSION>",  # LLaVA-CoT
    "<|begin_of_box|>B<|end_of_box|>",  # GLM-4.5V
    "B<|im_end|>",
    "B</s>\n",
    "B</answer>",
]


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_answer_behind_a_thought(output: str) -> None:
    assert find_answer(output).text.strip() == "B"
    assert not find_answer(output).unfinished
    for name in ("choice", "exact", "vqa", "compact", "label", "contains", "number", "science"):
        assert score_sample(name, output, {"gold": "B"}) == 1.0, name


@pytest.mark.parametrize(
    "output",
    [
        "<think>The answer is B",
        "<think>B</think><think>B?",
        "B <thinking>",
        "<|channel|>analysis<|message|>B",
        "[THINK]B",
    ],
)
def test_an_unfinished_thought_is_an_empty_answer(output: str) -> None:
    """huggingface/lighteval#869, allenai/olmo-eval#389."""
    assert find_answer(output) == ("", True)
    for name in FIXED:
        record = {"gold": "B", "answer_bbox": "[0, 0, 1, 1]", "size": [1, 1]}
        assert score_samples(name, [output], [record]) == [0.0], name


@pytest.mark.parametrize(
    "text",
    ["<box>(1,2),(3,4)</box>", "I think B", "a < b > c", "thinking of a car", "<b>B</b>", "\n\nB"],
)
def test_other_text_stays(text: str) -> None:
    assert final_answer(text) == text


def test_captions_and_boxes_are_read_behind_a_thought() -> None:
    box = {"answer_bbox": "[0.1, 0.1, 0.5, 0.4]", "size": [10, 5]}
    thought = "<think>At [0, 0, 1, 1]? No.</think>"
    assert score_sample("grounding", thought + "[0.1, 0.1, 0.5, 0.4]", box) == 1.0
    records = [{"gold": ["a red car"]}, {"gold": ["two dogs play"]}]
    plain = score_samples("caption", ["a red car", "two dogs"], records)
    assert plain == score_samples("caption", [thought + "a red car", thought + "two dogs"], records)


def test_thoughts_can_be_kept_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    outputs = ["<think>A</think>B", "<think>B", NAN]
    records = [{"question_id": i, "gold": "B", "prediction": p} for i, p in enumerate(outputs)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    assert main(["--task", "OCRVQA", str(path)]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["score"] for line in lines] == [1.0, 0.0, 0.0]
    assert [line.get("unfinished_thought") for line in lines] == [None, True, None]
    assert "33.33 over 3 samples, 0 failed, 1 thoughts without an end (empty answers)" in err
    assert main(["--task", "OCRVQA", "--keep-thoughts", str(path)]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["score"] for line in out.splitlines()] == [0.0, 0.0, 0.0]
    assert "thoughts" not in err


def test_released_scorers_see_the_whole_output() -> None:
    theirs = find_task("OCRVQA").scorer("released")
    assert theirs.sample is not None
    assert theirs.sample("<think>A</think>B", {"gold": "B"}) == 0.0


VQA = [{"answer": text, "answer_confidence": "yes", "answer_id": i}
       for i, text in enumerate(["red", "red", "blue"], start=1)]  # fmt: skip
GOLDS = [
    ({"gold": "red"}, ["red"]),
    ({"gold": 3.0}, ["3.0"]),
    ({"gold": ["red", "blue"]}, ["red", "blue"]),
    ({"gold": VQA}, ["red", "red", "blue"]),
    ({"answers": VQA}, ["red", "red", "blue"]),
    ({"gold": {"answers": VQA, "multiple_choice_answer": "red"}}, ["red", "red", "blue"]),
    ({"gold": str(VQA)}, ["red", "red", "blue"]),
    ({"gold": json.dumps(VQA)}, ["red", "red", "blue"]),
    ({"gold": [{"caption": "a red car", "id": 1}]}, ["a red car"]),
    ({"gold": {"text": ["red", "blue"], "answer_start": [3, 9]}}, ["red", "blue"]),
    ({"gold": "['A red car.', \"a dog's toy\"]"}, ["A red car.", "a dog's toy"]),
    ({"gold": '["a", "b"]'}, ["a", "b"]),
    ({"gold": "['a red car' 'b']"}, ["a red car", "b"]),  # as numpy prints an array
    ({"gold": "array(['a', 'b'], dtype=object)"}, ["a", "b"]),
    ({"gold": "['a'\n 'b']"}, ["a", "b"]),
    ({"gold": ["red", NAN, None]}, ["red"]),
    # No lists of texts.
    ({"gold": "[1, 2]"}, ["[1, 2]"]),
    ({"gold": "(A)"}, ["(A)"]),
    ({"gold": "('a')"}, ["('a')"]),
    ({"gold": "[0.1, 0.2, 0.3, 0.4]"}, ["[0.1, 0.2, 0.3, 0.4]"]),
]


@pytest.mark.parametrize(("record", "texts"), GOLDS)
def test_forms_of_golds(record: dict, texts: list[str]) -> None:
    assert gold_answers(record) == texts


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"id": "x"}, "record 'x': no gold"),
        ({"gold": NAN}, "expected an answer"),
        ({"gold": [None, NAN]}, "expected an answer"),
        ({"gold": {"x": 1}}, r"an object with the keys \['x'\]"),
        ({"gold": "['a dog's toy', 'b']"}, "list that cannot be read"),
    ],
)
def test_golds_that_cannot_be_read(record: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gold_answers(record)


@pytest.mark.parametrize("scorer", FIXED)
@pytest.mark.parametrize("prediction", ["", "a dog"])
def test_no_answer_hides_a_gold_that_cannot_be_read(scorer: str, prediction: str) -> None:
    with pytest.raises(ValueError, match=r"record 'x': (no gold|found answer_bbox=None)"):
        score_sample(scorer, prediction, {"id": "x"})


def test_official_vqa_golds_give_consensus() -> None:
    ten = [{"answer": text, "answer_id": i} for i, text in enumerate(["red"] * 2 + ["blue"] * 8)]
    for gold in (ten, str(ten), [answer["answer"] for answer in ten]):
        assert score_sample("vqa", "red", {"gold": gold}) == pytest.approx(2 / 3)
        assert score_sample("vqa", "blue", {"gold": gold}) == 1.0


def test_references_as_the_text_of_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.jsonl"
    golds = [["A red car.", "a red car"], "['A red car.', 'a red car']", "['a dog's toy', 'b']"]
    records = [
        {"question_id": i, "gold": gold, "prediction": "a red car"} for i, gold in enumerate(golds)
    ]
    records.append({"question_id": 3, "gold": ["two dogs"], "prediction": "two cats"})
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    assert main(["--task", "TextCaps", str(path)]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["score"] == pytest.approx(lines[1]["score"])
    assert lines[0]["score"] > 0
    assert "list that cannot be read" in lines[2]["error"]
    assert f"{path}:3: question_id 2: gold: found the text of a list" in err


def test_ids_that_pandas_made_floats_are_the_same_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    ids = ["3", "3.0", '"3"']
    path.write_text(
        "".join(f'{{"question_id": {i}, "gold": "a", "prediction": "a"}}\n' for i in ids), "utf-8"
    )
    assert main(["--task", "OCRVQA", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{path}:2: question_id 3 occurs twice, first in 1" in err
    assert "1 lines repeat a question" in err


def test_a_file_too_small_for_cider_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """lx709/VRSBench#2, Maluuba/nlg-eval#108: also several pictures of the same words."""
    path = tmp_path / "c.jsonl"
    same = [{"question_id": i, "gold": ["a red car"], "prediction": "a red car"} for i in range(12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in same), "utf-8")
    assert main(["--task", "TextCaps", str(path)]) == 0
    assert "chrF (characters) of the same captions: 100.00" in capsys.readouterr().err
    things = ("dog", "cat", "tree", "bird", "sun", "moon", "sea", "hill", "road", "boat", "lamp")
    records = [
        {"question_id": i, "gold": [f"a {t} here"], "prediction": f"a {t}"}
        for i, t in enumerate(things)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    assert main(["--task", "TextCaps", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "too small" not in err
    assert "chrf" not in out


def test_captions_in_scripts_without_blanks_are_read_by_characters() -> None:
    tokens = find_scorer("caption").tokens
    assert tokens is not None
    assert tokens("红色的car。") == ["红", "色", "的", "car"]
    assert tokens("दिन में") == ["दिन", "में"]
    records = [{"gold": ["一辆红色的汽车"]}, {"gold": ["两只狗在玩"]}]
    near, other = score_samples("caption", ["一辆红色汽车", "狗在玩"], records)
    assert 0 < near < 1
    assert 0 < other < 1
