"""The host's grounding form: `objects` with the boxes that `<bbox>` in the text stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.errors import DataError, shown

_REF, _BOX = "<ref-object>", "<bbox>"


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
