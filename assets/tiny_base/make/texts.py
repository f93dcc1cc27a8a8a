"""Pretraining conversations: descriptions, field queries, checks and copying.

None of these prompts or answer forms occurs in the stream, which a test checks.
"""

from __future__ import annotations

from random import Random

Pairs = list[tuple[str, str]]  # (field, value) of a scene
Turns = list[tuple[str, str]]  # (prompt, answer) of a conversation

DESCRIBE = (
    "Describe the picture.",
    "Report everything you see.",
    "Tell about this picture.",
    "List the facts.",
)
FIELDS = ("Field: {}", "Name the {}.", "Tell only this: {}", "{} =")  # the first one is measured
CHECK, REPEAT, BACKWARDS = "Check: {} = {}", "Repeat: {}", "Backwards: {}"
RIGHT, WRONG = "right", "wrong"


def description(head: str, pairs: Pairs) -> str:
    """Return the whole description, such as "single: paint = red; item = circle"."""
    return head + ": " + "; ".join(f"{field} = {value}" for field, value in pairs)


def about_image(head: str, pairs: Pairs, others: Pairs, rng: Random) -> Turns:
    """Return a conversation about an image: one description, or up to three short turns.

    `others` are the pairs of another scene of the same task; their values make wrong checks.
    """
    order = rng.sample(pairs, len(pairs))
    if rng.random() < 0.45:
        return [(rng.choice(DESCRIBE), description(head, order))]
    turns = [(rng.choice(FIELDS).format(field), value) for field, value in order[:3]]
    field, value = rng.choice(pairs)
    if rng.random() < 0.3 and len(value) < 12:
        wrong = dict(others).get(field, value)
        claim = value if rng.random() < 0.5 else wrong
        turns.append((CHECK.format(field, claim), RIGHT if claim == value else WRONG))
        rng.shuffle(turns)
    return turns


def copying(words: list[str], rng: Random) -> Turns:
    """Return a text-only turn that repeats random words, forwards or backwards."""
    chosen = rng.choices(words, k=rng.randint(2, 6))
    if rng.random() < 0.6:
        return [(REPEAT.format(" ".join(chosen)), " ".join(chosen))]
    return [(BACKWARDS.format(" ".join(chosen)), " ".join(reversed(chosen)))]
