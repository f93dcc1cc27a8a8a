"""Boxes in answers: a parser that reads what models write, and intersection over union."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from eval.scorers.text import fold

Box = tuple[float, float, float, float]
BOX_FORMATS = ("unit", "thousand", "pixel")
# A number that is not part of a word ("x1" and "v2.0" are none).
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
_RUN = re.compile(rf"{_NUMBER.pattern}(?:(?:\s*[,;]\s*|\s+){_NUMBER.pattern})*")
_LABEL = re.compile(r"<ref>.*?</ref>|<\|object_ref_start\|>.*?<\|object_ref_end\|>", re.DOTALL)
_TAGGED = re.compile(
    r"(?:<(?:box|bbox|bounding_box)>|<\|box_start\|>)(.*?)(?:</(?:box|bbox|bounding_box)>|<\|box_end\|>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_CORNERS = re.compile(
    r"[\"']?\b(x_?1|x_?min|left|y_?1|y_?min|top|x_?2|x_?max|right|y_?2|y_?max|bottom)\b[\"']?\s*[:=]\s*"
    r"([-+]?(?:\d+\.?\d*|\.\d+))",
    re.IGNORECASE,
)
_CORNER_OF = {"x1": 0, "xmin": 0, "left": 0, "y1": 1, "ymin": 1, "top": 1,
              "x2": 2, "xmax": 2, "right": 2, "y2": 3, "ymax": 3, "bottom": 3}  # fmt: skip
_GROUPS = (
    re.compile(r"\[[^\[\]]*\]"),
    re.compile(r"\([^()]*\)"),
    re.compile(r"<[^<>]*>|\{[^{}]*\}"),
)
_PAIR = re.compile(r"([(\[<][^()\[\]<>]*[)\]>])\s*(?:,|-|to|and)?\s*([(\[<][^()\[\]<>]*[)\]>])")


def parse_numbers(text: str) -> list[float]:
    """Return all numbers that stand in `text`, in order."""
    return [float(number) for number in _NUMBER.findall(text)]


def parse_box(text: str) -> Box | None:
    """Return the box (x1, y1, x2, y2) written in `text`, or None if it does not hold exactly one.

    Read by structure first: between box tags; corners by name ("x1": 3, also left and top); four
    numbers in brackets of any kind, JSON included; two pairs "(x1,y1),(x2,y2)"; four numbers and no
    others at all. The first structure that is there decides. The same box twice is one box; two
    boxes are none, and so are numbers in the label <ref>2 dogs</ref> beside it.
    """
    text = _LABEL.sub(" ", fold(text))
    for structure in (_tagged_boxes, _named_corners, _grouped_boxes, _paired_boxes, _loose_box):
        if boxes := set(structure(text)):
            return boxes.pop() if len(boxes) == 1 else None
    return None


def _box(numbers: Sequence[float]) -> list[Box]:
    # "1e999" is read as infinity.
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        return []
    return [(numbers[0], numbers[1], numbers[2], numbers[3])]


def _loose_box(text: str) -> list[Box]:
    """Return the runs of four numbers ("2 dogs: 1, 2, 3, 4"), else the four numbers of the text."""
    runs = [box for run in _RUN.findall(text) for box in _box(parse_numbers(run))]
    return runs or _box(parse_numbers(text))


def _tagged_boxes(text: str) -> list[Box]:
    return [
        box
        for inside in _TAGGED.findall(text)
        for box in _grouped_boxes(inside) or _paired_boxes(inside) or _loose_box(inside)
    ]


def _named_corners(text: str) -> list[Box]:
    found = [(_CORNER_OF[name.lower().replace("_", "")], float(value))
             for name, value in _CORNERS.findall(text)]  # fmt: skip
    fours = [dict(found[at : at + 4]) for at in range(0, len(found), 4)]
    return [box for four in fours if len(four) == 4 for box in _box([four[i] for i in range(4)])]


def _grouped_boxes(text: str) -> list[Box]:
    """Return the boxes in square brackets, else in round ones, else in others."""
    kinds = ([box for group in kind.findall(text) for box in _box(parse_numbers(group))]
             for kind in _GROUPS)  # fmt: skip
    return next(filter(None, kinds), [])


def _paired_boxes(text: str) -> list[Box]:
    pairs = [[parse_numbers(corner) for corner in pair] for pair in _PAIR.findall(text)]
    return [box for a, b in pairs if len(a) == len(b) == 2 for box in _box(a + b)]


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
