"""What routing.json and the probe file hold; imports no torch, so that a report can read both.

routing.json says how an inference run was routed, summed over all its processes and by task. The
probe file, which the evaluation writes, says which instruction belongs to which task: the diagnosis
knows it, the model never does.
"""

from __future__ import annotations

import re
from typing import TypedDict

FORMAT = 2
# The group of every instruction that belongs to no task of the probe file.
OTHER = "other"
_SPECIAL = re.compile(r"<[^<>\s]*>")

# A number, or null where it is not finite.
Number = float | None


class ProbeContent(TypedDict):
    """A probe file. An instruction that several tasks use is shared out among them."""

    tasks: list[str]
    texts: dict[str, dict[str, float]]  # {instruction: {task: share}}


class GroupRecord(TypedDict):
    """How the prompts of one task were routed; lists have one entry for each layer.

    Attributes:
        name: the task, or :data:`OTHER`.
        rows: prompts.
        use: mean weight of every expert over the tokens (stage 2).
        selected: share of rows in which every expert was kept (stage 1).
        task_entropy, token_entropy: of stage 1 and of stage 2, in nats.
        sets: share of rows by the set of kept experts; bit e of the mask stands for expert e;
            beyond 52 experts any number that stands for the set.
    """

    name: str
    rows: float
    use: list[list[Number]]
    selected: list[list[Number]]
    task_entropy: list[Number]
    token_entropy: list[Number]
    sets: list[dict[str, float]]


class InstructionRecord(TypedDict):
    """One distinct instruction: its group, its rows, its vector on the first components.

    Attributes:
        kept: by layer the set of experts that it keeps, as in `sets`; null where its rows kept
            different ones. Records of before November 2026 lack the list.
    """

    text: str
    group: str
    rows: int
    vector: list[Number]
    kept: list[int | None]


class InstructionMap(TypedDict):
    """The instructions' mean vectors, on their first principal components.

    Attributes:
        vector_cosine: cosine between the groups' mean instruction vectors, [group][group].
        vector_variance: share of variance on each principal component.
        instructions: some of the distinct instructions.
    """

    vector_cosine: list[list[Number]]
    vector_variance: list[Number]
    instructions: list[InstructionRecord]


class RoutingContent(InstructionMap):
    """The content of routing.json.

    Attributes:
        format: :data:`FORMAT`.
        ablation: what was switched off, None for nothing.
        layers: names of the routed layers.
        num_experts, top_k: experts of a layer, and how many of them a prompt can use.
        rows: prompts.
        groups: the tasks that have rows.
        cka: for each layer the similarity of every pair (i, j), i < j, of groups, row by row.
    """

    format: int
    ablation: str | None
    layers: list[str]
    num_experts: int
    top_k: int
    rows: float
    groups: list[GroupRecord]
    cka: list[list[Number]]


def instruction_key(text: str) -> str:
    """Returns what two writings of one instruction share: no `<...>` marks, no blanks, no case.

    Texts decoded from token ids need not bring back every blank.
    """
    return "".join(_SPECIAL.sub("", text).split()).casefold()
