"""The `released` scorers: what published scripts decide, their defects included.

StrCVIT's and MLLM-CL's are written from observed behaviour (tests/fixtures/released_scores.json
holds real verdicts), CoIN's and UCIT's from the arithmetic of their scripts. They serve to compare
with published numbers only; the default is `fixed`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from eval.scorers import box_overlap as boxes
from eval.scorers.answer_text import GoldRecord
from eval.scorers.fixed import FORMULAS
from eval.scorers.text import RELEASED_FULL_STOPS, evalai

REFUSED = "Unanswerable"
_CAPTION_TOOLS = "pip install pycocoevalcap==1.2, and Java"


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
    """MLLM-CL Sci: equality for AI2D, SciVerse, TQA, VQA (by the picture); else as for maps.

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


def equal_upper(prediction: str, record: GoldRecord) -> float:
    """CoIN VizWiz and VQAv2, UCIT but for captions: equality of upper-cased strings."""
    return float(prediction.upper() == _text_gold(record).upper())


def two_way_substring_cased(prediction: str, record: GoldRecord) -> float:
    """CoIN ImageNet: either stands in the other, case and all; an empty answer counts as right."""
    gold = _text_gold(record)
    return float(gold in prediction or prediction in gold)


_LETTERS = "ABCDE"
_LONE = re.compile(r"\b(\w)\b")


def first_letter(prediction: str, record: GoldRecord) -> float:
    """CoIN ScienceQA: a letter alone, one before ". ", else the first word of one character.

    Defects: "It is a dog, so B" answers A, "2 of them: C" answers 2 and is wrong.
    """
    if len(prediction) == 1 and prediction in _LETTERS:
        said = prediction
    elif prediction[:1] in tuple(_LETTERS) and prediction[1:3] == ". ":
        said = prediction[0]
    else:
        lone = _LONE.search(prediction)
        said = lone[1].upper() if lone else ""
    return float(said == _text_gold(record))


def ten_answers(prediction: str, record: GoldRecord) -> float:
    """CoIN TextVQA: VQA accuracy, the mean over the ten sets of nine annotators, after EvalAI."""
    golds = record.get("gold", record.get("answer"))
    if not isinstance(golds, list) or len(golds) != 10:
        raise ReleasedCrash("the published script crashes without ten gold answers")
    answer = evalai(prediction, RELEASED_FULL_STOPS)
    same = sum(evalai(str(gold), RELEASED_FULL_STOPS) == answer for gold in golds)
    # Where one that agrees is left out, one fewer agrees.
    return (same * min(1, (same - 1) / 3) + (10 - same) * min(1, same / 3)) / 10


def equal_lower_stripped(prediction: str, record: GoldRecord) -> float:
    """CoIN GQA: as StrCVIT's, but for one blank before the answer, which goes first."""
    return equal_lower_prediction(prediction.removeprefix(" "), record)


def grounding_stripped(prediction: str, record: GoldRecord) -> float:
    """CoIN Grounding: as StrCVIT's, but for one blank before the answer, which goes first."""
    return grounding(prediction.removeprefix(" "), record)


def _damaged_box(prediction: str) -> list[float] | None:
    inner = prediction.replace("[", "").replace("]", "")[1:-1]
    try:
        numbers = [float(part) for part in inner.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def mean_of_seven(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return what UCIT's script prints for a caption test set: percents, above 100 if CIDEr is.

    `eval_caption.py` of HiDe-LLaVA's code prints BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr, each
    x 100, and their mean, which the papers' tables hold (SPICE is computed there, and left out).
    Its tokenizer and METEOR are Java programs inside pycocoevalcap, so it is no requirement.

    Args:
        predictions: one caption a picture.
        references: the captions of each picture.

    Raises:
        ReleasedCrash: the package or Java is not there, or a program of its failed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        raise ReleasedCrash(
            f"the published script needs pycocoevalcap: {_CAPTION_TOOLS}"
        ) from error
    golds = {
        number: [{"caption": text} for text in texts] for number, texts in enumerate(references)
    }
    answers = {number: [{"caption": text}] for number, text in enumerate(predictions)}
    try:
        tokens = PTBTokenizer()
        both = tokens.tokenize(golds), tokens.tokenize(answers)
        bleu = Bleu(4).compute_score(*both, verbose=0)[0]
        others = [scorer().compute_score(*both)[0] for scorer in (Meteor, Rouge, Cider)]
    except (OSError, ValueError, AssertionError) as error:  # of a program that is not there or ends
        raise ReleasedCrash(
            f"the published script fails ({error!r}); it needs {_CAPTION_TOOLS}"
        ) from error
    return 100.0 * fmean([*bleu, *others])
