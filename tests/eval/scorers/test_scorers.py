"""The `fixed` scorers: what each accepts, what it refuses, and every defect that it mends."""

from __future__ import annotations

import pytest

from eval.scorers.box_overlap import iou, parse_box, to_pixels
from eval.scorers.cider import ptb_tokens
from eval.scorers.fixed import FORMULAS
from eval.scorers.option_letters import option_letter
from eval.scorers.registry import FIXED, TASKS, find_scorer, find_task
from eval.scorers.released import ReleasedCrash
from eval.scorers.text import evalai, plain
from tests.eval.scorers import score_sample, score_samples

GOLD_BOX = {"answer_bbox": "[0.12, 0.34, 0.56, 0.78]", "size": [640, 480]}

# (task, gold, prediction, fixed, released): every defect listed for the published scripts.
DEFECTS = [
    ("AD", "Unanswerable", "Unanswerable", 1, 0),
    ("AD", "Red", "The light was reduced.", 0, 1),
    ("AD", "A", "(A) up", 1, 0),
    ("AD", "A", "Banana", 0, 1),
    ("AD", "Going ahead.", "Going ahead", 1, 0),
    ("RS", "0", "There are 3 roads and 40 houses", 0, 1),
    ("RS", "3.0", "3.0", 1, 0),
    ("Fin", "A B", "A B", 1, 0),
    ("Fin", "A", "A\t", 1, 0),
    ("Fin", "Unanswerable", "Unanswerable", 1, 0),
    ("ImageNet", "goldfish", "", 0, 1),
    ("ImageNet", "St. Bernard", "St. Bernard", 1, 0),
    ("ImageNet", "tiger cat", "tiger", 0, 1),
    ("Places365", "inn", "winner", 0, 1),
    ("Places365", "art_gallery", "Art gallery", 1, 0),
    ("ChartQA", "3.5", "35", 0, 1),
    ("ChartQA", "3.5", "3.5", 1, 0),
    ("ChartQA", "No", "I do not know", 0, 1),
    ("VQAv2", "A", "The", 0, 1),
    ("VQAv2", "." * 33 + "yes", "yes", 1, 0),
    ("RS", "no", "yes", 0, 0),
    ("RS", "A", "banana split", 0, 1),
    ("Fin", "A.", "A.", 1, 0),
    ("Fin", "A\n", "A", 1, 0),
    ("VQAv2", "yes" + "." * 33, "yes", 1, 0),
    ("OCRVQA", "Unanswerable", "Unanswerable", 1, 0),
    ("OCRVQA", "2009", "2009.", 1, 0),
    ("GQA", "Red", "red", 1, 0),
    ("GQA", "red", "red ", 1, 0),
]


def _both(task: str, prediction: str, record: dict) -> tuple[float, float]:
    ours, theirs = find_task(task).scorer("fixed"), find_task(task).scorer("released")
    assert ours.sample is not None
    assert theirs.sample is not None
    return ours.sample(prediction, record), theirs.sample(prediction, record)


@pytest.mark.parametrize(("task", "gold", "prediction", "fixed", "released"), DEFECTS)
def test_defects(task: str, gold: str, prediction: str, fixed: int, released: int) -> None:
    assert _both(task, prediction, {"gold": gold}) == (fixed, released)


# (gold box, answer, fixed, released): the published parser eats the first and the last character.
BOX_DEFECTS = [
    # y2 is read as 0.1: half of the box is gone.
    ("[0.10, 0.10, 0.50, 0.19]", "[0.10, 0.10, 0.50, 0.19]", 1, 0),
    # x1 loses its sign, or its first digit (10.5 is read as 0.5).
    ("[-0.30, 0.00, 0.30, 0.10]", "[-0.30, 0.00, 0.30, 0.10]", 1, 0),
    ("[0.50, 0.10, 0.90, 0.90]", "[10.50, 0.10, 0.90, 0.90]", 0, 1),
    # A lone 0 or 1 at an end leaves no number.
    ("[0, 0.10, 0.50, 0.90]", "[0, 0.10, 0.50, 0.90]", 1, 0),
    ("[0.10, 0.10, 0.50, 1]", "[0.10, 0.10, 0.50, 1]", 1, 0),
    # Other marks at the ends save the digits.
    ("[0.10, 0.10, 0.50, 0.19]", "(0.10, 0.10, 0.50, 0.19)", 1, 1),
    ("[0.10, 0.10, 0.50, 0.19]", "[ 0.10, 0.10, 0.50, 0.19].", 1, 1),
    # Text around the box, which models often write.
    ("[0.10, 0.10, 0.50, 0.90]", "The box is [0.10, 0.10, 0.50, 0.90].", 1, 0),
]


@pytest.mark.parametrize(("gold", "prediction", "fixed", "released"), BOX_DEFECTS)
def test_box_defects(gold: str, prediction: str, fixed: int, released: int) -> None:
    record = {"gold": {"answer_bbox": gold, "size": [640, 480]}}
    assert _both("Grounding", prediction, record) == (fixed, released)


def test_caption_defects() -> None:
    """As published, "Dog." is another word than "dog"; the score goes up to 1,000."""
    references = [["A dog runs.", "a dog"], ["Two cats sleep.", "two cats"]]
    records = [{"gold": texts} for texts in references]
    answers = ["a DOG runs", "Two cats, sleep"]
    ours, theirs = (find_task("TextCaps").scorer(v) for v in ("fixed", "released"))
    plain_scores = ours.score_all(["a dog runs", "two cats sleep"], records)
    assert ours.score_all(answers, records) == pytest.approx(plain_scores)
    published = theirs.score_all(answers, records)
    assert all(a < b for a, b in zip(published, plain_scores, strict=True))
    same = [{"gold": ["a b c d e"] * 5}, {"gold": ["f g h i j"] * 5}]
    best = [10 * score for score in theirs.score_all(["a b c d e", "f g h i j"], same)]
    assert best == pytest.approx([10.0, 10.0])  # x 100 in the published table: 1,000
    assert ours.aggregate([1.0, 1.0]) == 1.0


# MLLM-CL: (task, record, prediction, fixed, released); None: no published script to follow.
MLLM_CL = [
    ("RS", {"gold": "rural"}, "It is a rural area.", 1, 1),
    ("RS", {"gold": "urban"}, "suburban", 0, 1),
    ("RS", {"gold": "no"}, "unknown", 0, 1),  # a single word is searched as a substring
    ("RS", {"gold": "no"}, "unknown area", 0, 0),
    ("RS", {"gold": "no"}, "casino area", 0, 1),
    ("AD", {"gold": "yes."}, "oh yes, sir", 1, 1),
    ("AD", {"gold": "left"}, "go leftwards now", 0, 1),
    ("AD", {"gold": "left"}, "the cleft rock", 0, 1),
    ("AD", {"gold": "left"}, "the clefts here", 0, 0),
    ("Med", {"gold": "no"}, "unknown area", 0, 1),
    ("Sci", {"gold": "B", "prompt": "?", "images": ["Sci/SciVerse/12.png"]}, "B) leaf", 1, 0),
    ("Sci", {"gold": "B", "prompt": "?", "images": ["x/sciverse_12.png"]}, "b", 1, 1),
    ("Med", {"gold": "Unanswerable"}, "Unanswerable", 1, 0),
    ("Med", {"gold": "left lung"}, "the left, lung", 1, 0),
    ("AD", {"gold": "Turn left."}, "turn left", 1, 0),
    ("Fin", {"gold": "A"}, " A.", 1, 1),
    ("Fin", {"gold": "A, B"}, "A, B", 1, 0),
    ("Fin", {"gold": "A"}, "AB", 0, 0),
    ("Sci", {"gold": "B", "prompt": "?", "images": ["x/AI2D_1.png"]}, "(B) leaf", 1, 0),
    ("Sci", {"gold": "Leaf", "prompt": "?", "images": ["x/TQA_1.png"]}, "leaf", 1, 1),
    ("Sci", {"gold": "Yes", "prompt": "?", "images": ["x/map_1.png"]}, "Yes, it is", 1, 1),
    ("Sci", {"gold": "no", "prompt": "?", "images": ["x/map_1.png"]}, "unknown", 0, 1),
    ("Sci", {"gold": "Ohio, Utah", "prompt": "Which states?", "images": ["x/map_1.png"]},
     "Utah, Ohio", 1, 0),
    ("Sci", {"gold": "Ohio,Utah", "prompt": "Which states?", "images": ["x/map_1.png"]},
     "ohio,iowa", 0.5, 0.5),
    ("Sci", {"gold": "Ohio,Utah", "prompt": "Which states?", "images": ["x/map_1.png"]},
     "ohio,utah,iowa,texas", 0.5, 1),
    ("OCR", {"gold": ["OPEN", "open now"]}, "The sign says Open.", 1, 1),
    ("OCR", {"gold": ["open"]}, "reopened", 0, 1),
    ("OCR", {"gold": "x ^ 2", "answer_type": FORMULAS}, "x^2", 1, 1),
    ("OCR", {"gold": "x - 2", "answer_type": FORMULAS}, "x + 2", 0, 0),
    ("OCR", {"gold": "", "answer_type": FORMULAS}, "x", 0, 1),
    ("Math", {"gold": "14"}, "The number is 14.", 1, None),
    ("Math", {"gold": "1.20"}, "1.2", 1, None),
    ("Math", {"gold": "14"}, "140", 0, None),
    ("Math", {"gold": "14"}, "no idea", 0, None),
    ("Math", {"gold": "C"}, "(C) 3/5", 1, None),
    ("Math", {"gold": "yes"}, "Yes.", 1, None),
    ("VP", {"gold": "3"}, "There are 3 chairs.", 1, 1),
    ("VP", {"gold": "3"}, "13", 0, 1),
    ("APP", {"gold": "A"}, "A. the back arrow", 1, None),
]  # fmt: skip


@pytest.mark.parametrize(("task", "record", "prediction", "fixed", "released"), MLLM_CL)
def test_mllm_cl(
    task: str, record: dict, prediction: str, fixed: float, released: float | None
) -> None:
    found = find_task(f"MLLM-CL/{task}")
    ours = found.scorer("fixed").sample
    assert ours is not None
    assert ours(prediction, record) == fixed
    if released is None:
        with pytest.raises(ValueError, match="no published scorer"):
            found.scorer("released")
    else:
        theirs = found.scorer("released").sample
        assert theirs is not None
        assert theirs(prediction, record) == released


def test_mllm_cl_science_needs_the_picture_as_published() -> None:
    theirs = find_task("MLLM-CL/Sci").scorer("released").sample
    assert theirs is not None
    with pytest.raises(ReleasedCrash, match="picture's name"):
        theirs("a", {"gold": "a"})


@pytest.mark.parametrize(
    ("scorer", "prediction", "record", "score"),
    [
        ("vqa", "Two.", {"gold": "2"}, 1.0),
        ("vqa", "the dog", {"answer": "dog"}, 1.0),
        ("vqa", "red", {"gold": ["red", "red", "blue"] + ["green"] * 7}, 2 / 3),
        ("vqa", "green", {"gold": ["red", "red", "blue"] + ["green"] * 7}, 1.0),
        ("vqa", "", {"gold": ""}, 0.0),
        ("exact", " The  HOBBIT! ", {"gold": "the hobbit"}, 1.0),
        ("exact", "hobbits", {"gold": "hobbit"}, 0.0),
        ("exact", "", {"gold": "hobbit"}, 0.0),
        ("choice", "B", {"gold": "b"}, 1.0),
        ("choice", "The answer is B.", {"gold": "B"}, 1.0),
        ("choice", "A car", {"gold": "A"}, 0.0),
        ("choice", "it goes up", {"gold": "up", "options": ["up", "down"]}, 1.0),
        ("choice", "up or down", {"gold": "up", "options": ["up", "down"]}, 0.0),
        ("choice", "it goes up", {"gold": "up"}, 0.0),
        ("choice", "yes, no", {"gold": "no"}, 0.0),
        ("label", "tabby cat", {"gold": "tabby, tabby cat"}, 1.0),
        ("label", "auto", {"gold": "car", "synonyms": ["auto"]}, 1.0),
        ("contains", "It is a rural area", {"gold": "rural"}, 1.0),
        ("contains", "suburban", {"gold": "urban"}, 0.0),
        ("relaxed", "104", {"gold": "100"}, 1.0),
        ("relaxed", "106", {"gold": "100"}, 0.0),
        ("relaxed", "0", {"gold": "0"}, 1.0),
        ("relaxed", "0.01", {"gold": "0"}, 0.0),
        ("relaxed", "$1,200", {"gold": "1200"}, 1.0),
        ("relaxed", "germany", {"gold": "Germany"}, 1.0),
    ],
)
def test_fixed(scorer: str, prediction: str, record: dict, score: float) -> None:
    assert score_sample(scorer, prediction, record) == pytest.approx(score)


def test_gold_may_be_the_last_turn() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "red"}]
    assert score_sample("exact", "Red", {"messages": turns}) == 1.0
    with pytest.raises(ValueError, match="no gold"):
        score_sample("exact", "Red", {"id": "x", "messages": turns[:1]})


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("(b) up", "B"), ("**C**", "C"), ("D.", "D"), ("option e", "E"), ("A car", None)],
)
def test_option_letter(text: str, letter: str | None) -> None:
    assert option_letter(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "[0.12, 0.34, 0.56, 0.78]",
        "The box is [0.12, 0.34, 0.56, 0.78].",
        "(0.12,0.34),(0.56,0.78)",
        "0.12 0.34 0.56 0.78",
        "box 1: [.12, .34, .56, .78]",
        "<box>[0.12, 0.34, 0.56, 0.78]</box>",
        "[0.12, 0.34, 0.56, 0.57]",
    ],
)
def test_boxes_that_are_read(text: str) -> None:
    assert score_sample("grounding", text, GOLD_BOX) == 1.0


@pytest.mark.parametrize(
    "text", ["", "none", "[0.1, 0.2, 0.3]", "[nan, nan, nan, nan]", "1 2 3 4 5"]
)
def test_boxes_that_are_none(text: str) -> None:
    assert parse_box(text) is None
    assert score_sample("grounding", text, GOLD_BOX) == 0.0


def test_iou_and_formats() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert to_pixels((0.5, 0.5, 1, 1), (640, 480), "unit") == (320, 320, 640, 640)
    assert to_pixels((500, 500, 1000, 1000), (640, 480), "thousand") == (320, 240, 640, 480)
    pixels = GOLD_BOX | {"box_format": "pixel"}
    assert score_sample("grounding", "[77, 218, 358, 499]", pixels) == 1.0
    with pytest.raises(ValueError, match="box_format"):
        score_sample("grounding", "[1, 2, 3, 4]", GOLD_BOX | {"box_format": "pixels"})
    with pytest.raises(ValueError, match="answer_bbox"):
        score_sample("grounding", "[1, 2, 3, 4]", {"id": "g", "gold": "x"})
    # Exactly one half is not above one half.
    half = {"answer_bbox": "[0, 0, 1, 1]", "size": [10, 10]}
    assert score_sample("grounding", "[0, 0, 0.5, 1]", half) == 0.0


def test_captions_need_the_whole_set() -> None:
    records = [
        {"references": ["A red car on a road.", "a red car"]},
        {"references": ["Two dogs play.", "two dogs"]},
    ]
    good, other = score_samples("caption", ["a RED car, on a road", "two dogs"], records)
    assert 0 < other <= 1
    assert good == pytest.approx(score_samples("caption", ["A red car on a road.", ""], records)[0])
    assert score_sample("caption", "a red car", records[0]) == 0, "words of every picture weigh 0"


def test_a_perfect_caption_earns_no_more_than_the_maximum() -> None:
    records = [{"gold": "B:KM²KM²"}, {"gold": "a"}]
    assert max(score_samples("caption", ["(B)km²km²", "a"], records)) <= 1.0


def test_tokens_are_those_of_the_treebank() -> None:
    text = 'The bus doesn\'t stop at 10:30, "Main-Street".'
    assert ptb_tokens(text) == ["the", "bus", "does", "n't", "stop", "at", "10:30", "main-street"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a sign that says 'stop'", "a sign that says stop"),
        ("says \u2018stop\u2019 now", "says stop now"),
        ("tom's 'joe's cafe' sign", "tom 's joe 's cafe sign"),
        ("he said 'it's'", "he said it 's"),
        ("o'clock at o'reilly's", "o'clock at o'reilly 's"),
        ("rock 'n' roll of the '90s", "rock 'n' roll of the '90s"),
        ("you cannot, I'm gonna", "you can not i 'm gon na"),
        ("canta wanna gotta gimme lemme canna", "canta wan na got ta gim me lem me canna"),
        ("12th street 7-eleven, 3-D", "12th street 7-eleven 3-d"),
        ("an AT&T store and/or $5.99", "an at&t store and/or $ 5.99"),
    ],
)
def test_quoted_and_joined_words_are_tokens_of_the_treebank(text: str, tokens: str) -> None:
    """Values of the PTBTokenizer that the COCO caption evaluation calls (pycocoevalcap 1.2)."""
    assert " ".join(ptb_tokens(text)) == tokens


def test_aggregate_clips_captions() -> None:
    assert find_scorer("caption").aggregate([0.2, 0.4]) == 1.0
    assert find_scorer("caption").aggregate([0.01, 0.03]) == pytest.approx(0.2)
    assert find_scorer("vqa").aggregate([1.0, 0.0]) == 0.5


def test_normalisation() -> None:
    assert evalai("The man's 2 dogs, don't!") == "man 's 2 dogs don't"
    assert plain("**Art_Gallery**, 1,000.") == "art gallery 1000"
    assert plain("cafe\u0301") == plain("CAFÉ")


def test_unknown_names_are_told_the_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'grounding'"):
        score_sample("groundin", "x", {"gold": "x"})
    with pytest.raises(ValueError, match="did you mean 'VQAv2'"):
        find_task("VQAV2")
    with pytest.raises(ValueError, match="no published scorer"):
        find_task("MLLM-CL/APP").scorer("released")


def test_every_task_has_its_scorers() -> None:
    assert {task.fixed for task in TASKS.values()} <= set(FIXED)
    for task in TASKS.values():
        if task.released is not None:
            assert task.scorer("released").name == task.released
