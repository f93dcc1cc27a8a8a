"""The option letter in an answer: phrasings of models and of public bug reports, false hits too."""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import pytest

from eval.scorers.option_letters import gold_letter, option_letter
from tests.eval.scorers import score_sample

PICKED = [
    ("A", "A"),
    ("b", "B"),
    ("(b) up", "B"),
    ("**C**", "C"),
    ("D.", "D"),
    ("option e", "E"),
    ("B)", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("B:", "B"),
    ("B: red", "B"),
    ("B. red", "B"),
    ("B.red", "B"),
    ("B, because it is red", "B"),
    ("B because it is red", "B"),
    ("I'd choose B.", "B"),
    ("The correct option would be B.", "B"),
    ("It is (B).", "B"),
    ("選 B", "B"),
    ("答案是 B", "B"),
    ("B、红色", "B"),
    ("The answer is B", "B"),
    ("the answer is b", "B"),
    ("The correct answer is d.", "D"),  # aniri15/OPD-V#2
    ("Answer: **D**", "D"),  # aniri15/OPD-V#2
    ("Answer: (b) up", "B"),
    ("Option B", "B"),
    ("not A but B", "B"),
    ("It is not B, the answer is D", "D"),  # antirez/ds4#321
    ("rules out C, leaving D", "D"),  # antirez/ds4#321
    ("Answer: D, not B", "D"),  # antirez/ds4#321
    ("The answer is B. Note that A is a common distractor.", "B"),  # jundot/omlx#3668
    ("ANSWER IS D. A is incorrect.", "D"),  # jundot/omlx#3668
    ("The answer is C because I computed the integral.", "C"),  # jundot/omlx#3668
    ("The answer is B because a car moves.", "B"),  # EleutherAI/lm-evaluation-harness#4188
    ("I would pick B — a safe choice.", "B"),  # EleutherAI/lm-evaluation-harness#4188
    ("Answer: I think it is C", "C"),  # antirez/ds4#319
    ("I considered (A), but it is incorrect. Final answer: D.", "D"),  # aniri15/OPD-V#2
    ("C. A pretty girl", "C"),  # multimodal-art-projection/OmniBench#8
    ("\\boxed{B}", "B"),
    ("\\boxed{\\text{(B)}}", "B"),
    ("$\\boxed{\\mathrm{B}}$", "B"),
    ("Ｂ", "B"),
    ("（Ｂ）", "B"),
    ("Ｂ．赤", "B"),
    ("Ⓑ", "B"),
    ("⒝", "B"),
    ("A. up\nB. down\nAnswer: B", "B"),
    ("我认为应该选 A", "A"),  # ai-twinkle/Eval#156
    ("我選擇 B", "B"),  # ai-twinkle/Eval#156
    ("故选 C。", "C"),  # ai-twinkle/Eval#156
    ("应选 (A)", "A"),
    ("正确答案为 A", "A"),
    ("答案：B", "B"),
    ("不选A，选B", "B"),
    ("不是A而是B", "B"),
    ("排除A，选B", "B"),
    ("正解はBです", "B"),
    ("答えはB", "B"),
    ("정답은 B입니다", "B"),
    ("B번", "B"),
    ("Ответ: B", "B"),
    ("La réponse est B", "B"),
    ("Die Antwort ist B.", "B"),
    ("La respuesta correcta es B", "B"),
    ("الإجابة هي B", "B"),
    ("Option A shows a truck. So it is B", "B"),
    ("Option A looks likely at first.\nB", "B"),
    ("Option A? No. B", "B"),
    ("A is wrong, so B", "B"),
    ("It can't be A or C, so it must be B", "B"),
    ("A and B are both wrong. C", "C"),
    ("C. Both A and B are correct", "C"),
    ("The answer is C. Both A and B are correct.", "C"),
    ("(C) Both A and B are true", "C"),
    ("C: A and B are correct", "C"),
    ("D. A and C are right", "D"),
    ("E. All of A, B and C", "E"),
    ("D. Neither A nor B", "D"),
    ("a", "A"),
    ("I", "I"),
    ("I.", "I"),
    ("A: up", "A"),
    ("A - up", "A"),
    ("Maybe B", "B"),
    ("Probably B.", "B"),
    ("B it is", "B"),
    ("I think B", "B"),
    ("The answer is A.", "A"),
    ("The answer is A", "A"),
    ("answer: a", "A"),
    ("Answer: A\nAnswer: B", "B"),  # openai/frontier-evals#126
    ("My final answer is therefore option (B)", "B"),
    ("The best choice is C", "C"),
    ("B is correct", "B"),
    ("B is the correct answer", "B"),
    ("(B) is the right one because A is a trap", "B"),
    ("Neither A nor B, so C", "C"),
    ("After comparing the options, the answer is C.", "C"),  # IBM/AssetOpsBench#477
    ("The data point to wear.\n\nC", "C"),  # IBM/AssetOpsBench#477
    ("B\n\nExplanation: A is too big.", "B"),
    ("The answer is B rather than A", "B"),
    ("<b>B</b>", "B"),
    ("B!", "B"),
    ("'B'", "B"),
    ('"B"', "B"),
    ("“B”", "B"),
    ("I choose (c)", "C"),
    ("The letter is B", "B"),
    ("Choice B.", "B"),
    ("B。", "B"),
    ("选项B正确", "B"),
    ("B选项", "B"),
    ("ans: B", "B"),
    ("Answer - B", "B"),
    ("Answer B", "B"),
    ("A, the red car", "A"),
    ("Correct option: B. The red one", "B"),
    ("The answer is B, A is wrong", "B"),
    ("The correct answer is option B: red", "B"),
    ("B) red\nC) is not right", "B"),
    ("Let's see. A is up. B is down. The answer is B.", "B"),
    ("It's B", "B"),
    ("that's C!", "C"),
    ("so the answer must be D", "D"),
    ("Therefore, B", "B"),
    ("Answer:B", "B"),
    ("answer is:\n\nB", "B"),
    ("The answer is: **(B)** up", "B"),
    ("B;", "B"),
    ("B?", "B"),
    ("x = B", "B"),
    ("Actually, B", "B"),
    ("A. Wait, B", "B"),
]
PICKED += [
    ("【答案】B", "B"),
    ("選択肢B", "B"),
    ("B が正解です", "B"),
    ("本题选B", "B"),
    ("因此答案为：B。", "B"),
    ("Looking at the image, the answer would be (C).", "C"),
    ("(A) is incorrect, (B) is correct", "B"),
    ("The answer is A. A dog is shown.", "A"),
    ("I'd go with (A)", "A"),
    ("E. None of the above", "E"),
]
NONE = [
    ("A car", None),
    ("I'm not sure", None),
    ("ANSWER: None of the above", None),  # UKGovernmentBEIS/inspect_ai#2216
    ("ANSWER: Don't know", None),  # UKGovernmentBEIS/inspect_ai#2216
    ("ANSWER: I don't know", None),  # UKGovernmentBEIS/inspect_ai#2216
    ("A or B", None),
    ("A and B", None),
    ("A, B", None),
    ("A/B", None),
    ("AB", None),
    ("both A and B", None),
    ("A and B are correct", None),
    ("Not C. A and B are both right", None),
    ("A. up\nB. down\nC. left", None),
    ("(A) up (B) down", None),
    ("Vitamin C", None),
    ("Vitamin C is shown", None),
    ("Plan B", None),
    ("C++", None),
    ("C#", None),
    ("D.C.", None),
    ("Washington D. C.", None),
    ("A-frame", None),
    ("U.S.", None),
    ("A+", None),
    ("a car", None),
    ("I see a dog", None),
    ("The answer is a car", None),
    ("The answer is A car", None),
    ("B is wrong", None),
    ("Neither A nor B", None),
    ("The answer is not A", None),
    ("rather than A, B", None),
    ("A B C D", None),
    ("", None),
    ("🅱", None),
    ("Banana", None),
    ("T-shirt", None),
    ("car(s)", None),
    ("The answer is (A) or (B)", None),
    ("J. K. Rowling", None),
    ("E = mc2", None),
    ("Hepatitis B virus", None),
    ("the letter A is painted on it", None),
    ("Type O blood", None),
    ("I, personally, do not know", None),
    ("To be or not to be", None),
    ("A dog is to the left of a cat.", None),
    ("a, b", None),
    ("not sure", None),
    ("None", None),
    ("It is not (B).", None),
    ("It isn't B", None),
    ("not B", None),
    ("A.\nB.", None),
    ("I would guess", None),
    ("I... do not know", None),
    ("Option B is red", None),
]


@pytest.mark.parametrize(("answer", "letter"), PICKED + NONE)
def test_the_letter_that_an_answer_picks(answer: str, letter: str | None) -> None:
    assert option_letter(answer) == letter
    for gold in "ABCDEI":
        assert score_sample("choice", answer, {"gold": gold}) == float(gold == letter)


def test_the_table_is_large() -> None:
    assert len({answer for answer, _ in PICKED + NONE}) >= 60


@pytest.mark.parametrize(
    ("answer", "gold", "letter"),
    [
        ("Ответ: Б", "Б", "Б"),
        ("Б) дом", "Б", "Б"),
        ("А и Б", "Б", None),
        ("答案是乙", "乙", "乙"),
        ("正解はイです", "イ", "イ"),
        ("Β", "Β", "Β"),
    ],
)
def test_options_counted_in_other_alphabets(answer: str, gold: str, letter: str | None) -> None:
    assert option_letter(answer, gold) == letter


@pytest.mark.parametrize(
    ("gold", "letter"),
    [("b", "B"), ("(B)", "B"), ("B.", "B"), ("Ｂ", "B"), ("**B**", "B"), ("Б", "Б"), ("AB", None),
     ("3", None), ("红", None), ("", None), ("B. red", None)],
)  # fmt: skip
def test_golds_that_are_letters(gold: str, letter: str | None) -> None:
    assert gold_letter(gold) == letter


def test_fin_takes_the_same_letters() -> None:
    for answer in ("B", "B.", "The answer is B", "答案：B", "(b) It falls."):
        assert score_sample("compact", answer, {"gold": "B"}) == 1.0
    for answer in ("AB", "A or B", "not B", ""):
        assert score_sample("compact", answer, {"gold": "B"}) == 0.0
    assert score_sample("compact", "A, B", {"gold": "AB"}) == 1.0
