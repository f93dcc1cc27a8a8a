"""The `fixed` scorers: one pure function each, (prediction, record) -> score in 0..1.

A record is a test sample or a prediction line: its gold is `gold`, `answer`, or the last assistant
turn of `messages`; Grounding has `answer_bbox` and `size`, captions have `references`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from eval.scorers import box_overlap as boxes
from eval.scorers.text import contains_words, evalai, plain

# A test sample, a prediction line or a line of an answers file: whatever has a gold answer.
GoldRecord = Mapping[str, Any]
CONSENSUS = 3.0
RELAXED_TOLERANCE = 0.05


def gold_answers(record: GoldRecord) -> list[str]:
    """Return the gold answers of a record, at least one.

    Raises:
        ValueError: the record has none.
    """
    for key in ("references", "gold", "answer"):
        if record.get(key) is not None and record[key] != []:
            value = record[key]
            return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    for message in reversed(record.get("messages") or []):
        if message.get("role") == "assistant":
            return [str(message["content"])]
    found = sorted(record)
    raise ValueError(f"record {record.get('id')!r}: no gold; expected 'gold', 'answer',"
                     f" 'references' or an assistant turn, found the keys {found}")  # fmt: skip


def vqa(prediction: str, record: GoldRecord) -> float:
    """Return VQA accuracy: equality after the EvalAI normalisation.

    With several gold answers min(n / 3, 1), n the annotators who agree (VQA v2). An answer that
    normalises to nothing is wrong, so "The" never equals "A".
    """
    answer = evalai(prediction)
    golds = [evalai(gold) for gold in gold_answers(record)]
    if not answer:
        return 0.0
    if len(golds) == 1:
        return float(answer == golds[0])
    return min(golds.count(answer) / CONSENSUS, 1.0)


def exact(prediction: str, record: GoldRecord) -> float:
    """Return 1 if the prediction equals a gold answer after plain normalisation; empty is wrong."""
    answer = plain(prediction)
    return float(bool(answer) and any(answer == plain(gold) for gold in gold_answers(record)))


def compact(prediction: str, record: GoldRecord) -> float:
    """Return 1 for equality without blanks and marks, on both sides (FinVis: "A, B" is "AB")."""
    answer = plain(prediction).replace(" ", "")
    golds = (plain(gold).replace(" ", "") for gold in gold_answers(record))
    return float(bool(answer) and any(answer == gold for gold in golds))


def label(prediction: str, record: GoldRecord) -> float:
    """Return 1 if the prediction equals a class name or one of its synonyms.

    Synonyms are `record["synonyms"]` or stand in the gold, parted by commas ("tabby, tabby cat").
    """
    names = gold_answers(record) + list(record.get("synonyms") or [])
    names += [part for name in names for part in name.split(",")]
    answer = plain(prediction)
    return float(bool(answer) and any(answer == plain(name) for name in names))


def contains(prediction: str, record: GoldRecord) -> float:
    """Return 1 if a gold answer stands in the prediction as a word sequence (MLLM-CL)."""
    answer = plain(prediction)
    return float(any(contains_words(answer, plain(gold)) for gold in gold_answers(record)))


FORMULAS = "Handwritten Mathematical Expression Recognition"


def ocr(prediction: str, record: GoldRecord) -> float:
    """Return 1 if a gold text stands in the prediction as a word sequence (MLLM-CL OCR).

    Handwritten formulas (`record["answer_type"]`) count with every mark and case, without blanks.
    """
    if record.get("answer_type") != FORMULAS:
        return contains(prediction, record)
    answer = "".join(prediction.split())
    golds = ("".join(gold.split()) for gold in gold_answers(record))
    return float(any(gold and gold in answer for gold in golds))


# "A", "(A) up", "A: up", "**B**"; a bare "A car" is an article, not an option.
_LEADING_LETTER = re.compile(r"^[\W_]*([A-Za-z])(?:[\W_]*$|[).:,\]*\"'])")
_NAMED_LETTER = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+is)?[\s:]*[\W_]*([A-Z])(?![\w'])", re.IGNORECASE
)
_LETTER = re.compile(r"[A-Za-z]")
YES_NO = ("yes", "no")


def choice(prediction: str, record: GoldRecord) -> float:
    """Return 1 if the prediction picks the gold option.

    Equality after the EvalAI normalisation; a gold letter also by "(A) up" or "the answer is A";
    a gold that is one option of a list (`record["options"]`, or yes and no) also when it stands in
    the prediction as a word sequence and no other option does.
    """
    return float(any(_chooses(prediction, gold, record) for gold in gold_answers(record)))


def _chooses(prediction: str, gold: str, record: GoldRecord) -> bool:
    gold = gold.strip()
    # A letter must not go through EvalAI: the option "A" would vanish as an article.
    if _LETTER.fullmatch(gold):
        return option_letter(prediction) == gold.upper()
    answer, wanted = evalai(prediction), evalai(gold)
    if answer and answer == wanted:
        return True
    options = [evalai(str(option)) for option in record.get("options") or []]
    if wanted in YES_NO and not options:
        options = list(YES_NO)
    return wanted in options and _names_only(answer, wanted, options)


def option_letter(prediction: str) -> str | None:
    """Return the option letter that an answer picks, upper-case, or None."""
    match = _LEADING_LETTER.search(prediction) or _NAMED_LETTER.search(prediction)
    return match.group(1).upper() if match else None


def _names_only(answer: str, wanted: str, options: list[str]) -> bool:
    others = (o for o in options if o != wanted and not contains_words(wanted, o))
    return contains_words(answer, wanted) and not any(contains_words(answer, o) for o in others)


def grounding(prediction: str, record: GoldRecord) -> float:
    """Return 1 if IoU > 0.5 between the box in the prediction and the gold box.

    `record["box_format"]` states how the model writes boxes: `unit` (default, parts of the longer
    side), `thousand` or `pixel`. The gold `answer_bbox` is always in unit form.

    Raises:
        ValueError: the gold box or the size cannot be read.
    """
    gold, size = _gold_box(record)
    box = boxes.parse_box(prediction)
    if box is None:
        return 0.0
    found = boxes.to_pixels(box, size, record.get("box_format", "unit"))
    return float(boxes.iou(found, boxes.to_pixels(gold, size, "unit")) > 0.5)


def _gold_box(record: GoldRecord) -> tuple[boxes.Box, list[float]]:
    fields = record["gold"] if isinstance(record.get("gold"), dict) else record
    written = fields.get("answer_bbox")
    box = boxes.parse_box(str(written)) if written is not None else None
    size = fields.get("size")
    if box is None or not isinstance(size, list) or len(size) != 2:
        raise ValueError(
            f"record {record.get('id', record.get('question_id'))!r}: found answer_bbox={written!r}"
            f" and size={size!r}, expected '[x1, y1, x2, y2]' and [width, height]"
        )
    return box, [float(side) for side in size]


_AMOUNT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


def _amount(text: str) -> float | None:
    """Return the number that a whole answer states ("$1,200", "25 %", "1/2"), or None."""
    text = text.strip().rstrip(".").lower().replace("\u2212", "-").replace("percent", "%")
    text = re.sub(r"(?<=\d)[, ](?=\d{3}(?!\d))", "", text).replace("$", "").replace("%", "").strip()
    parts = [part.strip() for part in text.split("/")]
    if not 1 <= len(parts) <= 2 or not all(_AMOUNT.fullmatch(part) for part in parts):
        return None
    top, bottom = float(parts[0]), float(parts[1]) if len(parts) == 2 else 1.0
    return top / bottom if bottom else None


def relaxed(prediction: str, record: GoldRecord) -> float:
    """Return relaxed accuracy (ChartQA): numbers within 5 % of the gold, text by equality.

    A gold of 0 wants 0. Percent signs, currency and thousands separators are not looked at.
    """
    return float(any(_relaxed_match(prediction, gold) for gold in gold_answers(record)))


def _relaxed_match(prediction: str, gold: str) -> bool:
    wanted, found = _amount(gold), _amount(prediction)
    if wanted is not None and found is not None:
        return abs(found - wanted) <= RELAXED_TOLERANCE * abs(wanted) + 1e-12
    answer = plain(prediction)
    return bool(answer) and answer == plain(gold)


def science(prediction: str, record: GoldRecord) -> float:
    """Return the score of an answer that is an option, a list or a short text (MLLM-CL Sci).

    A gold list ("Ohio, Utah") gives the items that both name, as a share of the longer list, so
    that naming everything earns little; any other gold is scored as by `choice`, or right where it
    stands in the answer as a word sequence of its own.
    """
    gold = gold_answers(record)[0]
    wanted = _items(gold)
    if len(wanted) > 1:
        named = _items(prediction)
        return len(wanted & named) / max(len(wanted), len(named))
    if choice(prediction, record) or _LETTER.fullmatch(gold.strip()):
        return choice(prediction, record)
    return contains(prediction, record)


def _items(text: str) -> set[str]:
    parts = re.split(r",|;|\band\b", text)
    return {plain(part) for part in parts if plain(part)}


def number(prediction: str, record: GoldRecord) -> float:
    """Return 1 for the same number, else as `choice` (MLLM-CL Math: options, integers, decimals).

    A longer answer is read by its last number: it was asked to end with the value.
    """
    return float(any(_same_number(prediction, gold, record) for gold in gold_answers(record)))


def _same_number(prediction: str, gold: str, record: GoldRecord) -> bool:
    wanted, found = _amount(gold), _amount(prediction)
    if wanted is None:
        return _chooses(prediction, gold, record)
    if found is None:
        found = next(iter(boxes.parse_numbers(prediction.rstrip(". \n"))[::-1]), None)
    return found is not None and abs(found - wanted) <= 1e-9 * max(1.0, abs(wanted))


def anls(prediction: str, record: GoldRecord) -> float:
    """Return the normalised Levenshtein similarity (ANLS, ST-VQA) to the best gold, cut at 0.5."""
    best = max(_similarity(plain(prediction), plain(gold)) for gold in gold_answers(record))
    return best if best >= 0.5 else 0.0


def _similarity(answer: str, gold: str) -> float:
    longest = max(len(answer), len(gold))
    return 1.0 - _edits(answer, gold) / longest if longest else 0.0


def _edits(first: str, second: str) -> int:
    """Return the Levenshtein distance, one row of the table at a time."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            change = previous + (letter != other)
            previous, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]
