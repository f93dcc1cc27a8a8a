"""The `released` scorers: what the published StrCVIT scripts decide, their defects included.

Written from their observed behaviour (../tests/fixtures/released_scores.json holds real verdicts),
for comparison with published numbers only. The default is `fixed`.
"""

from __future__ import annotations

from eval.scorers import box_overlap as boxes
from eval.scorers.answer_text import GoldRecord
from eval.scorers.fixed import FORMULAS
from eval.scorers.text import RELEASED_FULL_STOPS, evalai

REFUSED = "Unanswerable"


class ReleasedCrash(ValueError):
    """The published script ends with an exception on this input; the message says which."""


def _text_gold(record: GoldRecord) -> str:
    gold = record.get("gold", record.get("answer"))
    if not isinstance(gold, str):
        raise ReleasedCrash(f"the published script crashes on a gold of type {type(gold).__name__}")
    return gold


def contained(prediction: str, record: GoldRecord) -> float:
    """AD, RS, also of MLLM-CL: the gold stands in the answer, with a weak look at word boundaries.

    Defects: "Unanswerable" is refused even as gold; only a one-word gold loses its full stops;
    " red" opens " reduced"; an answer without blanks is searched as a plain substring.
    """
    if REFUSED in prediction:
        return 0.0
    answer, gold = prediction.lower(), _text_gold(record).lower()
    if " " in gold:
        return float(gold in answer)
    gold = gold.replace(".", "")
    if " " not in answer:
        return float(gold in answer)
    return float(any(form in answer for form in (f" {gold}", f"{gold} ", f"{gold}.", f"{gold},")))


def equal_compacted(prediction: str, record: GoldRecord) -> float:
    """Fin: equality after blanks and full stops were removed from the PREDICTION only."""
    if REFUSED in prediction:
        return 0.0
    answer = prediction.replace(" ", "").replace(".", "")
    return float(answer.lower() == _text_gold(record).lower())


def two_way_substring(prediction: str, record: GoldRecord) -> float:
    """ImageNet, Places365: either stands in the other, so an empty answer counts as right."""
    gold = _text_gold(record).replace(".", "").upper()
    answer = prediction.upper()
    return float(gold in answer or answer in gold)


def substring(prediction: str, record: GoldRecord) -> float:
    """ChartQA: the gold without its full stops stands in the prediction ("3.5" accepts "35")."""
    return float(_text_gold(record).replace(".", "").upper() in prediction.upper())


def vqa(prediction: str, record: GoldRecord) -> float:
    """VQAv2: equality after EvalAI with its quirks; one gold; two articles are equal."""
    gold = evalai(_text_gold(record), RELEASED_FULL_STOPS)
    return float(evalai(prediction, RELEASED_FULL_STOPS) == gold)


def equal_lower(prediction: str, record: GoldRecord) -> float:
    """OCRVQA: equality of lower-cased strings; a title with "Unanswerable" is refused."""
    return float(REFUSED not in prediction and prediction.lower() == _text_gold(record).lower())


def equal_lower_prediction(prediction: str, record: GoldRecord) -> float:
    """GQA: the prediction is lower-cased and loses its final full stops; the gold is untouched."""
    return float(prediction.rstrip(".").lower() == _text_gold(record))


def grounding(prediction: str, record: GoldRecord) -> float:
    """Grounding: IoU > 0.5 after a parser that eats digits.

    All square brackets go, then the first and last character of what is left: y2 loses its last
    digit and x1 its first digit or sign, unless another mark stands there.
    """
    fields = record["gold"] if isinstance(record.get("gold"), dict) else record
    box = _damaged_box(prediction)
    if "size" not in fields or "answer_bbox" not in fields:
        raise ReleasedCrash("the published script crashes without 'size' and 'answer_bbox'")
    if box is None:
        return 0.0
    gold = boxes.parse_numbers(str(fields["answer_bbox"]))
    if len(gold) != 4:
        raise ReleasedCrash(f"the published script crashes on a gold box of {len(gold)} numbers")
    scale = float(max(fields["size"]))
    found = [number * scale for number in box]
    return float(boxes.iou(found, [number * scale for number in gold]) > 0.5)


def substring_any_case(prediction: str, record: GoldRecord) -> float:
    """MLLM-CL Med: the gold stands anywhere in the answer, also inside a word.

    Defects: "Unanswerable" is refused even as gold; "no" stands in "unknown"; an empty gold is
    always right.
    """
    return float(REFUSED not in prediction and _text_gold(record).lower() in prediction.lower())


def substring_compacted(prediction: str, record: GoldRecord) -> float:
    """MLLM-CL VP (counting): containment without blanks and full stops: "13" holds "3"."""
    marks = str.maketrans("", "", " .\n")
    gold = _text_gold(record).lower().strip().translate(marks)
    return float(gold in prediction.lower().strip().translate(marks))


def any_substring(prediction: str, record: GoldRecord) -> float:
    """MLLM-CL OCR: any gold stands anywhere in the answer, lower-cased, line breaks removed.

    Handwritten formulas (`record["answer_type"]`) keep their case and lose their blanks.
    """
    golds = record.get("gold", record.get("answer"))
    golds = golds if isinstance(golds, list) else [_text_gold(record)]
    if record.get("answer_type") == FORMULAS:
        return float(any(_without_blanks(gold) in _without_blanks(prediction) for gold in golds))
    answer = prediction.lower().strip().replace("\n", "")
    return float(any(gold.lower().strip().replace("\n", "") in answer for gold in golds))


def _without_blanks(text: str) -> str:
    return text.strip().replace(" ", "").replace("\n", "")


EQUALITY_SOURCES = ("AI2D", "TQA", "VQA")  # of the picture's file name
SCIVERSE = "sciverse"  # in the picture's path


def science(prediction: str, record: GoldRecord) -> float:
    """MLLM-CL Sci: equality for AI2D, SciVerse, TQA and VQA, told by the picture; else as for maps.

    Maps: for "Which states" the share of gold states between the answer's commas, blanks and all,
    so that naming every state is right and "ohio, utah" holds no "utah"; else containment.
    """
    if REFUSED in prediction:
        return 0.0
    answer, gold = prediction.lower(), _text_gold(record).lower()
    images = record.get("images") or [record.get("image")]
    if not isinstance(images[0], str) or "prompt" not in record:
        raise ReleasedCrash("the published script crashes without a picture's name and the prompt")
    name = images[0].split("/")[-1].split("_")[0]
    if name in EQUALITY_SOURCES or SCIVERSE in images[0].lower():
        return float(answer == gold)
    if "Which states" in record["prompt"]:
        wanted, named = gold.split(","), answer.split(",")
        return sum(state in named for state in wanted) / len(wanted)
    return float(gold in answer)


def _damaged_box(prediction: str) -> list[float] | None:
    inner = prediction.replace("[", "").replace("]", "")[1:-1]
    try:
        numbers = [float(part) for part in inner.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None
