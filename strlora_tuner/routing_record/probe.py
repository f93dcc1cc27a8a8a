"""Reads which task an instruction belongs to; format.py describes the file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from strlora_tuner.routing_record.format import OTHER, ProbeContent, instruction_key


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
        content: ProbeContent = json.loads(path.read_text(encoding="utf-8"))
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
