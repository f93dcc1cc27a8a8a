"""Image files: resolves their paths and checks that they can be trained on."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import unicodedata
import warnings
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from data_prep.errors import ERROR, WARNING, DataError

MOST_PIXELS = 178_956_970  # Pillow's own limit; larger pictures are refused by it in training too
MOST_ASPECT = 200  # what Qwen's and InternVL's processors accept
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
}
# Endings of pictures, also of those that `inspect` refuses: a folder that has some is not to lose
# them without a word.
EXTENSIONS = {ending for endings in _EXTENSIONS.values() for ending in endings}
EXTENSIONS |= {".heic", ".heif", ".hif", ".jxl", ".svg"}
EXTENSIONS |= {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112
# Nearly all names: words between single slashes, none of them beginning with a full stop.
_PLAIN = re.compile(r"[\w-][\w. -]*(?:/[\w-][\w. -]*)*", re.ASCII)


@dataclass
class Picture:
    """What is known about one image file.

    Attributes:
        name: as the samples write it.
        sha256: of the file's bytes; None where it cannot be read.
        size: (width, height) in pixels, as stored; None where it is not an image.
        dhash: 64-bit difference hash, if it was asked for.
        findings: (code, text, severity) of everything that is wrong.
    """

    name: str
    sha256: str | None = None
    size: tuple[int, int] | None = None
    dhash: int | None = None
    findings: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, code: str, text: str, severity: str = ERROR) -> None:
        """Note a finding; `text` goes on behind the name."""
        self.findings.append((code, f"image {self.name!r} {text}", severity))


def check_name(name: str) -> None:
    """Raise DataError unless `name`, by its text, can be a path relative to a stream folder."""
    if _PLAIN.fullmatch(name):
        return
    if not name.strip():
        raise DataError("image-name", "an empty image path; remove it and its <image>")
    if name[:5].lower() == "data:" or len(name) > 1000:
        raise DataError(
            "image-data", "the image is written into the sample (base64); expected a path"
        )
    if "://" in name[:12]:
        raise DataError("image-url", f"image {name!r} is a URL; download it and give its path")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError("image-name", f"image {name!r} has a character that no path can have")
    if os.path.isabs(name) or name.startswith("~"):
        raise DataError(
            "image-absolute",
            f"image {name!r} is an absolute path; expected one relative to the stream folder",
        )
    if ".." in name.split("/"):
        raise DataError("image-escape", f"image {name!r} leaves the stream folder by '..'")


def resolve(
    root: Path, name: str, allowed: tuple[Path, ...], known: dict[str, str] | None = None
) -> Path:
    """Return the file that `name` means under `root`, links resolved.

    Args:
        root: the stream folder.
        name: as the sample writes it.
        allowed: resolved folders that may hold the file.
        known: cache of resolved folders, filled here.

    Raises:
        DataError: a bad name, a loop of links, no such file, a folder, or a link out of `allowed`.
    """
    check_name(name)
    try:
        real, mode = _follow(root, name, {} if known is None else known)
    except OSError as error:
        raise _no_file(name, root / name, error) from error
    # Texts, not Paths: is_relative_to takes 25 times as long, and this is asked for every image.
    if not any(real == str(folder) or real.startswith(f"{folder}{os.sep}") for folder in allowed):
        raise DataError(
            "image-escape",
            f"image {name!r} is a link out of the stream, to {real!r}; copy the file in",
        )
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise DataError("image-not-file", f"image {name!r} is {what}; expected an image file")
    return Path(real)


def _follow(root: Path, name: str, known: dict[str, str]) -> tuple[str, int]:
    """Return the resolved path and the mode of `name`. Raises OSError where there is no file.

    A folder is resolved once for all its files: for small images it would cost more than reading.
    """
    folder, _, last = name.rpartition("/")
    if _PLAIN.fullmatch(name):
        if folder not in known:
            known[folder] = os.path.realpath(f"{root}{os.sep}{folder}", strict=True)
        path = f"{known[folder]}{os.sep}{last}"
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode):
            return path, mode
    real = os.path.realpath(root / name, strict=True)
    return real, os.stat(real).st_mode


def _no_file(name: str, path: Path, error: OSError) -> DataError:
    if error.errno == errno.ELOOP:
        return DataError("image-loop", f"image {name!r} is a link to itself")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DataError("image-denied", f"image {name!r} may not be read; change its permissions")
    if error.errno == errno.ENAMETOOLONG:
        return DataError("image-name", f"image {name[:60]!r}... has a name that is too long")
    text = f"image {name!r} does not exist"
    if path.is_symlink():
        text = f"image {name!r} is a link to a file that does not exist"
    elif other := on_disk(Path(str(path)[: -len(name)]), name):
        text += f", but {other!r} does (written otherwise: slashes, blanks, %20, Unicode forms)"
    elif re.match(r"(?:images/)?[A-Za-z]:[\\/]", name):
        text += ": it is a path of Windows with its drive"
    elif near := _other_case(path):
        text += f", but {near!r} does: upper and lower case differ"
    return DataError("image-missing", f"{text}; put the file there or leave the sample out")


def unusual(name: str) -> bool:
    """Return whether a file name may be written otherwise on disk (see `on_disk`)."""
    return not name.isascii() or bool(re.search(r"[\\%:\"']|^\s|\s$", name))


def on_disk(root: Path, name: str) -> str | None:
    """Return the file below `root` that `name` means, as it is written there; None without one.

    Tried in turn: the name itself, with slashes for backslashes, without blanks and quotes around
    it, with `%20` and its like decoded, and each part in either Unicode form (NFC, NFD).
    """
    plain = name.replace("\\", "/").strip().strip("\"'")
    for form in dict.fromkeys((name, plain, unquote(plain))):
        parts: list[str] = []
        for part in form.lstrip("/").split("/"):
            forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
            here = (f for f in forms if f != ".." and os.path.exists(os.path.join(root, *parts, f)))
            if (spelled := next(here, None)) is None:
                break
            parts.append(spelled)
        else:
            return "/".join(parts)
    return None


def what_begins(data: bytes) -> str:
    """Return in words, by its first bytes, what a file is that is no picture."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:500].lower()
    if start[:1] == b"<" and b"<svg" in start:
        return "an SVG drawing, not an image: convert it to PNG"
    if start[:1] == b"<":
        page = b"<html" in start or b"<!doctype html" in start or b"<head" in start
        return "not an image: it begins with " + ("an HTML page" if page else "XML")
    if data[4:8] == b"ftyp":
        return f"a HEIC picture or a video ({data[8:12].decode('latin-1')}): convert it to PNG"
    kinds = ((b"%PDF-", "a PDF"), (b"version https://git-lfs", "a Git LFS pointer"))
    words = next((words for magic, words in kinds if data.startswith(magic)), repr(data[:12]))
    return f"not an image: it begins with {words}"


def _other_case(path: Path) -> str | None:
    """Return the name beside `path` that differs in upper and lower case only."""
    try:
        names = os.listdir(path.parent) if path.parent.is_dir() else []
    except OSError:
        return None
    if len(names) > 10_000:  # reading them would cost more than the hint is worth
        return None
    return next((n for n in names if n.lower() == path.name.lower() and n != path.name), None)


def inspect(path: Path, name: str, near: bool = False) -> Picture:
    """Decode the image file at `path` in full and return what was found out about it.

    Args:
        path: the file.
        name: as the sample writes it, for the messages.
        near: compute the difference hash too.
    """
    picture = Picture(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        picture.add("image-denied", f"cannot be read: {error.strerror}")
        return picture
    picture.sha256 = hashlib.sha256(data).hexdigest()
    if not data.strip(b"\0"):
        what = "is empty (0 bytes)" if not data else "holds nothing but zero bytes"
        picture.add("image-empty", f"{what}; fetch it again")
        return picture
    # Pillow warns of large pictures and odd metadata; what matters here becomes a finding.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _decode(data, picture, near)
    return picture


def _decode(data: bytes, picture: Picture, near: bool) -> None:
    # Imported here: data_prep.stream takes the rules for names from this module, without Pillow.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data)) as image:
            picture.size = image.size
            _check_header(image, picture)
            image.load()  # the header alone says nothing of a file that was cut short
            if near:
                picture.dhash = dhash(image)
    except UnidentifiedImageError:
        picture.add("image-unknown", f"is {what_begins(data)}; fetch or convert it again")
    except Image.DecompressionBombError:
        picture.add("image-huge", f"has more than {MOST_PIXELS} pixels; make it smaller")
    except Exception as error:  # noqa: BLE001 - Pillow raises anything on damaged bytes
        code = "image-truncated" if "truncated" in str(error).lower() else "image-damaged"
        picture.add(code, f"does not decode: {error}; fetch it again")


def _check_header(image: Any, picture: Picture) -> None:
    """Check what the header says: format, mode, frames, transparency, rotation."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        picture.add("image-huge", f"has {width} x {height} pixels; make it smaller")
    if max(width, height) > MOST_ASPECT * min(width, height):
        text = f"is {width} x {height}: its sides differ by more than 200 to 1"
        picture.add("image-aspect", text)
    if image.mode in _DEEP:
        text = f"has 16 or 32 bits a pixel (mode {image.mode}): the host cuts it to 8 bits and it "
        picture.add("image-16bit", f"{text}turns white; convert it to 8 bits")
    wanted, ending = _EXTENSIONS.get(image.format or ""), os.path.splitext(picture.name)[1].lower()
    if wanted and ending not in wanted:
        text = f"ends in {ending or 'nothing'}, but holds {image.format}"
        picture.add("image-extension", text, WARNING)
    if image.mode == "CMYK":
        text = "is CMYK: colours shift when the host turns it to RGB"
        picture.add("image-cmyk", text, WARNING)
    # MPO: a camera's JPEG, whose further frames are previews.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        text = f"has {image.n_frames} frames: the host takes the first"
        picture.add("image-animated", text, WARNING)
    # Palettes and colour keys can be transparent, too: only RGBA shows whether any pixel is.
    may_be_clear = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")
    if may_be_clear and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        text = "is transparent in places: the host drops transparency"
        picture.add("image-alpha", text, WARNING)
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        text = "is rotated by EXIF, which the host ignores: boxes may be off"
        picture.add("image-rotated", text, WARNING)


def dhash(image: Any) -> int:
    """Return the 64-bit difference hash: is each of 8 x 8 grey cells brighter than its right one.

    Krawetz, "Kind of like that" (2013). Copies that were resized or compressed again differ in few
    bits.
    """
    import numpy as np

    cells = np.asarray(image.convert("L").resize((9, 8)))
    return int.from_bytes(np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes(), "big")
