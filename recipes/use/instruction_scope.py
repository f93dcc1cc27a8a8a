"""For which prompts alone an adapter of fixed gates is one plain LoRA."""

from __future__ import annotations

import json
from difflib import get_close_matches

from data_prep.files import Record, read_json
from eval.question_form import IMAGE, form_of
from recipes.use.ask import own_questions
from recipes.use.finished_adapter import FinishedAdapter
from strlora_tuner.routing_record.format import instruction_key


def pictures_of(adapter: FinishedAdapter, text: str) -> int:
    """How many pictures a prompt of this text has: as it marks, else as the run's own question has.

    Blanks at its ends say nothing of that. Of a text without marks that the run was never asked, as
    many as its first question. Blank ones take their place, since pictures are no text.
    """
    if IMAGE in text:
        return text.count(IMAGE)
    asked = own_questions(adapter)
    same = (each for each in asked if _last_turn(each).replace(IMAGE, "").strip() == text.strip())
    return len(next(same, asked[0] if asked else {}).get("images") or [])


def scope(adapter: FinishedAdapter, instruction: str) -> str:
    """Which prompts get the gates of `instruction`: those of its text, or of its task."""
    sentence = getattr(adapter.recipe.tuner_options, "sentence", "prompt")
    if sentence == "prompt":
        return f"whose text is exactly {json.dumps(instruction, ensure_ascii=False)}"
    labels = read_json(adapter.layout.known_labels).items()
    label = {instruction_key(text): name for text, name in labels}[instruction_key(instruction)]
    return f"whose {sentence} (tuner.sentence) is {json.dumps(label, ensure_ascii=False)}"


def scope_text(adapter: FinishedAdapter, instruction: str) -> str:
    """For which prompts alone the written LoRA is the adapter, and whether the run has such."""
    said = f"for prompts {scope(adapter, instruction)} alone"
    if adapter.recipe.task_labels:
        return said
    asked = own_questions(adapter)
    count, form = pictures_of(adapter, instruction), form_of(asked)
    place = "behind it" if form.behind else "before it"
    where = "where it marks them" if IMAGE in instruction else place
    said += (
        f", with {count} picture{'s' * (count != 1)} {where}; where yours have others, mark each "
        f"with {IMAGE} in --instruction"
    )
    if not asked:
        return (
            f"{said}\nthe run was never evaluated and its stream is not here: the pictures of its "
            "own questions are not known"
        )
    # Earlier turns of the user are part of what gates read: a later turn's text says too little.
    texts = {_last_turn(each) for each in asked if _turns_of_user(each) == 1}
    prompt = str(form.turns(instruction, count)[-1]["content"])
    if prompt in texts:
        return said
    nearest = get_close_matches(prompt, texts, 1, 0)
    fits = f"; the nearest: {nearest[0]!r}" if nearest else ""
    return f"{said}\nno question of the run is exactly {prompt!r}{fits}"


def _last_turn(question: Record) -> str:
    return str(question["messages"][-1]["content"])


def _turns_of_user(question: Record) -> int:
    return sum(turn["role"] == "user" for turn in question["messages"])
