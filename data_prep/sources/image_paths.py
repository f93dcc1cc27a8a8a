"""Where the images of samples go: paths under one link, pictures inside a sample to files."""

from __future__ import annotations

import ast
import base64
import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from data_prep.errors import DataError, shown
from data_prep.files import read_literal, write_blocks
from data_prep.images import check_name, on_disk, unusual, what_begins

LINK = "images"  # the stream's link to the folder with the images
EMBEDDED = "embedded"  # the stream's folder for pictures that came inside samples
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)
# How base64 of those begins; a path of that kind would have to be a long name without an ending.
_BASE64 = re.compile(
    r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK|AAAA)[\w+/-]{40,}=*", re.ASCII
)
_ANY_BASE64 = re.compile(r"[\w+/-]{100,}=*", re.ASCII)
_HEX = re.compile(
    r"(?:0x|\\x)?(?:89504e47|ffd8ff|47494638|52494646)(?:[0-9a-f]{2}){20,}", re.IGNORECASE
)
# What may stand before base64 text: "data:image/png;base64,", parts of it, or nothing.
_HEAD = re.compile(r"(?:data:[^,]{0,200},|(?:[\w.+-]+/[\w.+-]+;)?base64[,:])", re.IGNORECASE)
_URL_ALPHABET = str.maketrans("-_", "+/")
_LINE_ENDS = re.compile(r"\s|\\[rn]")
_FILE = re.compile(r"file:(?://([^/\\]*)(?=[/\\]))?", re.IGNORECASE)
_DRIVE = re.compile(r"/?[A-Za-z]:[\\/]")
_KEYS = (
    *("bytes", "base64", "b64", "b64_json", "image_base64", "data", "url", "image_url"),
    *("path", "image", "src", "uri", "file_name", "filename", "source"),
)


def picture_of(value: Any) -> Any:
    """Return the bytes or the text (a path, base64) that stand for a picture, None without one.

    Read are both by themselves, lists of byte values, and objects of them, as `datasets`, OpenAI,
    Anthropic and Node.js ({"type": "Buffer", "data": [...]}) write them.
    """
    value = read_literal(value)
    if isinstance(value, dict):
        return next((picture_of(value[key]) for key in _KEYS if value.get(key)), None)
    if isinstance(value, list) and len(value) > 8 and all(type(v) is int for v in value):
        return bytes(value) if min(value) >= 0 and max(value) < 256 else None
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return value if isinstance(value, str | bytes) and value else None


def picture_inside(value: Any) -> bytes | None:
    """Return the picture file that a value holds, None where it holds a path or anything else.

    It may be bytes, base64 (also of the URL alphabet, without padding, with line ends, quotes or a
    head), a `data:` address, hexadecimal digits, or bytes as Python prints them.

    Raises:
        DataError: it says that it is base64, and is not.
    """
    value = picture_of(value)
    if isinstance(value, bytes):
        # Base64 may come as bytes (a Parquet column), and begins with one of these letters. Most
        # pictures do not: they are not decoded as text.
        text = value[:4096].decode("ascii", "ignore").strip() if value[:1] in b"/ARUQSTid" else ""
        is_base64 = _HEAD.match(text) or _BASE64.match(_LINE_ENDS.sub("", text))
        return picture_inside(value.decode("ascii")) if is_base64 else value
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text[:2] in ("b'", 'b"'):
        with suppress(ValueError, SyntaxError):
            return picture_inside(ast.literal_eval(text))
        return None
    text = text.strip("\"'")
    head = _HEAD.match(text)
    body = text[head.end() :] if head else text
    if head and "base64" not in head.group().lower():
        # RFC 2397: a data address that does not say base64 is percent-encoded.
        return unquote_to_bytes(body)
    if not head and not re.match(r"[\w+/\\-]{30}", text, re.ASCII):
        return None
    body = _LINE_ENDS.sub("", unquote(body) if "%" in body else body)
    if _HEX.fullmatch(body):
        return bytes.fromhex(re.sub(r"^(?:0x|\\x)", "", body))
    if head or _BASE64.fullmatch(body):
        return _from_base64(body)
    # A long text of the letters of base64 is a picture if it holds a known kind of file.
    if _ANY_BASE64.fullmatch(body):
        with suppress(DataError):
            data = _from_base64(body)
            return None if what_begins(data).endswith(repr(data[:12])) else data
    return None


@dataclass(frozen=True)
class ImageResolver:
    """Turns an image as a sample writes it into a path relative to the stream folder.

    Attributes:
        root: folder with the images; the stream gets a link to it.
        prefixes: folders under `root` that a relative path may start from, tried in turn.
        marker: what published paths write for the root ("<STRCVIT_IMAGE_ROOT>").
        embed: folder into which pictures inside samples are written; None refuses them.
        must_exist: refuse images that are not there.
        link: name of the link to `root`.
    """

    root: Path
    prefixes: Sequence[str] = ("",)
    marker: str | None = None
    embed: Path | None = None
    must_exist: bool = False
    link: str = LINK

    def resolve(self, image: Any) -> str:
        """Return the path of `image`, relative to the stream folder. Raises DataError."""
        data = picture_inside(image)
        if data is not None:
            return self._write(data)
        name = picture_of(image)
        if not isinstance(name, str):
            raise DataError("image-type", f"images: found {shown(image)}, expected a path as text")
        return f"{self.link}/{self._under_root(name)}"

    def is_there(self, name: str) -> bool:
        """Return whether the file of a path that `resolve` returned is there."""
        top, _, rest = name.partition("/")
        return top != self.link or (self.root / rest).is_file()

    def _under_root(self, image: str) -> str:
        image = self._local(image)
        marked = self.marker is not None and image.startswith(self.marker)
        name = image[len(self.marker or "") :].lstrip("/") if marked else image
        if name.startswith("<"):
            expected = f"{self.marker}/..." if self.marker else "a path"
            raise DataError("image-name", f"image {image!r}: expected {expected}")
        if os.path.isabs(name):
            name = self._inside(name)
        check_name(name.replace("\\", "/").lstrip("/") or name)
        starts = ("",) if marked else self.prefixes
        candidates = [os.path.normpath(os.path.join(start, name)) for start in starts]
        if not self.must_exist and len(candidates) == 1 and not unusual(name):
            return candidates[0]  # looking for the file would cost more than all the rest
        for path in candidates:
            if spelled := on_disk(self.root, path):
                return os.path.normpath(spelled)
        if _DRIVE.match(name) or name.startswith("\\\\"):
            raise DataError(
                "image-absolute",
                f"image {image!r} is a path of Windows with its drive or server: write it relative "
                f"to the folder of the images, {self.root}",
            )
        if not self.must_exist:
            return candidates[0]
        where = " or ".join(str(self.root / path) for path in candidates)
        raise DataError("image-missing", f"image {image!r} does not exist: expected {where}")

    def _local(self, image: str) -> str:
        """Return the path that a `file:` address means; any other text as it is."""
        match = _FILE.match(image)
        if match is None:
            return image
        host, path = match.group(1) or "", unquote(image[match.end() :])
        if _DRIVE.match(host + path):
            return (host + path).lstrip("/")
        if on_disk(self.root, host + path) and host:  # file://pics/a.png, meant as pics/a.png
            return host + path
        if host.lower() not in ("", "localhost"):
            raise DataError(
                "image-url",
                f"image {image!r} lies on the machine {host!r}: copy it here and give its path",
            )
        return path

    def _inside(self, name: str) -> str:
        if not os.path.lexists(name) and on_disk(self.root, name.lstrip("/")):
            return name.lstrip("/")  # "/pics/a.png", meant from the folder of the images
        path = os.path.relpath(os.path.normpath(name), self.root)
        if path.startswith(".."):
            # It may lead to the same folder by way of a link.
            real, above = os.path.realpath(self.root), Path(os.path.normpath(name)).parents
            same = next((folder for folder in above if os.path.realpath(folder) == real), None)
            if same is not None:
                return os.path.relpath(name, same)
            raise DataError(
                "image-absolute",
                f"image {name!r} lies outside {self.root}: give --images a folder that holds all",
            )
        return path

    def _write(self, data: bytes) -> str:
        if self.embed is None:
            raise DataError("image-data", "the image is written into the sample; expected a path")
        ending = _ending(data)
        if ending is None:
            raise DataError("image-data", f"the image inside the sample is {what_begins(data)}")
        digest = hashlib.sha256(data).hexdigest()
        # By content: a picture of many samples is one file, and workers that write it at the same
        # time replace it with the same bytes.
        name = f"{digest[:2]}/{digest}{ending}"
        if not (self.embed / name).exists():
            write_blocks(self.embed / name, [data])
        return f"{EMBEDDED}/{name}"


def is_picture(value: Any) -> bool:
    """Return whether a value holds a picture file (see `picture_inside`)."""
    with suppress(DataError):
        data = picture_inside(value)
        return data is not None and _ending(data) is not None
    return False


def _ending(data: bytes) -> str | None:
    """Return a picture file's ending; None for what Pillow, and so the host, cannot read."""
    # Before Pillow, which would take longer and call the endings .jpeg and .tiff.
    for magic, end in _MAGIC:
        if data.startswith(magic):
            return end
    from PIL import Image

    with suppress(OSError, ValueError), Image.open(BytesIO(data)) as image:
        return f".{(image.format or 'img').lower()}"
    return None


def _from_base64(text: str) -> bytes:
    try:
        plain = text.rstrip("=").translate(_URL_ALPHABET)
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError as error:
        raise DataError(
            "image-data", f"the image inside the sample is not base64: {error}"
        ) from error
