"""Pictures and their paths in every dress that people put them into; none is lost."""

from __future__ import annotations

import base64
import json
import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.errors import DataError
from data_prep.images import resolve
from data_prep.sources.image_paths import ImageResolver
from data_prep.sources.raw_forms import to_host


def _file(kind: str) -> bytes:
    store = BytesIO()
    Image.effect_noise((24, 24), 50).convert("RGB").save(store, kind)
    return store.getvalue()


PNG = _file("PNG")
TEXT = base64.b64encode(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(PNG).decode()


def _read(tmp_path: Path, **fields: Any) -> list[bytes]:
    """Returns the bytes of the files that a sample's pictures became."""
    resolver = ImageResolver(tmp_path, embed=tmp_path / "embedded")
    record = to_host({"question": "What?", "answer": "x", **fields}, resolver.resolve)
    assert record.keys() == {"messages", "images"}
    return [(tmp_path / image).read_bytes() for image in record["images"]]


DRESSES: dict[str, Any] = {
    "plain": TEXT,
    "no padding": TEXT.rstrip("="),
    "URL alphabet": URL_SAFE.rstrip("="),
    "lines": "\r\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
    "lines, escaped twice": "\\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
    "quotes": f'"{TEXT}"',
    "as Python prints bytes": f"b'{TEXT}'",
    "head": f"data:image/png;base64,{TEXT}",
    "head with a charset": f"data:image/png;charset=utf-8;base64,{TEXT}",
    "head without a type": f"data:;base64, {TEXT}",
    "head of any file": f" data:application/octet-stream;base64,{URL_SAFE}",
    "half a head": f"base64,{TEXT}",
    "a head without data": f"image/png;base64,{TEXT}",
    "percent signs": "data:image/png;base64," + TEXT.replace("+", "%2B").replace("=", "%3D"),
    "hexadecimal": "\\x" + PNG.hex(),
    "the bytes as Python prints them": str(PNG),
    "bytes": PNG,
    "base64 as bytes": TEXT.encode(),
    "byte values": list(PNG),
    "Node.js": {"type": "Buffer", "data": list(PNG)},
    "datasets": {"bytes": PNG, "path": None},
    "datasets, in JSON": {"bytes": TEXT, "path": "a.png"},
    "byte values of datasets": {"bytes": list(PNG)},
    "OpenAI": {"url": f"data:image/png;base64,{TEXT}"},
    "b64_json": {"b64_json": TEXT},
    "Anthropic": {"type": "base64", "media_type": "image/png", "data": TEXT},
    "an object as text": json.dumps({"bytes": TEXT}),
    "an object as Python prints it": str({"bytes": PNG}),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_a_picture_in_any_dress_becomes_the_same_file(tmp_path, dress):
    assert _read(tmp_path, image=DRESSES[dress]) == [PNG]
    assert _read(tmp_path, images=[DRESSES[dress]] * 2) == [PNG, PNG]


@pytest.mark.parametrize(
    "column",
    [
        *("image_b64", "base64", "image_data", "encoded_image", "imageBase64", "image.bytes"),
        *("jpg", "png", "bytes", "img_bytes", "picture_base64", "base64_image", "webp", "Image"),
    ],
)
@pytest.mark.parametrize("value", [TEXT, PNG], ids=["base64", "bytes"])
def test_a_column_that_holds_a_picture_is_one_of_pictures(tmp_path, column, value):
    assert _read(tmp_path, **{column: value}) == [PNG]


@pytest.mark.parametrize("value", [TEXT, PNG, list(PNG), {"bytes": PNG}, [PNG], {"a": TEXT}])
def test_a_picture_in_a_column_of_another_name_is_refused(tmp_path, value):
    with pytest.raises(DataError, match=r"'foo' names a picture.*rename it") as refused:
        _read(tmp_path, foo=value)
    assert refused.value.code == "picture-lost"


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_base64_of_every_format_that_people_send(tmp_path, kind):
    data = _file(kind)
    assert _read(tmp_path, image=base64.b64encode(data).decode()) == [data]


def test_every_format_that_pillow_reads(tmp_path):
    for kind in ("ICO", "PPM", "DDS", "TGA", "PCX"):
        assert _read(tmp_path, image={"bytes": (data := _file(kind))}) == [data]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>" * 2).decode(), "SVG"),
        ("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E", "SVG"),
        ({"bytes": b"<html><body>Not found</body></html>"}, "HTML"),
        ("data:image/png;base64,??" + TEXT, "not base64"),
        (TEXT[:-3][: 4 * 20 + 1], "not base64"),
        ([0, 1, 300, 4, 5, 6, 7, 8, 9], "expected a path"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, value, words):
    with pytest.raises(DataError, match=words):
        _read(tmp_path, image=value)


def test_text_of_the_letters_of_base64_is_no_picture(tmp_path):
    """Long paths without an ending, keys and words are not decoded."""
    long = "data/" + "a" * 120
    resolver = ImageResolver(tmp_path, embed=tmp_path / "embedded")
    assert resolver.resolve(long) == f"images/{long}"
    assert _read(tmp_path, images=[], question="Q" * 200, answer="k" * 200) == []


NFC, NFD = "größe/ñ.png", unicodedata.normalize("NFD", "größe/") + "ñ.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for name in (
        "pics/a.png",
        "pics/a b.png",
        "pics/x%20y.png",
        "pics/100%.png",
        "pics/Ü.png",
        NFD,
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    (tmp_path / "images").symlink_to(folder)
    return folder


@pytest.mark.parametrize("must_exist", [False, True])
@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("pics\\a.png", "pics/a.png"),
        (".\\pics\\a.png", "pics/a.png"),
        ("pics\\\\a.png", "pics/a.png"),
        ("\\pics\\a.png", "pics/a.png"),
        ("/pics/a.png", "pics/a.png"),
        (" pics/a.png\n", "pics/a.png"),
        ('"pics/a.png"', "pics/a.png"),
        ("pics/a%20b.png", "pics/a b.png"),
        ("pics/%C3%9C.png", "pics/Ü.png"),
        ("pics/x%20y.png", "pics/x%20y.png"),  # the file's own name
        ("pics/100%.png", "pics/100%.png"),
        (unicodedata.normalize("NFD", "pics/Ü.png"), "pics/Ü.png"),
        ("pics\\" + unicodedata.normalize("NFD", "Ü.png"), "pics/Ü.png"),
        (NFC, NFD),
        (unicodedata.normalize("NFD", NFC), NFD),
        ("file://ROOT/pics/a%20b.png", "pics/a b.png"),
        ("FILE://ROOT/pics/a.png", "pics/a.png"),
        ("file://localhost/ROOT/pics/a%20b.png", "pics/a b.png"),
        ("file:ROOT/pics/a.png", "pics/a.png"),
        ("file:pics/a.png", "pics/a.png"),
        ("file://pics/a.png", "pics/a.png"),
        ("file://ROOT/pics/x%2520y.png", "pics/x%20y.png"),
        ("file://ROOT/pics/100%25.png", "pics/100%.png"),
        ("file://ROOT/pics/U%CC%88.png", "pics/Ü.png"),
        ("ROOT/" + NFC, NFD),
        ("ROOT/../images/pics/a.png", "pics/a.png"),  # by way of the link to the folder
        ("file://ROOT/../images/pics/a%20b.png", "pics/a b.png"),
    ],
)
def test_a_path_in_any_spelling_is_the_file_that_is_there(root, written, name, must_exist):
    image = written.replace("ROOT", str(root))
    found = ImageResolver(root, must_exist=must_exist).resolve(image)
    assert found == f"images/{name}"
    assert resolve(root.parent, found, (root,)).read_bytes() == PNG


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("C:\\data\\a.png", "a path of Windows with its drive"),
        ("c:/data/a.png", "a path of Windows with its drive"),
        ("file:///C:/data/a.png", "a path of Windows with its drive"),
        ("file://C:\\data\\a.png", "a path of Windows with its drive"),
        ("\\\\server\\share\\a.png", "drive or server"),
        ("file://server/share/a.png", "lies on the machine 'server'"),
        ("..\\other\\a.png", "by '..'"),
        ("file:///etc/a.png", "outside"),
        ("~/a.png", "an absolute path"),
        ("s3://bucket/a.png", "a URL"),
    ],
)
def test_a_path_that_cannot_be_is_refused_with_its_cause(root, written, words):
    with pytest.raises(DataError, match=words):
        ImageResolver(root).resolve(written)


def test_check_says_how_the_file_is_written(root):
    with pytest.raises(DataError, match=r"'images/pics/a b.png' does"):
        resolve(root.parent, "images/pics/a%20b.png", (root,))
