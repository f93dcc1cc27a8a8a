"""Boxes in answers, "[x1, y1, x2, y2]" in parts of the longer side, thousandths or pixels; and the
host's grounding form, `objects` with the boxes that `<bbox>` in the text stands for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.errors import DataError, shown

Box = tuple[float, float, float, float]
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ALONE = re.compile(rf"^\s*[\[(]\s*({_NUMBER}(?:[\s,]+{_NUMBER})*)\s*[\])]\s*\.?\s*$")
_SIZE = re.compile(r"\s*\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\]\s*")
_REF, _BOX = "<ref-object>", "<bbox>"
SLACK = 0.005  # published boxes are rounded to two or three digits


def read_box(value: Any) -> Box | None:
    """Return the box that `value` is ("[0.1, 0.2, 0.3, 0.4]" or four numbers), else None."""
    if isinstance(value, str):
        match = _ALONE.match(value)
        value = re.findall(_NUMBER, match.group(1)) if match else None
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    try:
        x1, y1, x2, y2 = (float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None


def is_box_question(question: str) -> bool:
    """Return whether a question asks for a box."""
    text = question.lower()
    return "bounding box" in text or "bbox" in text


def read_size(value: Any) -> tuple[float, float] | None:
    """Return (width, height) if `value` is one: [640, 480] or the same as text, else None."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        value = [int(side) for side in match.groups()] if match else None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_side, value)):
        return None
    return value[0], value[1]


def check_box(name: str, value: Any, size: Sequence[float] | None = None) -> None:
    """Raise DataError unless `value` is a box with its corners in order and inside the picture.

    Args:
        name: of the field, for the message.
        value: the box as written.
        size: (width, height) in pixels where known: boxes may be in pixels then.
    """
    box = read_box(value)
    if box is None:
        raise DataError("box", f"{name}: found {shown(value)}, expected '[x1, y1, x2, y2]'")
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        raise DataError(
            "box-order", f"{name}: {shown(value)} has no area, expected x1 < x2 and y1 < y2"
        )
    wide, high = _limits(max(box), size)
    if min(box) < -SLACK * wide or x2 > wide * (1 + SLACK) or y2 > high * (1 + SLACK):
        what = f"{wide:g} x {high:g}"
        raise DataError("box-range", f"{name}: {shown(value)} leaves the picture of {what}")


def _limits(largest: float, size: Sequence[float] | None) -> tuple[float, float]:
    """Return the largest x and y that a box may have, by the unit that its numbers speak for."""
    if largest <= 2:  # parts of the longer side; up to 2 it cannot be meant as pixels
        if size is None:
            return 1.0, 1.0
        longer = max(size)
        return size[0] / longer, size[1] / longer
    if size is None:
        return 1000.0, 1000.0
    return max(1000.0, size[0]), max(1000.0, size[1])


def check_gold_box(record: Mapping[str, Any]) -> None:
    """Raise DataError unless `answer_bbox` and `size` of a grounding test sample are usable."""
    size = record.get("size")
    sides = read_size(size) if isinstance(size, list | tuple) else None
    if sides is None:
        raise DataError(
            "box-size", f"size: found {shown(size)}, expected [width, height] in pixels"
        )
    box = read_box(record.get("answer_bbox"))
    if box is not None and max(box) > 2:
        raise DataError(
            "box-range",
            f"answer_bbox: {shown(record['answer_bbox'])} is not in parts of the longer side (0 to "
            "1): divide it by the longer side of the picture",
        )
    check_box("answer_bbox", record.get("answer_bbox"), sides)


def _is_side(side: Any) -> bool:
    return isinstance(side, int | float) and not isinstance(side, bool) and 0 < side < 1e6


def read_objects(value: Any) -> Any:
    """Return `objects` in today's form of the host; its older ones (text, a list) are converted.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(
                "objects", f"objects: found {shown(value)}, expected {{'ref', 'bbox'}}"
            ) from error
    if not isinstance(value, list):
        return value
    refs: list[Any] = []
    boxes: list[Any] = []
    images: list[Any] = []
    kinds: set[Any] = set()
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("bbox"), list):
            raise DataError("objects", f"objects: found {shown(item)}, expected caption and bbox")
        inner = item["bbox"] if item["bbox"] and isinstance(item["bbox"][0], list) else None
        refs.append(item.get("caption", item.get("ref", "")))
        boxes += inner if inner is not None else [item["bbox"]]
        images += [item.get("image", 0)] * (len(inner) if inner is not None else 1)
        kinds.add(item.get("bbox_type", "real"))
    if len(kinds) > 1:
        raise DataError("objects", f"objects: several bbox_type, {sorted(map(str, kinds))}")
    out: dict[str, Any] = {"ref": refs, "bbox": boxes}
    if kinds and kinds != {"real"}:
        out["bbox_type"] = kinds.pop()
    if any(images):
        out["image_id"] = images
    return out


def check_objects(record: Mapping[str, Any]) -> None:
    """Raise DataError for `objects` because of which the host would delete the sample."""
    objects = record.get("objects")
    if objects is None:
        return
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox"), list):
        raise DataError(
            "objects",
            f"objects: found {shown(objects)}, expected {{'ref': [...], 'bbox': [[...]]}}; the "
            "host deletes such a sample",
        )
    for box in objects["bbox"]:
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_number, box)):
            raise DataError(
                "objects", f"objects: the box {shown(box)}, expected 2 or 4 numbers in a list"
            )
    text = "".join(turn["content"] for turn in record["messages"])
    for mark, values in ((_REF, objects.get("ref") or []), (_BOX, objects["bbox"])):
        _check_count(text.count(mark), mark, values)


def _check_count(marks: int, mark: str, values: Sequence[Any]) -> None:
    if marks > len(values):
        raise DataError(
            "objects", f"{marks} {mark} in the turns, but objects has {len(values)} for them"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
