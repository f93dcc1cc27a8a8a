"""The option that an answer picks: one letter out of "B", "(b) up", "The answer is B", "選 B".

Every letter that stands alone is a mention; mentions joined by "and", "or" or a comma are one. A
mention is denied ("not A", "A is wrong", "不是A") or weighed by what stands around it. The last one
that is stated decides ("the answer is B", "I'd choose B", "B is correct", a line or sentence of B
alone); else the one that opens the answer ("B. red"); else the only one in brackets. Two letters
in one mention, or in brackets, are no choice.
"""

# Other scripts and marks on purpose.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from eval.scorers.text import fold

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What options are counted with elsewhere: А, Б, В; Α, Β, Γ; 甲, 乙; ア, イ.
_ALPHABETS = (LATIN, "АБВГДЕЖЗИК", "ΑΒΓΔΕΖΗΘ", "甲乙丙丁戊", "アイウエオ")
_GOLD = re.compile(r"[\s(\[\"'*]*(\w)[\s)\]\"'.:*]*")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|rm|mbox)\s*\{([^{}]*)\}")
_MARKUP = re.compile(
    r"[*`$\"“”«»「」『』]|(?<!\w)'|'(?!\w)|\\[()\[\]]|\b_+|_+\b|</?[a-zA-Z]{1,6}>|[{}]"
)

# Behind these a letter is the answer; `_FILLER` may stand between.
_STATED = re.compile(
    r"""(?:
    \b(?:answer|choice|response|solution|key|pick)\b[^.\n:：]{0,60}?
        (?:\b(?:is|are|be|was|option)\b|[:：=]|->|→|-)
    | \b(?:answer|option|choice|letter)\b
    | \b(?:choose|chose|pick(?:ed)?|select(?:ed)?|go(?:ing)?\ (?:with|for)|went\ with|opt\ for|
        vote\ for|(?:would|'d|I)\ say|leaving|leaves|actually|wait|correction|rather)\b,?
    | \b(?:it|that|this)(?:'s|\ (?:is|must\ be|should\ be|would\ be|has\ to\ be|can\ only\ be))
    | \b(?:but|so|thus|hence|therefore)\b,?
    | (?:答案|正解|答え|選択肢|정답|答|답)(?:应该|應該|应|應|就)?(?:是|为|為|は|은|は、)?[:：]?
    | [选選](?:擇|择|项|項)? | 而是 | 应为 | 應為
    | \b(?:ответ|réponse|antwort|respuesta|risposta|resposta|jawaban|cevap|đáp\ án|odpowiedź)\b
        (?:\ (?:correcta|correcte|correta|corretta|richtige|верный|est|ist|es|è|é|adalah|là|to))*
        [\ ]?[:：-]?
    | (?:الإجابة|الجواب)(?:\ الصحيحة)?(?:\ هي|\ هو)?[:：]? | उत्तर(?:\ है)?[:：]? | คำตอบ(?:คือ)?[:：]?
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_FILLER = re.compile(
    r"(?:\s|[(\[:：】]|\b(?:the|option|choice|answer|letter|is|be|would|should|must|correct|right|"
    r"best|most|clearly|definitely|probably|likely|therefore|indeed|then|that|really|just|opción|"
    r"lettre|buchstabe|вариант|буква)\b|选项|選項|是|为|為|应|應)*\Z",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|rather than|instead of|except|rul(?:es?|ed|ing) out|discard\w*|"
    r"eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|reject\w*)\b|n't|不[是选選]|排除|並非|并非|非)"
    r"(?:\s|[(\[]|\b(?:be|the|options?|choices?|answer|letter|correct|either)\b|选项|選項)*\Z",
    re.IGNORECASE,
)
_VERB = r"(?:is|are|was|were|seems?|looks?|(?:would|must|should|can|could) be)\s+(?:\w+\s+)?"
_WRONG = re.compile(
    rf"[)\]]?\s*(?:{_VERB}(?:wrong|incorrect|not|false|impossible|out)\b"
    r"|(?:is|are|was|can|does|do)(?:n't|not)\b|cannot\b|不|错|錯|是错|是錯|が?間違|\?\s*\S)",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    rf"[)\]]?\s*(?:{_VERB}(?:the\s+)?(?:most\s+|best\s+)?(?:correct|right|best|answer|true)\b"
    r"|(?:选项|選項|項|项)?(?:是)?正[确確]|[がは]正|(?:가|이) 정답|번|です|입니다|이다)",
    re.IGNORECASE,
)
_LINK = re.compile(
    r"[)\]]?\s*(?:,|/|&|、|和|或|与|與|,?\s*\b(?:and|or|nor)\b)\s*"
    r"(?:\b(?:and|or|maybe|possibly|perhaps|also|even|option)\b\s*)*[(\[]?",
    re.IGNORECASE,
)
_COMMA = re.compile(r"[)\]]?\s*[,、]\s*[(\[]?")
_PRONOUN_END = re.compile(r"\s*(?:\Z|\n|[):：、。;!?\]】]|\.(?!\.))")
# What may follow a letter for it to stand for an option, and not for an article or a pronoun.
_CLOSED = re.compile(
    r"\s*(?:\Z|\n|[).:：,，、。;；!！?？\]】|]|-\s|\((?!\w\))"
    r"|\b(?:because|since|as|is|was|would|must)\b|(?:and|or|nor|&)\s+[(\[]?[A-Z]\b|[^\x00-\x7f])"
)
_OPENED = re.compile(
    r"\s*(?:\Z|\n|[).:：,，、。;；!\]】|]|-\s|\(|\b(?:because|since|as)\b|です|项|項|选|選|번|입니다)"
)
_NAMES = ("option", "choice", "letter")
_ENUMERATED = re.compile(r"[).:、]\s*\S")
# "C. Both A and B are correct": between an option's letter and the letters that its text names.
_OPTION_TEXT = re.compile(
    r"[)\].:、]+[^\S\n]*(?:\b(?:both|either|neither|all(?: of)?|only|options?)\b\s*)*[(\[]?",
    re.IGNORECASE,
)
_BARE_END = re.compile(r"[)\]]?\s*[.!。]?\s*(?:\Z|\n)|[)\]]?[.!。]\s")
_BARE_START = re.compile(r"(?:\A|\n|[.!?。:：！？]\s?)[\s(\[#>-]*\Z")
# "J. K. Rowling" opens with no option.
_INITIAL = re.compile(r"\b[A-Za-z]\.[^\S\n]*\Z")
_UNSURE = (
    "a be definitely final guess i it is its maybe most likely must mine my of option perhaps"
    " possibly probably surely the think thats that would choice answer certainly clearly hmm ok"
    " okay yes well sure"
)


@dataclass
class _Mention:
    """Letters that are named together: `text[start:end]`."""

    letters: set[str]
    start: int
    end: int
    denied: bool = False


def gold_letter(gold: str) -> str | None:
    """Return the option letter that a gold answer is ("B", "(b)", "B."), upper-case, or None."""
    match = _GOLD.fullmatch(fold(gold))
    letter = match[1].upper() if match else ""
    return letter if letter and any(letter in alphabet for alphabet in _ALPHABETS) else None


@lru_cache(maxsize=1 << 14)
def option_letter(answer: str, gold: str = "A") -> str | None:
    """Return the option letter that an answer picks, upper-case, or None.

    Args:
        answer: the model's answer.
        gold: the gold letter: of the alphabet that the options are counted with.
    """
    # The Cyrillic and the Greek A look like ours: the gold tells which alphabet is meant.
    letters = next((alphabet for alphabet in _ALPHABETS if gold in alphabet), LATIN)
    if boxed := _BOXED.findall(answer):
        answer = boxed[-1]
    text = _MARKUP.sub("", _LATEX_TEXT.sub(r"\1", fold(answer))).strip()
    mentions = [mention for mention in _mentions(text, letters) if not mention.denied]
    by_words = [m for m in mentions if _is_stated(text, m)]
    bare = [m for m in mentions if m not in by_words and _is_bare(text, m)]
    stated = [m for m in mentions if m in by_words or m in bare]
    last = bare if stated == bare else stated[-1:]  # two lines of one letter each are two answers
    enumerated = {
        letter for m in mentions if _ENUMERATED.match(text, m.end) for letter in m.letters
    }
    opening = [
        mention
        for mention in mentions[:1]
        # "A. up  B. down" lists the options and picks none.
        if len(enumerated) < 2
        and not re.search(r"\w", text[: mention.start])
        and _OPENED.match(text, mention.end)
    ]
    bracketed = [m for m in mentions if re.search(r"(?<!\w)[(\[【]\s*\Z", text[: m.start][-3:])]
    if len(enumerated) != 1:
        bracketed = [m for m in bracketed if re.match(r"\s*[)\]】]", text[m.end :][:3])]
    for found in (last, opening, bracketed, mentions if _is_only(text) else []):
        named = {letter for mention in found for letter in mention.letters}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def _mentions(text: str, letters: str) -> list[_Mention]:
    word = "A-Za-z0-9" if letters == LATIN else letters + letters.lower()
    pattern = re.compile(
        rf"(?<![{word}'+#&.-])(?<![{word}]/)[{letters}{letters.lower()}]"
        rf"(?![{word}'+#&]|-[{word}]|\.[{word}]\b)"
    )
    found: list[_Mention] = []
    for match in pattern.finditer(text):
        letter, end = match[0], match.end()
        # An article, a pronoun or a small letter: only where no word follows.
        closed = _PRONOUN_END if letter == "I" else _CLOSED
        if (letter in "AI" or letter != letter.upper()) and not closed.match(text, end):
            continue
        last = found[-1] if found else None
        gap = text[last.end : match.start()] if last else ""
        # In "not A, B is correct" the comma joins no letters: B has a verb of its own.
        own_verb = _WRONG.match(text, end) or _RIGHT.match(text, end)
        if last and _LINK.fullmatch(gap) and not (_COMMA.fullmatch(gap) and own_verb):
            last.letters.add(letter.upper())
            last.end = end
        else:
            found.append(_Mention({letter.upper()}, match.start(), end))
    # Only after all letters are joined: "A or B is wrong" denies both.
    for mention in found:
        before = text[max(0, mention.start - 60) : mention.start]
        mention.denied = bool(_DENIED.search(before) or _WRONG.match(text, mention.end))
    option_texts = [
        later
        for option, later in pairwise(found)
        if len(option.letters) == 1 < len(later.letters)
        and not option.denied
        and _OPTION_TEXT.fullmatch(text, option.end, later.start)
    ]
    return [mention for mention in found if mention not in option_texts]


def _is_stated(text: str, mention: _Mention) -> bool:
    """Tell whether the words around a mention say that it is the answer."""
    if _RIGHT.match(text, mention.end):
        return True
    before = text[max(0, mention.start - 100) : mention.start]
    return any(
        _FILLER.fullmatch(before, cue.end())
        # "Option A shows a truck" states nothing, "Option A" does.
        and (cue[0].lower() not in _NAMES or _OPENED.match(text, mention.end))
        for cue in _STATED.finditer(before)
    )


def _is_bare(text: str, mention: _Mention) -> bool:
    """Tell whether a mention is a line or a sentence of its own."""
    before = text[max(0, mention.start - 100) : mention.start]
    if not _BARE_START.search(before) or _INITIAL.search(before):
        return False
    return bool(_BARE_END.match(text, mention.end)) and not _ENUMERATED.match(
        text[mention.end :].split("\n")[0]
    )


def _is_only(text: str) -> bool:
    """Tell whether an answer says nothing but letters and how sure it is: "Maybe B", "B it is"."""
    words = re.findall(r"[^\W\d_]{2,}|\bi\b", text.lower().replace("'", ""))
    return all(word in _UNSURE.split() for word in words)
