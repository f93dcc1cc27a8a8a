"""Where a lead holds: the preset beside LoRA with slow weights on every stream."""

from __future__ import annotations

from collections.abc import Sequence

from eval.significance import holm
from eval.study.goals import PRESET, SLOW_LORA
from eval.study.groups import Lead, Study, leads
from eval.study.tables import (
    LEAD_HEADS,
    NOTHING,
    RANKS,
    corrected_over,
    lead_cells,
    markdown,
)

# What is behind a name, for the reader; of all other folders the name has to do.
WHAT = {
    "ambiguous": "`mini`, one vague instruction for all tasks",
    "long": "100 chunks of the `mini` kind",
    "mini-study": "25 chunks, 11 tasks, mixed",
    "task-incremental": "11 chunks, one task each",
    "tiny": "as `tiny-study`, fewer tests; seen by the prototype",
    "tiny-paraphrased": "as `tiny`, every instruction in several wordings",
    "tiny-reversed": "as `tiny`, the chunks in the other order",
    "tiny-study": "8 chunks, 6 tasks, mixed",
    "tiny-study-smaller-base": "`tiny-study` on the smaller base model",
}


def table(studies: Sequence[Study]) -> str:
    """Return the differences of Avg and Last on every stream that both methods ran on."""
    found: list[tuple[str, list[Lead]]] = []
    for study in studies:
        groups = {group.name: group for group in study.groups}
        if PRESET in groups and SLOW_LORA in groups:
            of_scores = [leads(groups[PRESET], [groups[SLOW_LORA]], key)[0] for key in RANKS]
            if of_scores[0].pairs:
                found.append((study.folder.name, of_scores))
    if not found:
        return NOTHING
    found.sort(key=lambda row: -row[1][0].difference)
    columns = [_corrected(column) for column in zip(*(row[1] for row in found), strict=True)]
    head = ["stream", "what it is", "n", *LEAD_HEADS]
    rows = []
    for (name, _), *of_stream in zip(found, *columns, strict=True):
        cells = [part for lead in of_stream for part in lead_cells(lead)]
        rows.append([f"`{name}`", WHAT.get(name, ""), str(of_stream[0].pairs), *cells])
    tests = corrected_over(dict(zip(RANKS, columns, strict=True)), "stream")
    note = (
        f"{PRESET} minus {SLOW_LORA}, in points, over runs that share the seeds of stream and "
        f"model; paired t tests, {tests}."
    )
    return f"{markdown(head, rows, words=2)}\n\n{note}"


def _corrected(column: Sequence[Lead]) -> list[Lead]:
    adjusted = holm([lead.p for lead in column])
    return [lead._replace(adjusted=p) for lead, p in zip(column, adjusted, strict=True)]
