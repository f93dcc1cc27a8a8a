"""A score that is blind to case and format, beside the official one of a task.

What it gives more than the official score was lost in form alone: other case, marks, articles or
blanks, an option's letter in place of its text, a box in other brackets or units, a sentence around
the answer. It tells a model that answers in another style from one that no longer knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.run_files import PredictionLine
from eval.scorers import box_overlap as boxes
from eval.scorers.answer_text import final_answer, gold_answers
from eval.scorers.fixed import CONSENSUS, label_names
from eval.scorers.option_letters import gold_letter, option_letter
from eval.scorers.registry import Scorer
from eval.scorers.text import ARTICLES, NUMBER_WORDS, fold, plain
from eval.scorers.yes_no import is_yes_no, says

# "The answer is", "It's", "There are": what a sentence puts before the answer.
_LEAD = re.compile(
    r"\A\W*(?:(?:the|my)\s+)?(?:(?:final|short|correct)\s+)?answer\s*(?:is\b|[:=])\W*"
    r"|\A\W*(?:it|this|that|these|those|there|they)\s*(?:'s|is|are|was|were)\b\W*",
    re.IGNORECASE,
)
# "1 000" as a number is written; and blanks that do not stand between two numbers.
_GROUPED = re.compile(r"(?<!\d )\b\d{1,3}(?: \d{3})+\b")
_BLANK = re.compile(r"(?<!\d) | (?!\d)")
_OPTION = re.compile(r"^\s*\(?([A-Z0-9])[.):]\s*(\S.*?)\s*$", re.MULTILINE)


def lenient_scores(
    lines: Sequence[PredictionLine], scores: Sequence[float], scorer: Scorer
) -> list[float]:
    """Return the blind score in 0..1 of each prediction line of a task, never below its official.

    Captions keep their score: their tokens have neither case nor marks.

    Args:
        lines: of one task.
        scores: the official ones.
        scorer: the official scorer.
    """
    if scorer.sample is None:
        return list(scores)
    return [
        score if line["prediction"] is None else max(score, _blind(line, scorer.name))
        for line, score in zip(lines, scores, strict=True)
    ]


def _blind(line: PredictionLine, scorer: str) -> float:
    answer = _LEAD.sub("", final_answer(line["prediction"] or ""))
    if "answer_bbox" in line:
        return float(_same_box(answer, line))
    golds = label_names(line) if scorer == "label" else gold_answers(line)
    right = sum(_same(answer, gold, line) for gold in golds)
    # Of ten annotators' answers three must agree, as in VQA v2.
    several = scorer == "vqa" and len(golds) > 1
    return min(right / CONSENSUS, 1.0) if several else float(right > 0)


def _same(answer: str, gold: str, line: PredictionLine) -> bool:
    said, wanted = bare(answer), bare(gold)
    if said == wanted != "" or (is_yes_no(gold) and says(answer, gold)):
        return True
    options = _options(line)
    texts = {name: bare(text) for name, text in options.items()}
    named = next((name for name, text in texts.items() if text == wanted), None)
    name = gold_letter(gold) or named or gold.strip()  # of the gold's option, if it is one
    text = texts.get(name)
    if said == text != "":
        return True
    if name.isdigit():  # "1. up", and "1" where no option says 1
        alone = said == name and name not in texts.values()
        return text is not None and (alone or said == bare(f"{name}. {options[name]}"))
    return len(name) == 1 and option_letter(answer, name) == name


def _options(line: PredictionLine) -> dict[str, str]:
    """Return the options by their letters: those of the sample, or lines "A. text" of its question.

    Numbered options ("0. 72") count by their numbers.
    """
    given = line.get("options") or []
    if given:
        return {chr(ord("A") + place): str(text) for place, text in enumerate(given)}
    return dict(_OPTION.findall(line.get("prompt") or ""))


def bare(text: str) -> str:
    """Return a text's words without case, marks, articles and blanks; "Two" is "2".

    Two numbers stay two: "9-5" is "9 5", not "95".
    """
    words = (NUMBER_WORDS.get(word, word) for word in plain(text).split())
    kept = " ".join(word for word in words if word not in ARTICLES)
    return _BLANK.sub("", _GROUPED.sub(lambda number: number[0].replace(" ", ""), kept))


def _same_box(answer: str, line: PredictionLine) -> bool:
    """Tell whether the four numbers are the gold box (IoU > 0.5) in any of the known units."""
    numbers = boxes.parse_numbers(fold(answer))
    found = boxes.parse_box(answer) or (numbers if len(numbers) == 4 else None)
    gold, size = boxes.parse_box(str(line["answer_bbox"])), line.get("size")
    if found is None or gold is None or not size:
        return False
    wanted = boxes.to_pixels(gold, size, "unit")
    units = (boxes.to_pixels(found, size, unit) for unit in boxes.BOX_FORMATS)
    return any(boxes.iou(box, wanted) > 0.5 for box in units)
