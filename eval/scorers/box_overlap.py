"""Boxes in answers: a parser that reads what models write, and intersection over union."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
BOX_FORMATS = ("unit", "thousand", "pixel")
# A number that is not part of a word ("x1" and "v2.0" are none).
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")


def parse_numbers(text: str) -> list[float]:
    """Return all numbers that stand in `text`, in order."""
    return [float(number) for number in _NUMBER.findall(text)]


def parse_box(text: str) -> Box | None:
    """Return the box (x1, y1, x2, y2) written in `text`, or None if it does not hold exactly one.

    Reads any text around it, brackets of any kind, `(x1,y1),(x2,y2)`, blanks for commas.
    A bracketed group of exactly four numbers wins over other numbers in the text.
    """
    groups = [parse_numbers(part) for part in re.findall(r"\[[^\[\]]*\]|\([^()]*\)", text)]
    boxes = [group for group in groups if len(group) == 4]
    numbers = boxes[0] if len(boxes) == 1 else parse_numbers(text)
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def to_pixels(box: Sequence[float], size: Sequence[float], box_format: str) -> Box:
    """Return `box` in pixels of an image of `size` (width, height).

    Args:
        box: (x1, y1, x2, y2).
        size: (width, height) in pixels.
        box_format: `unit` (parts of the LONGER side, as StrCVIT writes them), `thousand`
            (0 to 1000 along each side) or `pixel`.

    Raises:
        ValueError: an unknown format.
    """
    width, height = size
    if box_format == "unit":
        scale_x = scale_y = float(max(width, height))
    elif box_format == "thousand":
        scale_x, scale_y = width / 1000, height / 1000
    elif box_format == "pixel":
        scale_x = scale_y = 1.0
    else:
        raise ValueError(f"box_format: found {box_format!r}, expected one of {BOX_FORMATS}")
    x1, y1, x2, y2 = box
    return x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection over union of two boxes; 0 for boxes without area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
