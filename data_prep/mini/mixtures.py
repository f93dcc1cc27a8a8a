"""Which tasks each chunk of a stream holds, and the sizes a stream can have.

Like the published StrCVIT mixture: a chunk holds two to four tasks, tasks come back irregularly,
one vanishes early (Places365, after chunk 3: what is forgotten shows on it) and one appears late
(Grounding, in chunk 4).
"""

from __future__ import annotations

from dataclasses import dataclass

Share = dict[str, float]

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
    {"VQAv2": 1, "Places365": 1},
    {"Places365": 1, "OCRVQA": 1, "Fin": 1},
    {"Grounding": 1, "ImageNet": 1, "VQAv2": 1},
)


@dataclass(frozen=True)
class Size:
    """How big a stream is: samples in a chunk, test samples a task, shares of each chunk."""

    samples: int
    test: int
    mixture: tuple[Share, ...]

    @property
    def tasks(self) -> list[str]:
        """Return the tasks of the stream in order of first appearance."""
        return list(dict.fromkeys(name for share in self.mixture for name in share))

    def counts(self) -> list[dict[str, int]]:
        """Return samples by task for every chunk; each chunk sums to `samples`."""
        return [apportion(share, self.samples) for share in self.mixture]


SIZES = {
    "smoke": Size(samples=24, test=6, mixture=SMOKE),
    "tiny": Size(samples=300, test=80, mixture=TINY),
}


def apportion(share: Share, total: int) -> dict[str, int]:
    """Return whole numbers in the given shares that sum to `total` (largest remainder first)."""
    weight = sum(share.values())
    exact = {name: total * part / weight for name, part in share.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
