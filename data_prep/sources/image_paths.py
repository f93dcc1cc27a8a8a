"""Where the images of samples go: paths under one link, pictures inside a sample to files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from data_prep.errors import DataError, shown
from data_prep.files import write_blocks
from data_prep.images import check_name, other_spelling, what_begins

LINK = "images"  # the stream's link to the folder with the images
EMBEDDED = "embedded"  # the stream's folder for pictures that came inside samples
_DATA_URI = re.compile(r"^data:image/[\w.+-]+;base64,", re.IGNORECASE)
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)
# How base64 of those begins; a path of that kind would have to be a long name without an ending.
_BASE64 = re.compile(
    r"\s*(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK|AAAA)[A-Za-z0-9+/\s]{40,}=*\s*"
)


@dataclass(frozen=True)
class ImageResolver:
    """Turns an image as a sample writes it into a path relative to the stream folder.

    Attributes:
        root: folder with the images; the stream gets a link to it.
        prefixes: folders under `root` that a relative path may start from, tried in turn.
        marker: what published paths write for the root ("<STRCVIT_IMAGE_ROOT>").
        embed: folder into which pictures inside samples are written; None refuses them.
        must_exist: refuse images that are not there.
        link: name of that link.
    """

    root: Path
    prefixes: Sequence[str] = ("",)
    marker: str | None = None
    embed: Path | None = None
    must_exist: bool = False
    link: str = LINK

    def resolve(self, image: Any) -> str:
        """Return the path of `image`, relative to the stream folder. Raises DataError."""
        if isinstance(image, dict):
            if image.get("bytes"):
                return self._write(_as_bytes(image["bytes"]))
            image = image.get("path")
        if not isinstance(image, str | bytes):
            raise DataError("image-type", f"images: found {shown(image)}, expected a path as text")
        if isinstance(image, bytes):
            return self._write(image)
        if _BASE64.fullmatch(image):
            return self._write(_from_base64(image))
        if match := _DATA_URI.match(image):
            return self._write(_from_base64(image[match.end() :]))
        return f"{self.link}/{self._under_root(image)}"

    def is_there(self, name: str) -> bool:
        """Return whether the file of a path that `resolve` returned is there."""
        top, _, rest = name.partition("/")
        return top != self.link or (self.root / rest).is_file()

    def _under_root(self, image: str) -> str:
        if image[:8].lower() == "file:///":
            image = unquote(image[7:])
        marked = self.marker is not None and image.startswith(self.marker)
        name = image[len(self.marker or "") :].lstrip("/") if marked else image
        if name.startswith("<"):
            expected = f"{self.marker}/..." if self.marker else "a path"
            raise DataError("image-name", f"image {image!r}: expected {expected}")
        if os.path.isabs(name):
            name = self._inside(name)
        check_name(name)
        starts = ("",) if marked else self.prefixes
        found = [os.path.normpath(os.path.join(start, name)) for start in starts]
        if not self.must_exist and len(found) == 1:
            if name.isascii() and "\\" not in name:
                return found[0]  # looking for the file would cost more than all the rest
            return os.path.normpath(other_spelling(self.root, found[0]) or found[0])
        for path in found:
            if os.path.exists(self.root / path):
                return path
        if not self.must_exist:
            return found[0]
        where = " or ".join(str(self.root / path) for path in found)
        raise DataError("image-missing", f"image {image!r} does not exist: expected {where}")

    def _inside(self, name: str) -> str:
        path = os.path.relpath(os.path.normpath(name), self.root)
        if path.startswith(".."):
            raise DataError(
                "image-absolute",
                f"image {name!r} lies outside {self.root}: give --images a folder that holds all",
            )
        return path

    def _write(self, data: bytes) -> str:
        if self.embed is None:
            raise DataError("image-data", "the image is written into the sample; expected a path")
        ending = next((end for magic, end in _MAGIC if data.startswith(magic)), None)
        if ending is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            ending = ".webp"
        if ending is None and data[4:12] in (b"ftypavif", b"ftypavis"):
            ending = ".avif"
        if ending is None:
            raise DataError("image-data", f"the image inside the sample is {what_begins(data)}")
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest[:2]}/{digest}{ending}"
        if not (self.embed / name).exists():
            write_blocks(self.embed / name, [data])
        return f"{EMBEDDED}/{name}"


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _from_base64(value)
    raise DataError("image-data", f"image bytes: found {shown(value)}, expected base64 text")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            "image-data", f"the image inside the sample is not base64: {error}"
        ) from error
