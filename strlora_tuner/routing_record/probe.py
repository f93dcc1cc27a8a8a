"""Which task an instruction belongs to: known to the diagnosis of routing, never to the model.

A probe file is JSON: {"tasks": ["VQAv2", ...], "texts": {text: {task: share}}}; an instruction that
several tasks use is shared out among them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

_SPECIAL = re.compile(r"<[^<>\s]*>")
OTHER = "other"


def instruction_key(text: str) -> str:
    """Returns what two writings of one instruction share: no `<...>` marks, no blanks, no case.

    Texts decoded from token ids need not bring back every blank.
    """
    return "".join(_SPECIAL.sub("", text).split()).casefold()


@dataclass(frozen=True)
class Probe:
    """The groups that routing is summed by.

    Attributes:
        groups: the tasks, and at the end :data:`OTHER` for every text that belongs to none.
        shares: for each known instruction key its weight in every group; weights sum to 1.
    """

    groups: list[str] = field(default_factory=lambda: [OTHER])
    shares: dict[str, list[float]] = field(default_factory=dict)

    def weights(self, text: str) -> list[float]:
        """Returns the weight of an instruction in every group."""
        nowhere = [0.0] * (len(self.groups) - 1) + [1.0]
        return self.shares.get(instruction_key(text), nowhere)


def load_probe(path: Path | None) -> Probe:
    """Returns the probe of a file; None gives the one group :data:`OTHER`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no probe file; the message names the file and what is wrong.
    """
    if path is None:
        return Probe()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = [*content["tasks"], OTHER]
        shares = {
            instruction_key(text): [float(by_task.get(group, 0.0)) for group in groups]
            for text, by_task in content["texts"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a probe file ({error!r}); expected "
            '{"tasks": [...], "texts": {text: {task: share}}}'
        ) from error
    return Probe(groups, shares)
