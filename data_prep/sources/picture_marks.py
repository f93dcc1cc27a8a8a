"""Where a sample names its pictures: columns, and the marks in its text.

Every mark becomes `<image>` where it stands; the table in data_prep/README.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.errors import DataError, shown
from data_prep.files import is_missing, read_literal
from data_prep.sources.image_paths import is_picture, picture_of
from data_prep.sources.records import PLACEHOLDER, Turn, check_placeholders

# Columns that hold pictures whatever they look like; the first that is filled counts.
IMAGE_COLUMNS = (
    *("images", "image", "image_path", "image_paths", "image_file", "image_files"),
    *("image_name", "image_filename", "image_url", "image_urls", "image_bytes", "image_base64"),
    *("img", "imgs", "img_path", "img_paths", "img_file", "picture", "pictures", "photo"),
)
# These only where they hold the name of a picture; their names without case, "_", "-" and blanks.
_MAYBE = re.compile(
    r"(?:input|query|question|base64|b64|encoded|raw)?"
    r"(?:image|img|picture|pic|photo|screenshot|frame)s?"
    r"(?:file|path|name|filename|filepath|url|uri|src|list|base64|b64|bytes|data|string|str|blob"
    r"|raw|binary|content|encoded)?s?"
    r"|file|filename|filepath|path|url|jpe?g|png|webp|bytes|base64|b64|data|content"
)
_NUMBERED_COLUMN = re.compile(r"(?:image|img|picture)[_ -]?(\d{1,3})", re.IGNORECASE)
_ENDING = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)"
_PICTURE_NAME = re.compile(rf"[^\n<>|]{{1,400}}{_ENDING}(?:\?\S*)?", re.IGNORECASE)
_NAME = rf"[^\n<>|\"'()]{{1,400}}{_ENDING}"  # inside other text
# <img>path</img>, <image>path</image>, ![words](path), [img: path], <image: path>
_PATH_MARK = re.compile(
    r"<(?P<tag>img|image)>\s*(?P<path>[^<>]{1,1000}?)\s*</(?P=tag)>"
    rf"|!\[[^\]\n]*\]\(\s*(?P<linked>{_NAME})(?:\s+\"[^\"\n]*\")?\s*\)"
    rf"|[<\[](?:img|image)\s*[:=]\s*[\"']?(?P<named>{_NAME})[\"']?\s*[>\]]",
    re.IGNORECASE,
)
_HTML_MARK = re.compile(rf"<ima?ge?\b[^<>]*?\bsrc\s*=\s*[\"']?({_NAME})[^<>]*>", re.IGNORECASE)
# What a tokenizer's tokens for one picture stand between: <img><IMG_CONTEXT>...</img>
_PATCH = r"<\|image_pad\|>|<IMG_CONTEXT>|<image_soft_token>|<im_patch>|<\|image\|>"
_WRAPPED = re.compile(
    r"<\|?(?:img|vision_start|im_start|image_start|img_start|start_of_image|vision_bos)\|?>\s*"
    rf"(?P<inside>(?:(?:{_PATCH}|<image>)\s*)+)"
    r"<\|?(?:/img|vision_end|im_end|image_end|img_end|end_of_image|vision_eos)\|?>",
    re.IGNORECASE,
)
_PLAIN_MARK = re.compile(
    r"<image>\s*</image>|<\s*[|\uff5c]?\s*(?:image|img)(?:[-_ ]?(?:placeholder|pad|token|here"
    r"|soft_token|sentinel|context))?\s*[|\uff5c]?\s*/?\s*>|<(?:start_of_image|im_patch)>"
    r"|\[\[?(?:IMG|IMAGE)\]?\]|<__image__>|<__media__>|\{\{?image\}?\}|&lt;image&gt;",
    re.IGNORECASE,
)
# Where there are none of those; some of them are HTML, too.
_OTHER_MARK = re.compile(r"<\|?(?:picture|pic|photo|media|visual|figure)\|?>", re.IGNORECASE)
_THING = r"(?:image|img|picture|pic|photo|figure|fig)"
_NUMBERED_MARK = re.compile(
    rf"<\|?{_THING}(?: id=[\"']?|[ _#:-])?(\d{{1,3}})[\"']?(?:[_ -]?placeholder)?\|?\s*/?>"
    rf"|\{{{_THING}[ _]?(\d{{1,3}})\}}|\[{_THING}[ _-]?(\d{{1,3}})\]"
    rf"|!\[[^\]\n]*\]\(<?{_THING}[ _-]?(\d{{1,3}})>?\)",
    re.IGNORECASE,
)
_BARE_MARK = re.compile(
    rf"(?<![\w/.-])(?:image|img)_(\d{{1,3}})(?![\w/.-])|\({_THING} (\d{{1,3}})\)", re.IGNORECASE
)
# What looks like a mark and is none that is known; HTML (<img src=...>) is not meant.
_UNKNOWN_MARK = re.compile(
    r"<\|?/?(?:im(?:g|age)s?|pic(?:ture)?|photo|vision)\w{0,20}[ _:#-]?\w{0,20}\|?>|<\|im\w*\|>",
    re.IGNORECASE,
)
_LINE_ENDS = re.compile(rf"({PLACEHOLDER})[ \t]*[\r\n]+")
_EMPTY: tuple[object, ...] = (None, "", [], {})


def read_images(raw: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """Return the pictures that the columns of a sample hold, and the columns that were used.

    Raises:
        DataError: a column of pictures that holds something else, or `image` beside other `images`.
    """
    filled = {k: v for k, v in raw.items() if not is_missing(v) and v not in _EMPTY}
    key = next((key for key in IMAGE_COLUMNS if key in filled), None)
    numbered = _numbered_columns(filled) if key in (None, "image", "img", "picture") else {}
    if numbered:
        # Of image, image_2 and image_3 the one without a number is the first.
        first = {key: 0} if key else {}
        order = sorted(first | numbered, key=(numbered | first).__getitem__)
        return [filled[name] for name in order], set(order)
    if key is None:
        key = next((key for key in filled if _maybe(key) and names_picture(filled[key])), None)
    if key is None:
        return [], set()
    images = _listed(filled[key])
    for image in images:
        if picture_of(image) is None:
            raise DataError("image-type", f"{key}: found {shown(image)}, expected a path as text")
    used = {key}
    if key == "images" and "image" in filled:
        used.add("image")
        if any(image not in images for image in _listed(filled["image"])):
            raise DataError(
                "picture-lost",
                f"'image' holds {shown(filled['image'])}, which is not among 'images': write all "
                "pictures of the sample into 'images'",
            )
    return images, used


def _numbered_columns(filled: Mapping[str, Any]) -> dict[str, int]:
    """Return the columns image_1, image_2, ... with their numbers, if all of them hold pictures."""
    numbers = {
        name: int(match.group(1)) for name in filled if (match := _NUMBERED_COLUMN.fullmatch(name))
    }
    return numbers if all(picture_of(filled[name]) for name in numbers) else {}


def _maybe(key: str) -> bool:
    return bool(_MAYBE.fullmatch(re.sub(r"[_.\s-]", "", key).lower()))


def _listed(value: Any) -> list[Any]:
    """Return the pictures of one column: a list, the text of one, or names parted by ; , or |."""
    value = read_literal(value)
    # A longer text is a picture in base64, which nobody needs to split.
    if isinstance(value, str) and len(value) < 10_000:
        parts = re.split(r"\s*[;,|]\s*", value)
        if len(parts) > 1 and all(map(names_picture, parts)):
            return parts
    return value if isinstance(value, list) and picture_of(value) is None else [value]


def names_picture(value: object) -> bool:
    """Return whether a value is the name of a picture file, or holds a picture or such names."""
    if isinstance(value, list) and value and picture_of(value) is None:
        return all(map(names_picture, value))
    name = picture_of(value)
    return is_picture(name) or (
        isinstance(name, str) and bool(_PICTURE_NAME.fullmatch(name.strip()))
    )


def place_images(turns: list[Turn], inside: list[Any], listed: list[Any]) -> list[Any]:
    """Put `<image>` where the turns mark a picture; return the pictures in that order.

    Without any mark they stand before the first question. Line ends right after a placeholder are
    left out (see `to_host`).

    Args:
        turns: changed in place.
        inside: of parts, in their order; None or a number where a part only marks the place.
        listed: of the columns.

    Raises:
        DataError: marks and pictures do not agree, or a mark that nobody knows.
    """
    if any(map(_is_place, inside)):
        images = _fill(inside, listed)
    else:
        images = _named(turns, inside if inside == listed else inside + listed)
    unmarked = not any(PLACEHOLDER in turn["content"] for turn in turns)
    if unmarked or not images:
        _refuse_unknown(turns)
    if unmarked:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = PLACEHOLDER * len(images) + first["content"]
    for turn in turns:
        turn["content"] = _LINE_ENDS.sub(r"\1", turn["content"])
    check_placeholders(turns, len(images))
    return images


def _fill(inside: list[Any], listed: list[Any]) -> list[Any]:
    """Return the pictures of the parts; those that only mark the place are the listed ones."""
    marks = [image for image in inside if _is_place(image)]
    numbers = [mark for mark in marks if mark is not None]
    if len(marks) != len(listed) or (numbers and sorted(numbers) != list(range(len(listed)))):
        where = f" (their index: {numbers})" if numbers else ""
        raise DataError(
            "placeholders",
            f"{len(marks)} parts of type image without a picture{where}, but {len(listed)} in "
            "'images': write one part for each",
        )
    rest = iter([listed[number] for number in numbers] if numbers else listed)
    return [next(rest) if _is_place(image) else image for image in inside]


def _is_place(image: Any) -> bool:
    """Tell whether a part only marks where a picture stands, by its number or by nothing."""
    return image is None or isinstance(image, int)


def _named(turns: list[Turn], images: list[Any]) -> list[Any]:
    """Replace the marks of the questions; return the pictures in the order of their marks."""
    asked = [turn for turn in turns if turn["role"] != "assistant"]
    text = "\n".join(turn["content"] for turn in asked)
    # Most texts have none of the characters that a mark begins with, and are done here.
    if not any(mark in text for mark in "<[{_(&"):
        return images
    paths = [m["path"] or m["linked"] or m["named"] for m in _PATH_MARK.finditer(text)]
    if not all(path.isdecimal() for path in paths):  # <image>1</image> holds a number
        return _from_paths(asked, paths, images)
    if not images:
        return images  # words such as [image] are no marks where there is no picture
    for turn in asked:
        words = _PATH_MARK.sub(lambda match: f"<image {match['path']}>", turn["content"])
        # Before the plain marks, of which the tokens around and inside a picture are some.
        # One placeholder for the patches of one picture, one for each `<image>`.
        words = _WRAPPED.sub(
            lambda m: PLACEHOLDER * max(1, m["inside"].lower().count(PLACEHOLDER)), words
        )
        words = _HTML_MARK.sub(lambda m: PLACEHOLDER if m.group(1) in images else m.group(), words)
        turn["content"] = _PLAIN_MARK.sub(PLACEHOLDER, words)
    text = "\n".join(turn["content"] for turn in asked)
    if any(PLACEHOLDER in turn["content"] for turn in asked):
        return images
    for mark in (_NUMBERED_MARK, _BARE_MARK):
        numbers = [_number(match) for match in mark.finditer(text)]
        # "image_1" may be a word of the text: it is a mark only where the numbers fit the pictures.
        if numbers and (mark is _NUMBERED_MARK or len(set(numbers)) == len(images)):
            return _by_number(asked, mark, numbers, images)
    for turn in asked:
        turn["content"] = _OTHER_MARK.sub(PLACEHOLDER, turn["content"])
    return images


def _number(match: re.Match[str]) -> int:
    return int(next(filter(None, match.groups())))


def _from_paths(asked: list[Turn], paths: list[str], images: list[Any]) -> list[Any]:
    if images and images != paths:
        raise DataError(
            "placeholders",
            f"the text names {len(paths)} pictures as <img>path</img>, and a column {len(images)} "
            "others: keep one of the two",
        )
    for turn in asked:
        if PLACEHOLDER in _PATH_MARK.sub("", turn["content"]):
            text = f"both {PLACEHOLDER} and <img>path</img>: keep one form"
            raise DataError("placeholders", text)
        turn["content"] = _PATH_MARK.sub(PLACEHOLDER, turn["content"])
    return list(paths)


def _by_number(
    asked: list[Turn], mark: re.Pattern[str], numbers: list[int], images: list[Any]
) -> list[Any]:
    """Put the pictures in the order of their numbered marks; a second mention becomes words."""
    order = list(dict.fromkeys(numbers))
    start = 0 if 0 in order else 1
    if sorted(order) != list(range(start, start + len(images))):
        raise DataError(
            "placeholders",
            f"the text marks the pictures {order}, but there are {len(images)}: write one mark for "
            f"each, numbered from {start}",
        )
    seen: set[int] = set()

    def replace(match: re.Match[str]) -> str:
        number = _number(match)
        if number in seen:
            return f"image {number}"
        seen.add(number)
        return PLACEHOLDER

    for turn in asked:
        turn["content"] = mark.sub(replace, turn["content"])
    return [images[number - start] for number in order]


def _refuse_unknown(turns: list[Turn]) -> None:
    for number, turn in enumerate(turns, start=1):
        mark = _UNKNOWN_MARK.search(turn["content"]) or _NUMBERED_MARK.search(turn["content"])
        if turn["role"] != "assistant" and mark and mark.group().lower() != PLACEHOLDER:
            raise DataError(
                "picture-mark",
                f"turn {number}: {mark.group()!r} marks a picture, but none is read for it: write "
                f"{PLACEHOLDER} and name the picture in 'images'",
            )


def unread_marks(turns: Iterable[Turn]) -> set[str]:
    """Return what looks like a mark of a picture and stays text, beside those that were read."""
    texts = [turn["content"] for turn in turns if turn["role"] != "assistant"]
    marks = {match.group() for text in texts for match in _UNKNOWN_MARK.finditer(text)}
    return marks - {PLACEHOLDER}


def refuse_lost(raw: Mapping[str, Any], turns: Iterable[Turn]) -> None:
    """Raise DataError where a sample without pictures has a field or a mark that names one.

    A sample says with an empty list of `images` that the HTML in its text is no picture.
    """
    for key, value in raw.items():
        if _holds_picture(value):
            raise DataError(
                "picture-lost",
                f"{key!r} names a picture, {shown(value)}, but is no column of pictures: rename it "
                "to 'image', or take it out",
            )
    for turn in turns:
        mark = _HTML_MARK.search(turn["content"]) if turn["role"] != "assistant" else None
        if mark and raw.get("images") != []:
            raise DataError(
                "picture-lost",
                f"{mark.group()!r} in the text is not read as a picture: write {PLACEHOLDER} "
                "and name it in 'images', or write \"images\": [] if it is only text",
            )


def _holds_picture(value: object) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return names_picture(value) or any(map(_holds_picture, inner))
