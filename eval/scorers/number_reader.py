"""Numbers in golds and in answers: one reader for ChartQA, Math, Fin and relaxed accuracy.

What is read: thousands (1,200; 1 200; 1'200; 1,00,000; LaTeX's 9{,}500), decimals (3.5; the comma
of 3,5 and 0,125 and 1.200,50), fractions and mixed numbers (1/2, 3 1/2, 3½, \\frac{1}{2}), powers
of ten, per cent, currency, million and the like, every dash as a sign, ranges, units glued or not.
What is none: 10:30, 1.2.3, 2024-01-05, 1st, COVID-19, the 2 of m^2 and of H2O.
"""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import NamedTuple

from eval.scorers.text import UNSPACED, fold, plain

YEARS = range(1800, 2101)
RELAXED_TOLERANCE = 0.05

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_WORD_VALUES = {word: float(value) for value, word in enumerate(_WORDS.split())} | {
    word: 10.0 * ten for ten, word in enumerate(_TENS.split(), start=3)
}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "lakh": 1e5, "million": 1e6, "mio": 1e6, "mn": 1e6}
_SCALES |= {"crore": 1e7, "billion": 1e9, "bn": 1e9, "trillion": 1e12, "tn": 1e12}
# Case matters: 5M is five million, 5m five metres.
_SCALES |= {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}

# A plain blank groups digits only where nothing else is said: "page 5 200 words" has two numbers.
_SPACED = re.compile(r"\A[^\w\n]*\d{1,3}(?: \d{3})+(?:[.,]\d+)?[^\w\n]*(?:[a-zA-Z]{1,12})?\W*\Z")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:['\u2019_\u00a0\u2007\u2009\u202f]\d{3})+(?!\d)")
_LATEX = (
    (re.compile(r"\\(?:[dt]?frac)\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\(?:[dt]?frac)\s*(\d)\s*(\d)"), r" \1/\2 "),
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,!:; ])\s*(?=\d)"), ""),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^\1"),
    (re.compile(r"(?:\^\s*)?\\(?:circ|degree)\b"), "°"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\sqrt\s*\{?"), "√"),
    (re.compile(r"\\pi(?![a-zA-Z])"), "π"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|rm)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\\[()\[\],;!: ]"), " "),
)
_DIGITS = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d]|,\d)(?:\.\d+)?"  # 1,200.50
    r"|[1-9]\d?(?:,\d\d)+,\d{3}(?![\d]|,\d)(?:\.\d+)?"  # 1,00,000
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d+)?(?![\d.]\d)"  # 1.200.000,50
    r"|[1-9]\d{0,2}(?:\.\d{3})+,\d{1,2}(?!\d)"  # 1.200,50
    r"|\d+,(?:\d{1,2}|\d{4,})(?!\d|,\d|\.\d)|(?:0|\d{4,}),\d+(?!,\d)"  # 3,5 and 0,125
    r"|\d+(?:\.\d+)?|\.\d+)"
)
_MONEY = r"(?:[A-Z]{0,3}[$€£¥₹₩₽₺₫฿]|\b(?:USD|EUR|GBP|CNY|RMB|JPY|INR|CHF|Rs\.?)\s?)"
# The look-behinds and the last look-ahead keep out what the head of this file lists as none.
_NUMBER = re.compile(
    rf"(?<![^\W{UNSPACED}])(?<![.^/√])(?<![A-Za-z]-)(?<!\d:)"
    rf"(?P<sign>(?:(?<![\w)%])-|\A\s*-\s+|(?<=[:=(])\s*-\s*))?\+?"
    rf"(?:(?P<money>{_MONEY})\s*(?P<inner>-)?)?"
    rf"(?:(?P<whole>\d+)(?:\s+|-)(?P<top>\d+)\s*/\s*(?P<bottom>\d+)(?![\d/])"
    rf"|(?P<value>{_DIGITS})(?:\s*/\s*(?P<over>\d+(?:\.\d+)?)(?![\d/]))?)"
    rf"(?:[eE](?P<e>[-+]?\d{{1,4}})(?!\w)|\s*[x×·*]\s*10\s*\^\s*\(?(?P<ten>-?\d{{1,4}})\)?)?"
    rf"(?:\^(?P<power>-?\d{{1,3}}))?"
    rf"(?P<percent>\s*(?:%|percent(?:age points?)?\b|per cent\b|pct\b))?"
    rf"(?:\s*(?P<scale>hundred|thousand|lakh|million|crore|billion|trillion)\b"
    rf"|(?P<glued>k|K|M|B|bn|mn|mio|tn)\b)?"
    rf"(?!\d|(?:st|nd|rd|th)\b|\.\d|:\d|/\d|\s*[√π])"
)
_UNIT = re.compile(
    r"\s*-?\s*(?!(?:in|of|to|and|or|at|on|for|as|is|was|by|from|with|than|the)\b)"
    r"([^\W\d]+(?:\s?[/·*^]\s?-?\w+)*\^?\d?|°\s?[CF]?|[€£¥₹])\.?"
)
_CURRENCIES = set("€£¥₹") | {"usd", "eur", "gbp", "euro", "euros", "dollar", "dollars"}
_RANGE_GAP = re.compile(
    r"(?:\s*[^\W\d]{1,4}|\s*°\s?[CF]?)?\s*(?:-|to|till|until|through|~|\.\.\.?|±|\+/-)\s*"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_CUE = re.compile(
    r"####|=|≈|\b(?:answer|result)\b[^.\n\d]{0,40}?(?:\bis\b|\bare\b|[:：=])|答案[是为為:：]*|答え[はを:：]*",
    re.IGNORECASE,
)
_DATED = re.compile(
    r"\b(?:in|since|by|until|till|during|year|years|from|of|for)\s+\Z", re.IGNORECASE
)
_SPELT_SIGN = re.compile(r"\b(?:minus|negative)\s+(?=[\d$€£¥.])", re.IGNORECASE)


class Number(NamedTuple):
    """A number in a text.

    Attributes:
        low: its value; of a range the lower end as written.
        high: its value; of a range the upper end.
        percent: a percent sign or word follows.
        bare: nothing but digits, and a sign: what may be a year.
        unit: the word behind it, "" if there is none.
        span: where it stands in the text that was read.
    """

    low: float
    high: float
    percent: bool = False
    bare: bool = False
    unit: str = ""
    span: tuple[int, int] = (0, 0)


def _clean(text: str) -> str:
    # Before `fold`, which makes plain blanks of the narrow ones that group digits.
    text = _GROUPED.sub(lambda number: re.sub(r"\D", "", number[0]), text)
    if _SPACED.match(text):
        text = re.sub(r"(?<=\d) (?=\d)", "", text)
    text = text.replace("\u066c", ",").replace("\u066b", ".")
    # An em dash separates clauses; `fold` would make it a hyphen, and that a minus or a range.
    text = re.sub(r"(?<=\w)[\u2014\u2015]", " - ", text)
    text = fold(text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _SPELT_SIGN.sub("-", text)
    return text.replace("**", "").replace("{", " ").replace("}", " ")


def _value(text: str) -> float:
    """Return the value of unsigned digits with their thousands separators and decimal mark."""
    if "," not in text and text.count(".") < 2:
        return float(text)
    comma, point = text.rfind(","), text.rfind(".")
    groups = re.fullmatch(r"[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?:\.\d+)?", text)
    if groups or (comma < 0 < point and text.count(".") == 1):
        return float(text.replace(",", ""))
    return float(text.replace(".", "").replace(",", "."))


def _number(match: re.Match[str], text: str) -> Number | None:
    if match["whole"]:
        top, bottom = float(match["top"]), float(match["bottom"])
        if not 0 < top < bottom:  # "4 10/3" is no mixed number, and no 4 either
            return None
        value = float(match["whole"]) + top / bottom
    else:
        value = _value(match["value"])
        inside = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
        if value % 1 and "," in match["value"] and inside in ("()", "[]"):  # a pair of numbers
            return None
        if match["over"]:
            value = value / float(match["over"]) if float(match["over"]) else math.nan
    try:
        value *= 10.0 ** float(match["e"] or match["ten"] or 0)
        value **= float(match["power"] or 1)
    except (OverflowError, ZeroDivisionError):
        return None
    value *= _SCALES.get(match["scale"] or match["glued"] or "", 1.0)
    if not math.isfinite(value):
        return None
    signed = bool(match["sign"]) != bool(match["inner"])
    unit = _UNIT.match(text, match.end())
    bare = not unit and re.fullmatch(r"-?\d+(?:\.0+)?", match[0].strip()) is not None
    value = -value if signed else value
    name = unit[1] if unit and unit[1].lower() not in _CURRENCIES else ""
    return Number(value, value, bool(match["percent"]), bare, name, match.span())


def _numbers(text: str) -> list[Number]:
    """Return the numbers and ranges of a cleaned text; dates and lists without blanks are none."""
    found: list[Number] = []
    joined = 1  # numbers that the last entry of `found` is made of; more than two are a date
    for match in _NUMBER.finditer(text):
        number = _number(match, text)
        if number is None:
            continue
        last = found[-1] if found else None
        gap = text[last.span[1] : number.span[0]] if last else ""
        # In "5 -10" the dash of a range was read as a sign.
        minus = bool(match["sign"]) and gap.strip(" ") == "" != gap
        if last and (gap == "," or minus or _is_range(text, last, gap)):
            joined = joined + 1 if gap != "," else 3
            high = abs(number.low) if minus else number.low
            found[-1] = number._replace(
                # NaN until the end, so that no part of a date is found as a number of its own.
                low=math.nan if joined > 2 else last.low,
                high=high,
                percent=last.percent or number.percent,
                span=(last.span[0], number.span[1]),
            )
            continue
        joined = 1
        found.append(number)
    return [number for number in found if not math.isnan(number.low)]


def _is_range(text: str, last: Number, gap: str) -> bool:
    if gap.strip() == "and":
        return text[: last.span[0]].rstrip().lower().endswith("between")
    return _RANGE_GAP.fullmatch(gap) is not None


_KNOWN_UNITS = re.compile(
    r"(?:[kmcdµunMGTh]?(?:m|g|s|l|L|W|V|A|Hz|J|N|Pa|B|b|Wh|ton|tons|t)|in|ft|mi|mph|kph|km/h|m/s|"
    r"lbs?|oz|h|hrs?|min|sec|°\s?[CF]?|[€£¥₹]|kg|ha|years?|yrs?|months?|weeks?|days?|hours?|"
    r"minutes?|seconds?|times|dollars?|euros?|pounds?|cents?|people|persons?|degrees?|meters?|"
    r"metres?|kilometers?|kilometres?|miles?|"
    r"feet|foot|inch(?:es)?|grams?|kilograms?|liters?|litres?|units?|points?|USD|EUR|GBP)"
    r"(?:\s?[/·*^]?\s?-?[a-zA-Z0-9^]{0,4})?"
)


@lru_cache(maxsize=1 << 14)
def read_gold(text: str) -> Number | None:
    """Return the number that a gold answer is ("$1,200", "25 %", "5 km", "3-5"), or None.

    None where anything else stands in it: "Apollo 11" and "2 Broke Girls" are no numbers.
    """
    boxed = _BOXED.fullmatch(text.strip(" $"))
    cleaned = _clean(boxed[1] if boxed else text).strip().rstrip(".,;")
    found = _numbers(cleaned)
    if len(found) != 1:
        return _read_word(text) if not found else None
    number = found[0]
    rest = (cleaned[: number.span[0]] + cleaned[number.span[1] :]).strip(" ()[]$")
    # A unit follows its number: "Apollo 11" is a name.
    if rest and not (cleaned.endswith(rest) and _KNOWN_UNITS.fullmatch(rest)):
        return None
    return number if rest else number._replace(unit="")


def _read_word(text: str) -> Number | None:
    """Return the number of a whole text in words, to ninety-nine."""
    tens, _, ones = plain(text).partition(" ")
    value = _WORD_VALUES.get(tens)
    if value is not None and ones:
        one = _WORD_VALUES.get(ones, 0.0)
        value = value + one if value >= 20 and 1 <= one <= 9 else None
    return None if value is None else Number(value, value)


@lru_cache(maxsize=1 << 14)
def read_answer(text: str) -> Number | None:
    """Return the number that an answer gives, or None.

    In this order: inside the last \\\\boxed{}; the first number behind the last "answer is", "=" or
    "####"; else the last number, years of "in 2010" and the numbers of a list left out where
    others stand.
    """
    boxed = _BOXED.findall(text)
    cleaned = _clean(boxed[-1] if boxed else text)
    found = _numbers(cleaned)
    if not found:
        return _read_word(cleaned)
    for cue in reversed(list(_CUE.finditer(cleaned))):
        if found[-1].span[0] >= cue.end():
            return next(number for number in found if number.span[0] >= cue.end())
    kept = [number for number in found if not _is_aside(number, cleaned)]
    return (kept or found)[-1]


def _is_aside(number: Number, text: str) -> bool:
    start, end = number.span
    before = text[max(0, start - 12) : start]
    if number.bare and number.low in YEARS and _DATED.search(before):
        return True
    opens_line = before.rsplit("\n")[-1].strip() == "" and ("\n" in before or start == len(before))
    return opens_line and re.match(r"[.)]\s+\S", text[end : end + 9]) is not None


def same_number(answer: Number, gold: Number, tolerance: float = 1e-9) -> bool:
    """Tell whether an answer's number is the gold one, within `tolerance` of the gold's size.

    A percent sign on one side only may be read either way: 25% is 25, and 0.25. Units count where
    both have one. Both ends of a range count.
    """
    # "m²" was folded to "m^2", "m2" was not.
    units = {plain(unit).replace("^", "") for unit in (answer.unit, gold.unit) if unit}
    if len(units) > 1:
        return False
    factors = [1.0]
    if answer.percent != gold.percent:
        factors.append(0.01 if answer.percent else 100.0)
    return any(
        _close(answer.low * factor, gold.low, tolerance)
        and _close(answer.high * factor, gold.high, tolerance)
        for factor in factors
    )


def relaxed_number(answer: Number, gold: Number) -> bool:
    """Tell whether two numbers are within 5 % (ChartQA, section 5.1); years and ranges are exact.

    A year is an integer from 1800 to 2100 written with digits alone. A gold of 0 wants 0.
    """
    if gold.low != gold.high or (gold.bare and gold.low in YEARS):
        return same_number(answer, gold)
    return same_number(answer, gold, RELAXED_TOLERANCE)


def _close(value: float, wanted: float, tolerance: float) -> bool:
    # The last summand is for a gold of 0, of which no part is left but rounding.
    return abs(value - wanted) <= tolerance * abs(wanted) + 1e-12
