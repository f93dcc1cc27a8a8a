"""Which tasks each chunk of a stream holds, and the streams that can be made.

`mini` and `full` follow the published StrCVIT mixture (``data_prep/strcvit_mixture.json``). It is
counted by instruction template: AD, GQA, OCRVQA, RS and VQAv2 share one ("short"), and how they
share it is not known. Here they drift: each has a whole weight that walks at random from chunk to
chunk, so that a task comes, goes and returns. `tiny` has a mixture of its own over six tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal

Share = dict[str, float]
Wording = Literal["own", "vague", "several"]

PUBLISHED = Path(__file__).parents[1] / "strcvit_mixture.json"
ALL = (
    "AD", "ChartQA", "Fin", "GQA", "Grounding", "ImageNet", "OCRVQA", "Places365", "RS", "TextCaps",
    "VQAv2",
)  # fmt: skip
SHORT = ("AD", "GQA", "OCRVQA", "RS", "VQAv2")  # they share one published instruction template
MOST = 6  # a task's weight inside SHORT walks between 0 and this, by at most STRIDE a chunk
STRIDE = 3
LEAST = 0.12  # of the short group, for each of its five tasks over the whole stream

TINY: tuple[Share, ...] = (
    {"VQAv2": 150, "Places365": 150},
    {"OCRVQA": 150, "VQAv2": 80, "Places365": 70},
    {"ImageNet": 150, "Places365": 90, "Fin": 60},
    {"Grounding": 160, "OCRVQA": 80, "Fin": 60},
    {"Fin": 120, "ImageNet": 100, "VQAv2": 80},
    {"Grounding": 140, "OCRVQA": 100, "ImageNet": 60},
    {"VQAv2": 100, "Fin": 100, "Grounding": 100},
    {"Grounding": 90, "OCRVQA": 70, "ImageNet": 70, "Fin": 70},
)
SMOKE: tuple[Share, ...] = (
    {"VQAv2": 1, "Places365": 1, "AD": 1, "TextCaps": 1},
    {"Places365": 1, "OCRVQA": 1, "Fin": 1, "ChartQA": 1, "GQA": 1},
    {"Grounding": 1, "ImageNet": 1, "VQAv2": 1, "RS": 1},
)


def published(seed: int) -> tuple[Share, ...]:
    """Return the 25 published chunk mixtures, the short group drifting by `seed`.

    Walks that give a task less than LEAST of the group are drawn again.
    """
    for attempt in count():
        mixture = _drift(Random(f"{seed}/drift/{attempt}"))
        totals = {name: sum(share.get(name, 0) for share in mixture) for name in SHORT}
        if min(totals.values()) >= LEAST * sum(totals.values()):
            return mixture
    raise AssertionError("count() does not end")


def _drift(rng: Random) -> tuple[Share, ...]:
    """Return the chunk mixtures for one walk of the short group's weights."""
    weights = {name: rng.randint(0, MOST) for name in SHORT}
    mixture = []
    for chunk in strcvit_mixture():
        weights = _walk(weights, rng)
        share: Share = {name: chunk[name] for name in ALL if chunk.get(name)}
        if chunk["short"]:
            share |= apportion({name: w for name, w in weights.items() if w}, chunk["short"])
        mixture.append({name: share[name] for name in ALL if share.get(name)})
    return tuple(mixture)


def _walk(weights: dict[str, int], rng: Random) -> dict[str, int]:
    """Return the weights one step on; never all of them zero."""
    while True:
        moved = {n: max(0, min(MOST, w + rng.randint(-STRIDE, STRIDE))) for n, w in weights.items()}
        if any(moved.values()):
            return moved


@cache
def strcvit_mixture() -> list[dict[str, int]]:
    """Return samples by instruction group for each of the 25 published chunks of StrCVIT."""
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return [{group: chunk[group] for group in content["groups"]} for chunk in content["chunks"]]


def pure(seed: int) -> tuple[Share, ...]:
    """Return one chunk a task, in alphabetical order: the classical setting."""
    return tuple({name: 1} for name in ALL)


def backwards(seed: int) -> tuple[Share, ...]:
    """Return the published mixtures, the last chunk first."""
    return published(seed)[::-1]


def long(seed: int) -> tuple[Share, ...]:
    """Return 100 mixtures: the published 25 four times, each time with another drift."""
    return tuple(share for lap in range(4) for share in published(4 * seed + lap))


@dataclass(frozen=True)
class Size:
    """How a stream is made.

    Attributes:
        samples: of a chunk.
        test: test samples of a task.
        validation: validation samples of a task, 0 for none.
        mixture: the shares of every chunk; depends on the stream's seed.
        wording: of the instructions: `own`; `vague`, the same for every task (and one fixed kind
            of question); `several` for each.
    """

    samples: int
    test: int
    validation: int
    mixture: Callable[[int], tuple[Share, ...]]
    wording: Wording = "own"

    def tasks(self, seed: int) -> list[str]:
        """Return the tasks of the stream in order of first appearance."""
        return list(dict.fromkeys(name for share in self.mixture(seed) for name in share))

    def counts(self, seed: int) -> list[dict[str, int]]:
        """Return samples by task for every chunk; each chunk sums to `samples`."""
        parts = (apportion(share, self.samples) for share in self.mixture(seed))
        return [{name: count for name, count in part.items() if count} for part in parts]


SIZES = {
    "smoke": Size(64, test=6, validation=4, mixture=lambda seed: SMOKE),
    "tiny": Size(300, test=80, validation=0, mixture=lambda seed: TINY),
    "tiny-tuning": Size(300, test=80, validation=40, mixture=lambda seed: TINY),
    "mini": Size(400, test=100, validation=50, mixture=published),
    "full": Size(2000, test=200, validation=100, mixture=published),
    "task-incremental": Size(400, test=100, validation=50, mixture=pure),
    "ambiguous": Size(400, test=100, validation=50, mixture=published, wording="vague"),
    # For docs/study.md: the training samples of `tiny` and `mini`, larger test sets.
    "tiny-study": Size(300, test=200, validation=0, mixture=lambda seed: TINY),
    "tiny-reversed": Size(300, test=200, validation=0, mixture=lambda seed: TINY[::-1]),
    "tiny-paraphrased": Size(300, 200, 0, mixture=lambda seed: TINY, wording="several"),
    "mini-study": Size(400, test=200, validation=0, mixture=published),
    "reversed": Size(400, test=200, validation=0, mixture=backwards),
    "paraphrased": Size(400, test=200, validation=0, mixture=published, wording="several"),
    "long": Size(400, test=200, validation=0, mixture=long),
}


def apportion(share: Share, total: int) -> dict[str, int]:
    """Return whole numbers in the given shares that sum to `total` (largest remainder first)."""
    weight = sum(share.values())
    exact = {name: total * part / weight for name, part in share.items()}
    counts = {name: int(value) for name, value in exact.items()}
    # Ties by name: the counts must not depend on the order of the keys.
    by_rest = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
