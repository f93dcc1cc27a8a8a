"""Our scorers against other people's code, where it is installed; none of it is required.

pip install pycocoevalcap shapely rapidfuzz
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from eval.scorers.box_overlap import iou
from eval.scorers.cider import cider_d

SENTENCE = "a red dog and two cats on the old wooden table near big blue cars"


def _captions(draw: random.Random, count: int) -> tuple[list[str], list[list[str]]]:
    def caption() -> str:
        return " ".join(draw.choices(SENTENCE.split(), k=draw.randint(0, 12)))

    answers = [caption() for _ in range(count)]
    references = [[caption() or "a dog" for _ in range(draw.randint(1, 5))] for _ in answers]
    # Some answers are right, or nearly: a random one shares few long n-grams.
    for i in range(0, count, 3):
        answers[i] = references[i][0] + draw.choice(["", " dog", " dog dog dog"])
    return answers, references


@pytest.mark.parametrize("seed", range(5))
def test_cider_d_is_that_of_pycocoevalcap(seed: int) -> None:
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    answers, references = _captions(random.Random(seed), 40)
    _, expected = cider.Cider().compute_score(
        dict(enumerate(references)), {i: [answer] for i, answer in enumerate(answers)}
    )
    found = cider_d([a.split() for a in answers], [[r.split() for r in rs] for rs in references])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert max(found) > 1


def test_iou_is_that_of_shapely() -> None:
    geometry = pytest.importorskip("shapely.geometry")
    draw = random.Random(0)
    for _ in range(300):
        pair = []
        for _ in range(2):
            x1, y1 = draw.uniform(0, 5), draw.uniform(0, 5)
            pair.append((x1, y1, x1 + draw.uniform(0.1, 5), y1 + draw.uniform(0.1, 5)))
        first, second = (geometry.box(*box) for box in pair)
        expected = first.intersection(second).area / first.union(second).area
        assert iou(*pair) == pytest.approx(expected)


def test_iou_is_that_of_torchvision() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=draw, dtype=torch.float64)
    boxes = torch.cat([corner, corner + torch.rand(50, 2, generator=draw).double()], dim=1)
    expected = ops.box_iou(boxes, boxes)
    found = [[iou(a, b) for b in boxes.tolist()] for a in boxes.tolist()]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)
