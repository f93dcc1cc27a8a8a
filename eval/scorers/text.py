"""Text normalisation: EvalAI's for VQA (quirks on request), and a plain one for any script."""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby

ARTICLES = frozenset({"a", "an", "the"})
_COUNTING = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNTING.split())} | {"none": "0"}
# The marks that the EvalAI rules remove or replace, in their order; `'`, `:`, `%`, `$`, `&` stay.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Full forms of the EvalAI table of contractions; a word that lacks one of their apostrophes is
# given it back. Published forms with a capital I never match (text is lower-cased first).
_FULL_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    # The one entry of the published table that takes an apostrophe away.
    table = {"somebody'd": "somebodyd"}
    for form in _FULL_FORMS.split():
        for at, letter in enumerate(form):
            if letter == "'":
                table[form[:at] + form[at + 1 :]] = form
    return table


CONTRACTIONS = _contractions()
# `(?!<=\d)` is a misspelt look-behind of the original and always true: only the digit after counts.
_FULL_STOP = re.compile(r"\.(?!\d)")
# The original passes re.UNICODE (32) where the count of replacements belongs.
RELEASED_FULL_STOPS = 32


@lru_cache(maxsize=1 << 16)
def evalai(text: str, full_stops: int = 0) -> str:
    """Return `text` after the EvalAI normalisation of VQA v2 answers.

    Lower case, punctuation, number words, articles and contractions, as in the VQA evaluation
    server's answer processor.

    Args:
        text: the answer.
        full_stops: the most full stops that are removed; 0 removes all (the published code: 32).
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = _strip_punctuation(text, full_stops)
    words = (NUMBER_WORDS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _strip_punctuation(text: str, full_stops: int) -> str:
    result = text
    for mark in PUNCTUATION:
        # A mark beside a blank vanishes everywhere; one that is always inside words is a blank.
        # Asked of the input, as published: what earlier marks left behind does not count.
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank else " ")
    return _FULL_STOP.sub("", result, count=full_stops)


# Written like letters or digits, but for another meaning or none: each script's digits and widths
# are folded, powers are not (x² is no x2), ™ and variants of one sign go.
_DROPPED = frozenset("\u00ad\u0640\u2122\u2120\u00a9\u00ae") | {
    chr(c) for c in range(0xFE00, 0xFE10)
}
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\ufe58\ufe63\uff0d\u2796"
_QUOTES = {
    "\u2019": "'",
    "\u2018": "'",
    "\u02bc": "'",
    "\uff07": "'",
    "\u2044": "/",
    "\u266f": "#",
    "\u066a": "%",
    "\u0130": "I",
}
_SPELT = {dash: "-" for dash in _DASHES} | _QUOTES | dict.fromkeys(_DROPPED, "")


@lru_cache(maxsize=1 << 14)
def _fold_character(character: str) -> str:
    if character in _SPELT:
        return _SPELT[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "Cf":  # joiners, marks of direction, the mark at a file's start
        return ""
    kind, _, points = unicodedata.decomposition(character).partition("> ")
    if not kind.startswith("<"):
        return character
    folded = "".join(_fold_character(chr(int(point, 16))) for point in points.split())
    if kind == "<super" and not folded.isalpha():
        return f"^{folded}"
    return f" {folded}" if kind == "<fraction" else folded


_BASE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
# A run is one power: character by character 10¹² would be 10^1^2.
_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]{2,}")


def fold(text: str) -> str:
    """Return `text` with one spelling of each character: NFC, one width, one digit, one dash.

    Unlike NFKC it keeps powers: "x²" becomes "x^2". "3½" becomes "3 1/2", "㎡" "m^2", "５" and "५"
    "5", every dash "-". Invisible characters go, combining marks stay.
    """
    if text.isascii():
        return text
    text = _POWER.sub(lambda run: "^" + run[0].translate(_BASE), text)
    return unicodedata.normalize(
        "NFC", "".join(map(_fold_character, unicodedata.normalize("NFC", text)))
    )


def _character_class(keep: Callable[[str], bool]) -> str:
    """Return the inside of a regular expression's [...] for the characters that `keep` chooses."""
    # No combining mark lies outside of these ranges; a scan of all code points would slow imports.
    points = [p for p in (*range(0x20000), *range(0xE0100, 0xE01F0)) if keep(chr(p))]
    runs = groupby(enumerate(points), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ends)


# `re` knows no classes of Unicode, so that they are written out.
MARKS = _character_class(lambda c: unicodedata.category(c).startswith("M"))
# Scripts that write no blanks between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?!\d|,\d)")
_INNER_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
# In this order: a number with its sign and point, or a fraction; one character of a script without
# blanks, with its marks; a word, with the marks of C++, C#, A- and x^2; signs that change what is
# said. Everything else only separates words.
_PLAIN_TOKEN = re.compile(
    rf"(?<!\w)-?\d*\.?\d+(?:/\d+)?\+?(?![\w{MARKS}^])"
    rf"|(?=\w)[{UNSPACED}][{MARKS}]*"
    rf"|[^\W_{UNSPACED}](?:[^\W_{UNSPACED}]|[{MARKS}])*"
    r"(?:\++(?!\w)|\#+(?!\w)|(?<=\b\w)-(?![\w-])|\^-?\w+)?"
    r"|[<>](?=\s*[-.\d])|[%$€£¥₹₩₽₺₫฿¢=±×÷√∞≤≥≠≈∼∑∫∂∆∇∈∉⊂∪∩∧∨¬∀∃]|[\u2190-\u21ff\u2600-\u26ff]"
)
_BLANKS = re.compile(r"\s+")


@lru_cache(maxsize=1 << 16)
def plain(text: str) -> str:
    """Return `text` in lower case without marks: `"**Art_Gallery**."` becomes `"art gallery"`.

    Unicode is folded (see `fold`) and lower-cased, accents and vowel signs stay. Punctuation
    separates words, an apostrophe inside a word joins it, thousands separators go, `&` is "and".
    Kept are a number's sign and point, the marks of C++, C#, A+ and x^2, currency, `%` and signs of
    mathematics. Text in a script without blanks is split into characters. Text of nothing but
    other marks is kept as it is.
    """
    folded = fold(text).casefold()
    joined = _INNER_APOSTROPHE.sub("", folded).replace("&", " and ")
    joined = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), joined)
    tokens = " ".join(_PLAIN_TOKEN.findall(unicodedata.normalize("NFC", joined)))
    return tokens or _BLANKS.sub("", folded)


_MEANT_PLUS = re.compile(r"(?<=[\w+])\+(?!\w)")
_GRADE = re.compile(r"(?<=\b[^\W\d_])-(?![\w-])")
_MEANT_MINUS = re.compile(r"(?<![\w.])-(?=\.?\d)")


def vqa_text(text: str) -> str:
    """Return `text` after Unicode folding and the EvalAI normalisation, C++ and -5 kept apart.

    EvalAI drops every plus and minus, so that "C++" is "C" and "-5" is "5"; here they are words.
    """
    text = _MEANT_PLUS.sub(" plus ", _GRADE.sub(" minus", fold(text)))
    return evalai(_MEANT_MINUS.sub("minus ", text))


def contains_words(text: str, words: str) -> bool:
    """Tell whether the word sequence `words` stands in `text`; both already normalised.

    Characters count as words where `plain` split a script without blanks.
    """
    return bool(words) and f" {words} " in f" {text} "
