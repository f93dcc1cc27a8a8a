"""Yes or no out of an answer with an explanation: the first clause decides, hedges are neither."""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from functools import lru_cache

from eval.scorers.text import fold

# Words of yes and of no, by language; a gold is looked up in all of them, in this order: "no" is
# English before it is Spanish.
_LANGUAGES = (
    ("yes yeah yep yup", "no nope nah"),
    ("是 是的", "否 不是 没有 沒有"),
    ("はい ええ", "いいえ いや"),
    ("예 네", "아니요 아니오 아뇨"),
    ("oui", "non"),
    ("ja", "nein"),
    ("sí si", "no"),
    ("да", "нет"),
    ("sim", "não"),
)
_TABLES = [(frozenset(yes.split()), frozenset(no.split())) for yes, no in _LANGUAGES]
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{(?:\\text\s*\{)?([^{}]*)\}")
_MARKUP = re.compile(r"[*_`\"“”«»#>()\[\]{}$]|</?[a-z]{1,6}>|(?<!\w)'|'(?!\w)")
_FINAL = re.compile(
    r"\b(?:final answer|answer|conclusion)\b(?:\s+(?:is|would be|should be))?\s*[:：]?\s*"
)
_CLAUSE = re.compile(
    r"[.,;:!?\n。，、；：！？…]|\s-+\s|\b(?:because|since|as|but|although|though|and)\b"
)
_BEFORE = re.compile(
    r"(?:\s|\b(?:well|so|hmm|um|oh|okay|ok|actually|sorry|wait|or|rather|then|therefore|thus|the|"
    r"final|answer|is|it|would|be|i|d|say|think|believe|guess|my|a|of|course|definitely|certainly|"
    r"clearly|simply)\b|')*"
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|likely|unlikely|might|unsure|uncertain|unclear|not sure|"
    r"cannot|can't|can not|could be|may be|not certain|hard to|difficult to|depends|don't know|"
    r"do not know|unknown|either|both|yes (?:and|or) no|no (?:and|or) yes|yes\s*/\s*no)\b"
    r"|也许|可能|不确定|不知道|たぶん|わから|分から|모르|아마"
)
# "No doubt" and "no. 5" say no to nothing.
_IDIOM = re.compile(r"\bno (?:doubt|problem|wonder|matter|worries)\b|\bno\.?\s*\d")


def is_yes_no(gold: str) -> bool:
    """Tell whether a gold answer is yes or no, in one of the languages that are known."""
    return _table(gold) is not None


def _word(gold: str) -> str:
    return fold(gold).casefold().strip(" .!。\n\t")


def _table(gold: str) -> tuple[frozenset[str], frozenset[str]] | None:
    return next((pair for pair in _TABLES if _word(gold) in pair[0] | pair[1]), None)


def says(answer: str, gold: str) -> bool:
    """Tell whether an answer says the yes or no of `gold`.

    The first clause decides, or what follows "the answer is": "Yes, there is no car" is yes. An
    answer that hedges, says both or neither is wrong.
    """
    table = _table(gold)
    if table is None:
        raise ValueError(f"gold: found {gold!r}, expected yes or no")
    return verdict(answer, table) == (_word(gold) in table[0])


@lru_cache(maxsize=1 << 14)
def verdict(answer: str, table: tuple[frozenset[str], frozenset[str]] = _TABLES[0]) -> bool | None:
    """Return True for yes, False for no and None for neither, both, or a hedge."""
    if boxed := _BOXED.findall(answer):
        answer = boxed[-1]
    text = _MARKUP.sub("", fold(answer).casefold()).strip()
    for cue in reversed(list(_FINAL.finditer(text))):
        stated = _of_clause(_CLAUSE.split(text[cue.end() :].lstrip(), maxsplit=1)[0], table)
        if stated is not None:
            return stated
    clauses = [clause for clause in map(str.strip, _CLAUSE.split(_IDIOM.sub(" ", text))) if clause]
    if not clauses or _HEDGE.search(clauses[0]) or any(map(_HEDGE.fullmatch, clauses)):
        return None
    first = _of_clause(clauses[0], table)
    if first is None and _BEFORE.fullmatch(clauses[0]) and len(clauses) > 1:  # "Well, yes"
        first = _of_clause(clauses[1], table)
    others = {_bare(clause, table) for clause in clauses[1:]} - {None}
    if len(others) == 1 and not _opens(clauses[0], table):  # "There is no car, so yes"
        return others.pop()
    return None if first is None or (not first) in others else first


def _opens(clause: str, table: tuple[frozenset[str], frozenset[str]]) -> bool:
    """Tell whether a clause begins with yes or no, and does not just hold one."""
    word = re.match(r"[\w']*", _BEFORE.sub("", clause, count=1))
    return word is not None and any(word[0].startswith(tuple(words)) for words in table)


def _of_clause(clause: str, table: tuple[frozenset[str], frozenset[str]]) -> bool | None:
    """Return what one clause says: its first word, else the only one of yes and no in it."""
    bare = _BEFORE.sub("", clause, count=1)
    for says_yes, words, others in ((True, *table), (False, *table[::-1])):
        for word in sorted(words, key=len, reverse=True):
            spaced = not "\u3040" <= word[0] <= "\u9fff"  # kana and Han write no blanks
            if re.match(rf"{word}(?![\w'])" if spaced else word, bare):
                rest = set(re.findall(r"[\w']+", bare[len(word) :]))
                # "yes no" is neither, "yes there is no car" is yes.
                return None if rest and rest <= others else says_yes
    words_in = re.findall(r"[\w']+", clause)
    found = {True for w in words_in if w in table[0]} | {False for w in words_in if w in table[1]}
    return found.pop() if len(found) == 1 else None


def _bare(clause: str, table: tuple[frozenset[str], frozenset[str]]) -> bool | None:
    """Return what a clause of nothing but yes or no says."""
    word = _BEFORE.sub("", clause, count=1).strip()
    return True if word in table[0] else False if word in table[1] else None
