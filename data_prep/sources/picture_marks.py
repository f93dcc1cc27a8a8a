"""Where a sample names its pictures: columns, and the marks in its text.

Every mark becomes `<image>` where it stands; the table in data_prep/README.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data_prep.errors import DataError, shown
from data_prep.sources.records import PLACEHOLDER, Turn, check_placeholders

# Columns that hold pictures whatever they look like, the first that is filled counts.
IMAGE_COLUMNS = (
    *("images", "image", "image_path", "image_paths", "image_file", "image_files"),
    *("image_name", "image_filename", "image_url", "image_urls", "image_bytes", "image_base64"),
    *("img", "imgs", "img_path", "img_paths", "img_file", "picture", "pictures", "photo"),
)
# These only where they hold the name of a picture.
_MAYBE = ("file_name", "filename", "file", "path", "filepath", "file_path", "url", "jpg", "png")
_NUMBERED_COLUMN = re.compile(r"(?:image|img|picture)_?(\d{1,3})", re.IGNORECASE)
_PICTURE_NAME = re.compile(
    r"[^\n<>|]{1,400}\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)(?:\?\S*)?", re.IGNORECASE
)
_PATH_MARK = re.compile(r"<img>\s*([^<>]{1,1000}?)\s*</img>", re.IGNORECASE)
_PLAIN_MARK = re.compile(
    r"<\|vision_start\|>\s*<\|image_pad\|>\s*<\|vision_end\|>|<img>\s*<image>\s*</img>"
    r"|<\|image(?:_pad)?\|>|<ImageHere>|<IMG_CONTEXT>|<image>\s*</image>|<image\s*/?>"
    r"|<(?:image[-_]?placeholder|start_of_image|im_patch|img)>|\[(?:IMG|IMAGE)\]"
    r"|<__image__>|<__media__>|\{\{?image\}?\}",
    re.IGNORECASE,
)
_NUMBERED_MARK = re.compile(
    r"<\|?(?:image|img)[ _-]?(\d{1,3})\|?\s*/?>|\{(?:image|img)[ _]?(\d{1,3})\}"
    r"|\[(?:image|img)[ _]?(\d{1,3})\]",
    re.IGNORECASE,
)
_BARE_MARK = re.compile(r"(?<![\w/.-])(?:image|img)_(\d{1,3})(?![\w/.-])", re.IGNORECASE)
# What looks like a mark and is none that is known; HTML (<img src=...>) is not meant.
_UNKNOWN_MARK = re.compile(
    r"<\|?/?(?:im(?:g|age)s?|pic(?:ture)?|photo|vision)\w{0,20}[ _:#-]?\w{0,20}\|?>|<\|im\w*\|>",
    re.IGNORECASE,
)
_LINE_ENDS = re.compile(rf"({PLACEHOLDER})[ \t]*[\r\n]+")


def read_images(raw: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """Return the pictures that the columns of a sample hold, and the columns that were used.

    Raises:
        DataError: a column of pictures that holds something else.
    """
    key = next((key for key in IMAGE_COLUMNS if raw.get(key) not in (None, "", [])), None)
    if key is None:
        numbered = sorted(
            (int(match.group(1)), name)
            for name, value in raw.items()
            if (match := _NUMBERED_COLUMN.fullmatch(name)) and value not in (None, "", [])
        )
        if numbered and all(_is_picture(raw[name]) for _, name in numbered):
            return [raw[name] for _, name in numbered], {name for _, name in numbered}
        key = next((key for key in _MAYBE if key in raw and names_picture(raw[key])), None)
    if key is None:
        return [], set()
    images = raw[key] if isinstance(raw[key], list) else [raw[key]]
    for image in images:
        if not _is_picture(image):
            raise DataError("image-type", f"{key}: found {shown(image)}, expected a path as text")
    return images, {key}


def _is_picture(image: object) -> bool:
    return isinstance(image, str | bytes) or (
        isinstance(image, dict) and bool(image.get("bytes") or image.get("path"))
    )


def names_picture(value: object) -> bool:
    """Return whether a value is the name of a picture file, or holds one."""
    if isinstance(value, str):
        return bool(_PICTURE_NAME.fullmatch(value.strip()))
    if isinstance(value, dict):
        return bool(value.get("bytes")) or names_picture(value.get("path"))
    return isinstance(value, list) and bool(value) and all(map(names_picture, value))


def place_images(turns: list[Turn], inside: list[Any], listed: list[Any]) -> list[Any]:
    """Put `<image>` where the turns mark a picture; return the pictures in that order.

    Without any mark they stand before the first question. Line ends right after a placeholder are
    left out (see `to_host`).

    Args:
        turns: changed in place.
        inside: of parts, in their order; None where a part only marks the place.
        listed: of the columns.

    Raises:
        DataError: marks and pictures do not agree, or a mark that nobody knows.
    """
    if any(image is None for image in inside):
        images = _fill(inside, listed)
    else:
        images = _named(turns, inside + listed)
    if images and not any(PLACEHOLDER in turn["content"] for turn in turns):
        _refuse_unknown(turns)
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = PLACEHOLDER * len(images) + first["content"]
    elif not images:
        _refuse_unknown(turns)
    for turn in turns:
        turn["content"] = _LINE_ENDS.sub(r"\1", turn["content"])
    check_placeholders(turns, len(images))
    return images


def _fill(inside: list[Any], listed: list[Any]) -> list[Any]:
    """Return the pictures of the parts; those that only mark the place are the listed ones."""
    marks = sum(image is None for image in inside)
    if marks != len(listed):
        raise DataError(
            "placeholders",
            f"{marks} parts of type image without a picture, but {len(listed)} in 'images': "
            "write one part for each",
        )
    rest = iter(listed)
    return [next(rest) if image is None else image for image in inside]


def _named(turns: list[Turn], images: list[Any]) -> list[Any]:
    """Replace the marks of the questions; return the pictures in the order of their marks."""
    asked = [turn for turn in turns if turn["role"] != "assistant"]
    text = "\n".join(turn["content"] for turn in asked)
    if "<" not in text and "[" not in text and "{" not in text and "_" not in text:
        return images
    if _PATH_MARK.search(text):
        paths = [match.group(1) for match in _PATH_MARK.finditer(text)]
        if any(path.lower() != PLACEHOLDER for path in paths):
            return _from_paths(asked, paths, images)
    if not images:
        return images  # words such as [image] are no marks where there is no picture
    for turn in asked:
        turn["content"] = _PLAIN_MARK.sub(PLACEHOLDER, turn["content"])
    if any(PLACEHOLDER in turn["content"] for turn in asked):
        return images
    for mark in (_NUMBERED_MARK, _BARE_MARK):
        found = [int(next(filter(None, m.groups()))) for m in mark.finditer(text)]
        if found and (mark is _NUMBERED_MARK or len(set(found)) == len(images)):
            return _by_number(asked, mark, found, images)
    return images


def _from_paths(asked: list[Turn], paths: list[str], images: list[Any]) -> list[Any]:
    if images and images != paths:
        raise DataError(
            "placeholders",
            f"the text names {len(paths)} pictures as <img>path</img>, and a column {len(images)} "
            "others: keep one of the two",
        )
    if any(PLACEHOLDER in turn["content"] for turn in asked):
        raise DataError("placeholders", f"both {PLACEHOLDER} and <img>path</img>: keep one form")
    for turn in asked:
        turn["content"] = _PATH_MARK.sub(PLACEHOLDER, turn["content"])
    return list(paths)


def _by_number(
    asked: list[Turn], mark: re.Pattern[str], found: list[int], images: list[Any]
) -> list[Any]:
    """Put the pictures in the order of their numbered marks; a second mention becomes words."""
    order = list(dict.fromkeys(found))
    start = 0 if 0 in order else 1
    if sorted(order) != list(range(start, start + len(images))):
        raise DataError(
            "placeholders",
            f"the text marks the pictures {order}, but there are {len(images)}: write one mark for "
            f"each, numbered from {start}",
        )
    seen: set[int] = set()

    def replace(match: re.Match[str]) -> str:
        number = int(next(filter(None, match.groups())))
        if number in seen:
            return f"image {number}"
        seen.add(number)
        return PLACEHOLDER

    for turn in asked:
        turn["content"] = mark.sub(replace, turn["content"])
    return [images[number - start] for number in order]


def _refuse_unknown(turns: list[Turn]) -> None:
    for number, turn in enumerate(turns, start=1):
        found = _UNKNOWN_MARK.search(turn["content"]) or _NUMBERED_MARK.search(turn["content"])
        if turn["role"] != "assistant" and found and found.group().lower() != PLACEHOLDER:
            raise DataError(
                "picture-mark",
                f"turn {number}: {found.group()!r} marks a picture, but none is read for it: write "
                f"{PLACEHOLDER} and name the picture in 'images'",
            )


def refuse_lost(raw: Mapping[str, Any]) -> None:
    """Raise DataError where a sample without pictures has a field that names one."""
    for key, value in raw.items():
        if names_picture(value):
            raise DataError(
                "picture-lost",
                f"{key!r} names a picture, {shown(value)}, but is no column of pictures: rename it "
                "to 'image', or take it out",
            )
