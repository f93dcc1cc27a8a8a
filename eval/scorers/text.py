"""Text normalisation: the EvalAI one of VQA (quirks on request) and a plain one for labels."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

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
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank else " ")
    return _FULL_STOP.sub("", result, count=full_stops)


_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INNER_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")
# A whole number with its sign and point, or a run of letters and digits, or a unit that matters.
_PLAIN_TOKEN = re.compile(r"(?<!\w)[-+]?\d*\.?\d+(?!\w)|[^\W_]+|[%$]")


@lru_cache(maxsize=1 << 16)
def plain(text: str) -> str:
    """Return `text` in lower case without marks: `"**Art_Gallery**."` becomes `"art gallery"`.

    Unicode is folded (NFKC and case folding; accents stay), marks part words, an apostrophe inside
    a word joins it, thousands separators go; sign and point of a number, `%` and `$` stay.
    """
    text = (
        unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'").replace("\u2212", "-")
    )
    text = _INNER_APOSTROPHE.sub("", _THOUSANDS.sub("", text))
    return " ".join(_PLAIN_TOKEN.findall(text))


def contains_words(text: str, words: str) -> bool:
    """Tell whether the word sequence `words` stands in `text`; both already normalised."""
    return bool(words) and f" {words} " in f" {text} "
