"""Boxes in answers, "[x1, y1, x2, y2]" in parts of the longer side, thousandths or pixels; and the
host's grounding form, `objects` with the boxes that `<bbox>` in the text stands for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.errors import DataError, shown
from data_prep.files import read_literal

Box = tuple[float, float, float, float]
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ALONE = re.compile(rf"^\s*[\[(]\s*({_NUMBER}(?:[\s,]+{_NUMBER})*)\s*[\])]\s*\.?\s*$")
_SIZE = re.compile(r"\s*\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\]\s*")
_REF, _BOX = "<ref-object>", "<bbox>"
_REF_KEYS = ("caption", "ref", "label", "name")
_LABEL = re.compile(r"<ref>.*?</ref>|<\|object_ref_start\|>.*?<\|object_ref_end\|>", re.DOTALL)
_TAGGED = re.compile(r"<(?:\|box_start\||box|bbox)>(.*?)<(?:\|box_end\||/box|/bbox)>", re.DOTALL)
_TWO = rf"[\[(]\s*{_NUMBER}[\s,]+{_NUMBER}\s*[\])]"
_FOUR = re.compile(rf"[\[(]\s*{_NUMBER}(?:[\s,]+{_NUMBER}){{3}}\s*[\])]|{_TWO}[\s,]*{_TWO}")
_LOOSE = re.compile(rf"(?<![\w.]){_NUMBER}(?!\w)")  # "x1" holds none
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


def read_boxes(text: str) -> list[Box]:
    """Return the boxes that an answer writes, each once; the first structure that is there counts.

    Structures: `<box>(x1,y1),(x2,y2)</box>` and its like (Qwen-VL, InternVL), four numbers in
    brackets (also in JSON) or two pairs, four numbers and no others. What stands in a label
    (<ref>2 dogs</ref>) is no box.
    """
    text = _LABEL.sub(" ", text)
    written: list[str] = []
    for part in _TAGGED.findall(text) or [text]:
        written += _FOUR.findall(part) or [part]
    boxes = [read_box(_LOOSE.findall(part)) for part in written]
    return list(dict.fromkeys(box for box in boxes if box is not None))


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
    """Raise DataError unless `value` holds boxes, corners in order and inside the picture.

    Args:
        name: of the field, for the message.
        value: the box as written.
        size: (width, height) in pixels where known: boxes may be in pixels then.
    """
    boxes = read_boxes(value) if isinstance(value, str) else [read_box(value)]
    if not boxes or boxes == [None]:
        raise DataError("box", f"{name}: found {shown(value)}, expected '[x1, y1, x2, y2]'")
    largest = max(max(box) for box in boxes if box)  # the boxes of an answer have one unit
    for x1, y1, x2, y2 in filter(None, boxes):
        if x1 >= x2 or y1 >= y2:
            raise DataError(
                "box-order", f"{name}: {shown(value)} has no area, expected x1 < x2 and y1 < y2"
            )
        wide, high = _limits(largest, size)
        low = min(x1, y1) < -SLACK * wide
        if low or x2 > wide * (1 + SLACK) or y2 > high * (1 + SLACK):
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
    return _is_number(side) and 0 < side < 1e6


def read_objects(value: Any) -> Any:
    """Return `objects` in today's form of the host; its older ones (text, a list) are converted.

    Raises:
        DataError: it cannot be read.
    """
    value = read_literal(value)
    if value in ("", []):
        return None
    if isinstance(value, dict) and _is_flat(value.get("bbox")):
        return {**value, "ref": _as_list(value.get("ref")), "bbox": [value["bbox"]]}
    if not isinstance(value, list):
        return value
    refs: list[Any] = []
    boxes: list[Any] = []
    images: list[Any] = []
    kinds: set[Any] = set()
    for item in value:
        item = read_literal(item)
        names = item if isinstance(item, dict) else {}
        box = next((names[key] for key in ("bbox", "bbox_2d", "box") if names.get(key)), None)
        if not isinstance(box, list):
            raise DataError("objects", f"objects: found {shown(item)}, expected caption and bbox")
        inner = [box] if _is_flat(box) else box
        refs.append(next((names[key] for key in _REF_KEYS if names.get(key) is not None), ""))
        boxes += inner
        images += [names.get("image") or 0] * len(inner)
        kinds.add(names.get("bbox_type") or "real")
    if len(kinds) > 1:
        raise DataError("objects", f"objects: several bbox_type, {sorted(map(str, kinds))}")
    out: dict[str, Any] = {"ref": refs, "bbox": boxes}
    if kinds != {"real"}:
        out["bbox_type"] = kinds.pop()
    if any(images):
        out["image_id"] = images
    return out


def _is_flat(box: Any) -> bool:
    return isinstance(box, list) and bool(box) and not isinstance(box[0], list | dict)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def check_objects(record: Mapping[str, Any]) -> None:
    """Raise DataError for `objects` because of which the host would delete the sample.

    Or because of which it would train on the mark itself: `<bbox>` without a box for it.
    """
    objects = record.get("objects")
    text = "".join(turn["content"] for turn in record["messages"])
    if objects is None:
        # <bbox>[...]</bbox> is an answer that writes its box out: no mark that stands for one.
        if _REF in text or (_BOX in text and "</bbox>" not in text):
            _check_count(text.count(_REF) + text.count(_BOX), f"{_REF} and {_BOX}", ())
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
    refs, images = objects.get("ref") or [], objects.get("image_id") or []
    if not isinstance(refs, list) or not all(isinstance(ref, str) for ref in refs):
        raise DataError("objects", f"objects: ref is {shown(refs)}, expected a list of texts")
    if objects.get("bbox_type") not in (None, "real", "norm1"):
        kind = shown(objects["bbox_type"])
        raise DataError("objects", f"objects: bbox_type is {kind}, expected real or norm1")
    most = len(record.get("images") or [])
    if not isinstance(images, list) or any(image not in range(most) for image in images):
        raise DataError(
            "objects", f"objects: image_id is {shown(images)}, expected numbers below {most}"
        )
    for mark, values in ((_REF, refs), (_BOX, objects["bbox"])):
        _check_count(text.count(mark), mark, values)


def _check_count(marks: int, mark: str, values: Sequence[Any]) -> None:
    if marks > len(values):
        raise DataError(
            "objects", f"{marks} {mark} in the turns, but objects has {len(values)} for them"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
