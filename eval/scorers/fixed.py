"""The `fixed` scorers: one pure function each, (prediction, record) -> score in 0..1.

A record is a test sample or a prediction line: its gold is `gold`, `answer`, or the last assistant
turn of `messages`; Grounding has `answer_bbox` and `size`, captions have `references`. The
prediction is the answer alone: `registry` removes thoughts first (answer_text.final_answer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from eval.scorers import box_overlap as boxes
from eval.scorers.answer_text import GoldRecord, gold_answers, record_name
from eval.scorers.number_reader import Number, read_answer, read_gold, relaxed_number, same_number
from eval.scorers.option_letters import gold_letter, option_letter
from eval.scorers.text import contains_words, plain, vqa_text
from eval.scorers.yes_no import is_yes_no, says

# VQA v2: what three of the ten annotators say is fully right.
CONSENSUS = 3.0


def vqa(prediction: str, record: GoldRecord) -> float:
    """Return VQA accuracy: equality after the EvalAI normalisation.

    With several gold answers min(n / 3, 1), n the annotators who agree (VQA v2). An answer that
    normalises to nothing is wrong, so "The" never equals "A"; "C++" and "-5" keep their signs.
    """
    answer = vqa_text(prediction)
    golds = [vqa_text(gold) for gold in gold_answers(record)]
    if not answer:
        return 0.0
    if len(golds) == 1:
        return float(answer == golds[0])
    return min(golds.count(answer) / CONSENSUS, 1.0)


def exact(prediction: str, record: GoldRecord) -> float:
    """Return 1 if the prediction equals a gold answer after plain normalisation; empty is wrong."""
    # Golds first: one that cannot be read is an error, whatever was answered.
    golds = [plain(gold) for gold in gold_answers(record)]
    answer = plain(prediction)
    return float(bool(answer) and answer in golds)


def compact(prediction: str, record: GoldRecord) -> float:
    """Return 1 for equality without blanks and marks, on both sides (FinVis: "A, B" is "AB").

    A gold that is one letter is also picked as by `choice`, one that is a number also given as by
    `number`.
    """
    answer = plain(prediction).replace(" ", "")
    golds = gold_answers(record)
    if answer and any(answer == plain(gold).replace(" ", "") for gold in golds):
        return 1.0
    return float(any(_same_letter_or_number(prediction, gold) for gold in golds))


def _same_letter_or_number(prediction: str, gold: str) -> bool:
    if letter := gold_letter(gold):
        return option_letter(prediction, letter) == letter
    return _match_numbers(prediction, gold, same_number)


def _match_numbers(prediction: str, gold: str, same: Callable[[Number, Number], bool]) -> bool:
    """Tell whether the gold is a number and the prediction gives the same one."""
    wanted = read_gold(gold)
    found = None if wanted is None else read_answer(prediction)
    return wanted is not None and found is not None and same(found, wanted)


def label(prediction: str, record: GoldRecord) -> float:
    """Return 1 if the prediction equals a class name or one of its synonyms.

    Synonyms are `record["synonyms"]` or stand in the gold, with commas ("tabby, tabby cat").
    """
    names = [plain(name) for name in label_names(record)]
    answer = plain(prediction)
    return float(bool(answer) and answer in names)


def label_names(record: GoldRecord) -> list[str]:
    """Return the names of a record's class, synonyms included."""
    names = gold_answers(record) + list(record.get("synonyms") or [])
    return names + [part for name in names for part in name.split(",")]


def contains(prediction: str, record: GoldRecord) -> float:
    """Return 1 if a gold answer stands in the prediction as a word sequence (MLLM-CL).

    Yes and no: the first clause decides (see `yes_no`).
    """
    answer = plain(prediction)
    return float(
        any(
            says(prediction, gold) if is_yes_no(gold) else contains_words(answer, plain(gold))
            for gold in gold_answers(record)
        )
    )


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


def choice(prediction: str, record: GoldRecord) -> float:
    """Return 1 if the prediction picks the gold option.

    Equality after the EvalAI normalisation; a gold letter also by "(A) up" or "the answer is A"
    (see `option_letters`); yes and no by the first clause (see `yes_no`); a gold that is one option
    of a list (`record["options"]`) also when it stands in the prediction as a word sequence and no
    other option does.
    """
    return float(any(_chooses(prediction, gold, record) for gold in gold_answers(record)))


def _chooses(prediction: str, gold: str, record: GoldRecord) -> bool:
    # A letter must not go through EvalAI: the option "A" would vanish as an article.
    if letter := gold_letter(gold):
        return option_letter(prediction, letter) == letter
    options = [str(option) for option in record.get("options") or []]
    # Of "yes", "no" and "unclear" the answer picks one text; the first clause would not do.
    if is_yes_no(gold) and all(map(is_yes_no, options)):
        return says(prediction, gold)
    answer, wanted = vqa_text(prediction), vqa_text(gold)
    if answer and answer == wanted:
        return True
    return wanted in map(vqa_text, options) and _names_only(plain(prediction), gold, options)


def _names_only(answer: str, gold: str, options: list[str]) -> bool:
    wanted = plain(gold)
    # An option inside the gold one ("cat", of "black cat") is always named with it.
    others = (o for o in map(plain, options) if o != wanted and not contains_words(wanted, o))
    return contains_words(answer, wanted) and not any(contains_words(answer, o) for o in others)


def grounding(prediction: str, record: GoldRecord) -> float:
    """Return 1 if IoU > 0.5 between the box in the prediction and the gold box.

    `box_format`, in the record or in its gold, states how the model writes boxes: `unit` (default,
    parts of the longer side), `thousand` or `pixel`. The gold `answer_bbox` is always in unit form.

    Raises:
        ValueError: the gold box or the size cannot be read.
    """
    # Files for eval.score have box and size inside `gold`, prediction lines beside it.
    fields = record["gold"] if isinstance(record.get("gold"), Mapping) else record
    gold, size = _gold_box(record, fields)
    box = boxes.parse_box(prediction)
    if box is None:
        return 0.0
    box_format = record.get("box_format") or fields.get("box_format") or "unit"
    found = boxes.to_pixels(box, size, box_format)
    return float(boxes.iou(found, boxes.to_pixels(gold, size, "unit")) > 0.5)


def _gold_box(record: GoldRecord, fields: GoldRecord) -> tuple[boxes.Box, list[float]]:
    written, size = fields.get("answer_bbox"), fields.get("size")
    box = boxes.parse_box(str(written)) if written is not None else None
    sides = boxes.parse_numbers(str(size))
    if box is None or len(sides) != 2:
        raise ValueError(
            f"{record_name(record)}: found answer_bbox={written!r} and size={size!r}, expected"
            " '[x1, y1, x2, y2]' and [width, height]"
        )
    return box, sides


def relaxed(prediction: str, record: GoldRecord) -> float:
    """Return relaxed accuracy (ChartQA): numbers within 5 % of the gold, text by equality.

    Years are exact (see `number_reader.relaxed_number`), yes and no are read by the first clause.
    """
    return float(any(_relaxed_match(prediction, gold) for gold in gold_answers(record)))


def _relaxed_match(prediction: str, gold: str) -> bool:
    if is_yes_no(gold):
        return says(prediction, gold)
    return _same_text(prediction, gold) or _match_numbers(prediction, gold, relaxed_number)


def _same_text(prediction: str, gold: str) -> bool:
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
    # A gold "A" stands as a word in almost any English answer: letters are never searched for.
    if choice(prediction, record) or gold_letter(gold):
        return choice(prediction, record)
    return contains(prediction, record)


def _items(text: str) -> set[str]:
    parts = re.split(r",|;|\band\b", text)
    return {plain(part) for part in parts if plain(part)}


def number(prediction: str, record: GoldRecord) -> float:
    """Return 1 for the same number, else as `choice` (MLLM-CL Math: options, integers, decimals).

    In a longer answer the boxed or stated number counts, else the last: it was asked to end with
    the value (see `number_reader.read_answer`).
    """
    return float(any(_same_number(prediction, gold, record) for gold in gold_answers(record)))


def _same_number(prediction: str, gold: str, record: GoldRecord) -> bool:
    if read_gold(gold) is None:
        return _chooses(prediction, gold, record)
    return _same_text(prediction, gold) or _match_numbers(prediction, gold, same_number)
