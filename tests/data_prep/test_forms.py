"""Samples as people publish them: nothing of them is lost without a word.

The folders of tests/fixtures/cases are recreated from public reports; see each case.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk
from data_prep.errors import DataError
from data_prep.sources.answer_options import with_options
from data_prep.sources.boxes import check_objects, read_objects
from data_prep.sources.raw_forms import to_host

CASES = Path(__file__).parents[1] / "fixtures" / "cases"


def cut(source: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    args = ["--source", str(source), "--out", str(out), "--workers", "1", "--no-shuffle", *more]
    assert chunk(args) == 0
    assert check([str(out), "--workers", "1"]) == 0
    files = sorted((out / "chunks").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _host(raw: dict[str, Any]) -> Any:
    return to_host(raw, str)


def _asked(text: str, **fields: Any) -> Any:
    return _host({"question": text, "answer": "yes", **fields})


def texts(record: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in record["messages"]]


def test_qwen_vl_paths_in_the_text(tmp_path):  # ms-swift#99, Qwen-VL#147
    (row,) = cut(CASES / "01" / "a.jsonl", tmp_path / "s")
    assert row["images"] == ["images/pics/lamp.png"]
    assert texts(row) == ["Picture 1: <image>Is the lamp lit?", "no"]


def test_columns_of_other_names(tmp_path):  # Qwen3-VL#1262, trl#4874
    rows = cut(CASES / "02" / "a.jsonl", tmp_path / "s")
    assert [row["images"] for row in rows] == [["images/pics/a.png"]] * 2


def test_history_becomes_turns(tmp_path):  # LLaMA-Factory#3351, #8808
    (row,) = cut(CASES / "03" / "a.jsonl", tmp_path / "s")
    assert texts(row)[1:] == [
        "<image>What stands in the corner?",
        "a shelf",
        "And what is on top of it?",
        "a vase",
    ]


def test_parts_that_mark_the_place(tmp_path):  # trl#4874, #4289
    (row,) = cut(CASES / "04" / "a.jsonl", tmp_path / "s")
    assert row["images"] == ["images/pics/a.png"]
    assert texts(row)[0] == "<image>What is parked here?"


def test_objects_as_text(tmp_path):  # ms-swift#3204, #2342
    row, _ = cut(CASES / "15" / "a.jsonl", tmp_path / "s")
    assert row["objects"] == {"ref": ["the bin"], "bbox": [[1, 2, 20, 22]]}


@pytest.mark.parametrize("name", ["big.tsv", "small.tsv"])
def test_base64_without_a_head(tmp_path, name):  # VLMEvalKit#302, #377
    (row,) = cut(CASES / "16" / name, tmp_path / "s")
    assert row["images"][0].startswith("embedded/")
    assert texts(row) == ["<image>Which colour?\nA. blue\nB. red", "B"]


def test_backslashes(tmp_path):  # YOLO-World#535
    (row,) = cut(CASES / "17" / "a.jsonl", tmp_path / "s")
    assert row["images"] == ["images/pics/a.png"]


def test_options_beside_an_answer_that_is_their_number(tmp_path):  # AVG-LLaVA#10
    (row,) = cut(CASES / "18" / "a.jsonl", tmp_path / "s")
    assert texts(row) == [
        "<image>Which is smallest?\nA. krill\nB. whale\nC. plankton\nD. leopard",
        "C",
    ]


@pytest.mark.parametrize(
    "mark",
    [
        *("<image 1>", "<image_1>", "<image1>", "<|image_1|>", "<|image|>", "<ImageHere>"),
        *("image_1", "<|vision_start|><|image_pad|><|vision_end|>", "<image/>", "[IMG]"),
        *("<IMG_CONTEXT>", "<start_of_image>", "<image></image>", "<img>", "<Image>", "{image}"),
        *("<im_start><image><im_end>", "<|image_start|><image><|image_end|>", "<|image_token|>"),
        *("<img><IMG_CONTEXT><IMG_CONTEXT></img>", "<|image_placeholder|>", "< image >", "<pic>"),
        *(
            "<start_of_image><image_soft_token><end_of_image>",
            "<image-1>",
            "[Image 1]",
            "<|img_1|>",
        ),
        *(
            "<image id=1>",
            "<image#1>",
            "<figure 1>",
            "<image>1</image>",
            "![](image_1)",
            "(image 1)",
        ),
        *(
            "<media>",
            "&lt;image&gt;",
            "<\uff5cimage\uff5c>",
            "<image_here>",
            "<FIGURE>",
            "[[image]]",
        ),
        *('<img src="a.png">', "![a dog](a.png)", "<image>a.png</image>", "<image: a.png>"),
    ],
)
def test_every_mark_becomes_the_placeholder_where_it_stands(mark):
    record = _asked(f"Here: {mark} what is it?", image="a.png")
    assert texts(record)[0] == "Here: <image> what is it?"
    assert record["images"] == ["a.png"]


def test_numbered_marks_order_the_pictures_and_are_placed_once():
    record = _asked("Is <image 2> left of <image 1>? See <image 2>.", images=["a.png", "b.png"])
    assert texts(record)[0] == "Is <image> left of <image>? See image 2."
    assert record["images"] == ["b.png", "a.png"]
    columns = _asked("<image 1> or <image 2>?", image_2="b.png", image_1="a.png")
    assert columns["images"] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("sample", "code"),
    [
        ({"question": "<image 3>?", "images": ["a.png"]}, "placeholders"),
        ({"question": "<image 1>?"}, "picture-mark"),
        ({"question": "<|image_9|>?"}, "picture-mark"),
        ({"question": "<vision>?", "image": "a.png"}, "picture-mark"),
        ({"question": "What?", "shot": "a.png"}, "picture-lost"),
        ({"question": "What?", "view": {"path": "x/a.jpg"}}, "picture-lost"),
        ({"question": "<img>b.png</img>?", "image": "a.png"}, "placeholders"),
        ({"question": 'See <img src="pics/a.png">'}, "picture-lost"),
        ({"question": "What?", "meta": {"file": {"name": "x/a.jpg"}}}, "picture-lost"),
        ({"question": "What?", "image": "a.png", "images": ["b.png"]}, "picture-lost"),
        ({"question": "What?", "image_left": "a.png", "image_right": "b.png"}, "picture-lost"),
        ({"question": [{"type": "image", "index": 1}, "?"], "images": ["a.png"]}, "placeholders"),
        ({"question": "<bbox>?", "image": "a.png"}, "objects"),
        ({"instruction": "What?", "input": ["a"]}, "content-type"),
        ({"question": "What?", "options": ["a", "b"], "answer": "-1"}, "options"),
        ({"question": "What?", "options": ["a", "b"], "answer": "E"}, "options"),
        ({"question": "What?", "system": "a", "system_prompt": "b"}, "system"),
        ({"messages": [], "history": [["a", "b"]]}, "history"),
        ({"question": "What?", "history": "none"}, "history"),
        ({"question": "What?", "history": [["a", None]]}, "history"),
        ({"question": "What?", "options": ["a", "b"], "answer": "2"}, "options"),
        ({"question": "What?", "answer": float("nan")}, "no-answer"),
        ({"question": "What?", "objects": "[1"}, "objects"),
    ],
)
def test_what_would_be_lost_is_refused(sample, code):
    with pytest.raises(DataError) as refused:
        _host({"answer": "yes", **sample})
    assert refused.value.code == code


def test_text_that_only_looks_like_a_mark_stays():
    html = 'What does <img src="a.png"> show? [1] {x} my_image_1.txt'
    assert texts(_asked(html, images=[]))[0] == html
    assert texts(_asked("Whose file is it?", file_name="notes.txt"))[0] == "Whose file is it?"


def test_loss_of_a_turn_is_kept():
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1, "loss_scale": 2},
    ]
    kept = _host({"messages": turns})["messages"]
    assert kept[1] == {"role": "assistant", "content": "b", "loss": False}
    assert kept[3] == {"role": "assistant", "content": "d", "loss": True, "loss_scale": 2.0}


def test_what_nobody_reads_is_listed_once(tmp_path, capsys):
    turns = [
        {"role": "user", "content": "a", "rating": 3},
        {"role": "assistant", "content": "b", "name": "bot"},
    ]
    row = {"messages": turns, "site": "x", "size": [3, 4]}
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 3)
    cut(tmp_path / "a.jsonl", tmp_path / "s")
    said = capsys.readouterr().err
    assert said.count("left out: name, rating") == 1
    assert said.count("not read in training: site\n") == 1


def test_trl_prompt_and_completion_as_turns():
    record = _host(
        {
            "prompt": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
            ],
            "completion": [{"role": "assistant", "content": "yes"}],
            "images": ["a.png"],
        }
    )
    assert texts(record) == ["<image>?", "yes"]


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("1", ["x", "y"], "B"),
        ("b", ["x", "y"], "b"),
        ("(A)", ["x", "y"], "(A)"),
        ("2", ["1", "2"], None),  # the text of an option
        ("y", ["x", "y"], None),
        ("blue", ["x", "y"], None),
    ],
)
def test_options_are_written_out_where_the_answer_points_at_them(answer, options, expected):
    question, said = with_options("Which?", answer, dict(zip("AB", options, strict=True)))
    if expected is None:
        assert (question, said) == ("Which?", answer)
    else:
        assert (question, said) == (f"Which?\nA. {options[0]}\nB. {options[1]}", expected)


@pytest.mark.parametrize(
    ("fields", "answer", "lines"),
    [
        ({"options": ["x", "y"], "answer": 1.0}, "B", "A. x\nB. y"),
        ({"options": {"1": "x", "2": "y"}, "answer": "1"}, "A", "A. x\nB. y"),
        ({"options": ["A. x", "B) y"], "answer": "B."}, "B.", "A. x\nB. y"),
        ({"options": "A. x\nB. y", "answer": "B"}, "B", "A. x\nB. y"),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}, "B", "A. x\nB. y"),
        ({"options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "answer": 0},
         "A", "A. x\nB. y"),
        ({"option_a": "x", "option_b": "y", "answer": "B"}, "B", "A. x\nB. y"),
        ({"choice_0": "x", "choice_1": "y", "answer": "0"}, "A", "A. x\nB. y"),
        ({"A": "x", "B": float("nan"), "C": "y", "answer": "C"}, "C", "A. x\nC. y"),
        ({"options": ["x", "y", "z"], "answer": "A, C"}, "A, C", "A. x\nB. y\nC. z"),
        ({"options": ["x", "y"], "answer": "B. y"}, "B. y", "A. x\nB. y"),
    ],
)  # fmt: skip
def test_options_of_every_form(fields, answer, lines):
    assert texts(_host({"question": "Which?", **fields})) == [f"Which?\n{lines}", answer]
    if not fields.keys() & {"A", "option_a"}:
        turns = [
            {"role": "user", "content": "Which?"},
            {"role": "assistant", "content": str(fields["answer"])},
        ]
        record = _host({"messages": turns, **{k: v for k, v in fields.items() if k != "answer"}})
        assert texts(record) == [f"Which?\n{lines}", answer]


@pytest.mark.parametrize(
    ("part", "listed"),
    [
        ({"type": "image", "index": 0}, ["a.png"]),
        ({"type": "image", "image": None, "text": None}, ["a.png"]),
        ({"type": "image", "image": "a.png"}, ["a.png"]),
        ({"type": "image_url", "image_url": {"url": "a.png"}}, []),
        ({"type": "input_image", "image_url": "a.png"}, []),
        ({"type": "image", "source": {"type": "url", "url": "a.png"}}, []),
        ({"type": "image", "file_name": "a.png"}, []),
        ({"image": "a.png"}, []),
    ],
)
def test_parts_of_every_form(part, listed):
    parts = [part, {"type": "text", "content": "What?"}, " now"]
    for turn in (parts, json.dumps([parts[0], {"type": "text", "text": "What? now"}])):
        turns = [{"role": "user", "content": turn}, {"role": "assistant", "content": "yes"}]
        if isinstance(turn, str) and "type" not in part:
            continue
        record = _host({"messages": turns, "images": listed})
        assert texts(record) == ["<image>What? now", "yes"]
        assert record["images"] == ["a.png"]


def test_parts_with_an_index_take_that_picture():
    parts = [{"type": "image", "index": 1}, " or ", {"type": "image", "index": 0}]
    record = _asked(parts, images=["a.png", "b.png"])
    assert texts(record)[0] == "<image> or <image>"
    assert record["images"] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    "name", ["Image", "imagePath", "image-file", "photos", "img_url", "picture_path", "screenshot"]
)
def test_columns_in_other_spelling(name):
    assert _asked("What?", **{name: "a.png"})["images"] == ["a.png"]


@pytest.mark.parametrize(
    "value", ['["a.png", "b.png"]', "['a.png', 'b.png']", "a.png; b.png", "a.png|b.png"]
)
def test_several_pictures_in_one_text(value):
    assert _asked("What?", images=value)["images"] == ["a.png", "b.png"]
    assert _asked("What?", image="a.png", image_2="b.png")["images"] == ["a.png", "b.png"]


def test_an_empty_cell_of_a_picture_is_none():
    assert _asked("What?", image=float("nan"))["images"] == []


@pytest.mark.parametrize(
    "history",
    [
        [["a", "b"]],
        [{"user": "a", "assistant": "b"}],
        [{"human": "a", "gpt": "b"}],
        [{"question": "a", "answer": "b"}],
        '[["a", "b"]]',
        "[('a', 'b')]",
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ],
)
def test_history_of_every_form(history):
    record = _asked("c", history=history, system_prompt="s")
    assert texts(record) == ["s", "a", "b", "c", "yes"]


def test_names_of_columns_in_capitals_and_turns_as_text():
    assert texts(_host({"Question": "a", "Answer": "b"})) == ["a", "b"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert texts(_host({"messages": json.dumps(turns)})) == ["a", "b"]
    assert texts(_host({"messages": str(turns)})) == ["a", "b"]


def test_a_context_beside_a_question_is_no_question():
    record = _host({"question": "What?", "answer": "yes", "text": "a long context"})
    assert texts(record)[0] == "What?"
    assert record["text"] == "a long context"


def test_answers_as_vqa_publishes_them():
    gold = [{"answer": "net", "answer_id": 1}, {"answer": "nets", "answer_id": 2}]
    assert texts(_host({"question": "What?", "answers": gold})) == ["What?", "net"]


@pytest.mark.parametrize(
    ("objects", "good"),
    [
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]]}, True),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "image_id": [0], "bbox_type": "norm1"}, True),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]}, True),  # the same box twice
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "image_id": [1]}, False),
        ({"ref": [None], "bbox": [[1, 2, 3, 4]]}, False),
        ({"ref": ["a"], "bbox": [[1, 2, 3, float("nan")]]}, False),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "bbox_type": "norm1000"}, False),
        ({}, False),
        (None, False),
        ({"ref": [], "bbox": [[1, 2, 3, 4]]}, False),
        ({"ref": ["a"], "bbox": []}, False),
        ({"ref": ["a"], "bbox": [[1, 2, 3]]}, False),
        ({"ref": ["a"], "bbox": [["1", 2, 3, 4]]}, False),
        ("[]", False),
    ],
)
def test_check_finds_objects_that_the_host_deletes(objects, good):
    turns = [{"content": "<ref-object> <bbox>"}]
    record = {"messages": turns, "objects": objects, "images": ["a.png"]}
    if good:
        check_objects(record)
        return
    with pytest.raises(DataError, match="objects"):
        check_objects(record)


@pytest.mark.parametrize(
    "value",
    [
        "{'ref': ['a'], 'bbox': [[1, 2, 3, 4]]}",
        [{"label": "a", "bbox_2d": [1, 2, 3, 4], "bbox_type": None}],
        {"ref": "a", "bbox": [1, 2, 3, 4]},
        ['{"caption": "a", "bbox": [1, 2, 3, 4]}'],
    ],
)
def test_objects_of_every_form(value):
    assert read_objects(value) == {"ref": ["a"], "bbox": [[1, 2, 3, 4]]}


def test_objects_as_a_list_with_several_boxes():
    value = [{"caption": "a", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "image": 1}]
    expected = {"ref": ["a"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "image_id": [1, 1]}
    assert read_objects(json.dumps(value)) == expected
