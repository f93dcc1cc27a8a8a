"""data_prep.check: bad images and paths, boxes, duplicates, leakage, manifest."""

# ruff: noqa: E501 - a row of a table stands on one line

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check.__main__ import main
from data_prep.files import sha256_file
from tests.data_prep.trees import picture

REPO = Path(__file__).resolve().parents[3]


def sample(name: str, image: str | None = None, question: str | None = None, **fields) -> dict:
    mark = "<image>" if image else ""
    turns = [
        {"role": "user", "content": mark + (question or f"What is in picture {name}?")},
        {"role": "assistant", "content": fields.pop("answer", "a cat")},
    ]
    images = [image] if image else []
    return {"messages": turns, "images": images, "task": "t", "id": name, **fields}


def stream(folder: Path, train: list[dict], test: list[dict] = (), scorer: str = "exact") -> Path:
    """Write a stream folder by hand, its manifest right."""
    files = {"chunks/001.jsonl": train, "test/t.jsonl": list(test)}
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {n: {"samples": len(r), "sha256": sha256_file(folder / n)} for n, r in files.items()}
    manifest = {
        "format": "strlora-stream/1",
        "name": "mine",
        "generator": {"name": "by hand", "version": "1"},
        "seed": 0,
        "tasks": {"t": {"scorer": scorer, "test": "test/t.jsonl", **entry["test/t.jsonl"]}},
        "chunks": [
            {
                "index": 1,
                "file": "chunks/001.jsonl",
                **entry["chunks/001.jsonl"],
                "tasks": {"t": len(train)},
            }
        ],
    }
    if not test:
        manifest["tasks"] = {}
        (folder / "test/t.jsonl").unlink()
    (folder / "stream.json").write_text(json.dumps(manifest))
    return folder


def run(folder: Path, *more: str) -> tuple[int, dict]:
    report = folder.parent / "report.json"
    code = main([str(folder), "--report", str(report), "--workers", "1", *more])
    return code, json.loads(report.read_text())


def found(content: dict, severity: str | None = None) -> list[str]:
    return [p["code"] for p in content["problems"] if severity in (None, p["severity"])]


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


RGB = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 50).convert("RGB")
WHOLE = encoded(RGB, "JPEG")
EXIF = Image.Exif()
EXIF[0x0112] = 6
# name: (file name, bytes, code, severity, text)
BAD_IMAGES: dict[str, tuple[str, bytes, str, str, str]] = {
    "truncated jpeg": ("a.jpg", WHOLE[:-200], "image-truncated", "error", "image 'images/a.jpg' does not decode: image file is truncated"),
    "truncated png": ("a.png", encoded(RGB, "PNG")[:-300], "image-truncated", "error", "image 'images/a.png' does not decode: image file is truncated"),
    "no bytes": ("a.jpg", b"", "image-empty", "error", "image 'images/a.jpg' is empty (0 bytes); fetch it again"),
    "zero bytes": ("a.jpg", bytes(5000), "image-empty", "error", "image 'images/a.jpg' holds nothing but zero bytes; fetch it again"),
    "web page": ("a.jpg", b"<html>404</html>", "image-unknown", "error", "image 'images/a.jpg' is not an image: it begins with an HTML page"),
    "text": ("a.png", b"hello world", "image-unknown", "error", "image 'images/a.png' is not an image: it begins with b'hello world'"),
    "16 bit": ("a.png", encoded(Image.new("I;16", (9, 9), 30000), "PNG"), "image-16bit", "error", "image 'images/a.png' has 16 or 32 bits a pixel (mode I;16): the host cuts it to 8 bits and it turns white; convert it to 8 bits"),
    "float": ("a.tif", encoded(Image.new("F", (9, 9)), "TIFF"), "image-16bit", "error", "image 'images/a.tif' has 16 or 32 bits a pixel (mode F)"),
    "strip": ("a.png", encoded(Image.new("RGB", (900, 4)), "PNG"), "image-aspect", "error", "image 'images/a.png' is 900 x 4: its sides differ by more than 200 to 1"),
    "bomb": ("a.png", encoded(Image.new("1", (20_000, 20_000)), "PNG"), "image-huge", "error", "image 'images/a.png' has more than 178956970 pixels; make it smaller"),
    "wrong extension": ("a.jpg", encoded(RGB, "PNG"), "image-extension", "warning", "image 'images/a.jpg' ends in .jpg, but holds PNG"),
    "cmyk": ("a.jpg", encoded(RGB.convert("CMYK"), "JPEG"), "image-cmyk", "warning", "image 'images/a.jpg' is CMYK: colours shift when the host turns it to RGB"),
    "animated": ("a.gif", encoded(RGB.convert("P"), "GIF", save_all=True, append_images=[Image.new("P", (60, 40), 9)]), "image-animated", "warning", "image 'images/a.gif' has 2 frames: the host takes the first"),
    "rotated": ("a.jpg", encoded(RGB, "JPEG", exif=EXIF), "image-rotated", "warning", "image 'images/a.jpg' is rotated by EXIF, which the host ignores: boxes may be off"),
    "transparent": ("a.png", encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 100)), "PNG"), "image-alpha", "warning", "image 'images/a.png' is transparent in places: the host drops transparency"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named(tmp_path, kind):
    name, data, code, severity, text = BAD_IMAGES[kind]
    folder = tmp_path / "s"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / name).write_bytes(data)
    stream(folder, [sample("a", f"images/{name}"), sample("b")])
    exit_code, content = run(folder)
    (problem,) = content["problems"]
    assert (problem["code"], problem["severity"]) == (code, severity)
    assert problem["text"].startswith(text)
    assert problem["where"] == f"{folder}/chunks/001.jsonl:1"
    assert problem["sample"] == "a"
    assert exit_code == (1 if severity == "error" else 0)
    assert run(folder, "--allow", code)[0] == 0
    assert run(folder, "--strict")[0] == 1


def place_good(path: Path) -> None:
    picture(path)


def link_loop(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)


def link_out(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(picture(path.parents[3] / "outside.png"))


def link_nowhere(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere.png")


BAD_PATHS: dict[str, tuple[str, Callable[[Path], object] | None, str, str]] = {
    "missing": ("images/a.png", None, "image-missing", "image 'images/a.png' does not exist; put the file there or leave the sample out"),
    "other case": ("images/A.png", lambda p: place_good(p.with_name("a.png")), "image-missing", "image 'images/A.png' does not exist, but 'a.png' does: upper and lower case differ"),
    "folder": ("images/a.png", lambda p: p.mkdir(parents=True), "image-not-file", "image 'images/a.png' is a folder; expected an image file"),
    "loop": ("images/a.png", link_loop, "image-loop", "image 'images/a.png' is a link to itself"),
    "link out": ("images/a.png", link_out, "image-escape", "image 'images/a.png' is a link out of the stream, to"),
    "dead link": ("images/a.png", link_nowhere, "image-missing", "image 'images/a.png' is a link to a file that does not exist"),
    "pipe": ("images/a.png", lambda p: (p.parent.mkdir(), os.mkfifo(p)), "image-not-file", "image 'images/a.png' is not a regular file"),
    "dots": ("images/../../a.png", None, "image-escape", "image 'images/../../a.png' leaves the stream folder by '..'"),
    "absolute": ("/a.png", None, "image-absolute", "image '/a.png' is an absolute path"),
    "home": ("~/a.png", None, "image-absolute", "image '~/a.png' is an absolute path"),
    "url": ("http://x.org/a.png", None, "image-url", "image 'http://x.org/a.png' is a URL; download it"),
    "base64": ("data:image/png;base64,AAAA", None, "image-data", "the image is written into the sample (base64)"),
    "long": ("images/" + "a" * 300 + ".png", lambda p: p.parent.mkdir(), "image-name", "image 'images/aaa"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_a_bad_path_is_named(tmp_path, kind):
    name, place, code, text = BAD_PATHS[kind]
    folder = stream(tmp_path / "s", [sample("a", name), sample("b")])
    if place:
        place(folder / name)
    exit_code, content = run(folder)
    (problem,) = content["problems"]
    assert (exit_code, problem["code"]) == (1, code)
    assert problem["text"].startswith(text)


def test_links_that_the_manifest_names_are_followed(tmp_path):
    folder = stream(tmp_path / "s", [sample("a", "images/a.png")])
    picture(tmp_path / "far/a.png")
    (folder / "images").symlink_to(tmp_path / "far")
    assert found(run(folder)[1]) == ["image-escape"]
    assert run(folder, "--images", str(tmp_path / "far"))[0] == 0
    manifest = json.loads((folder / "stream.json").read_text())
    (folder / "stream.json").write_text(
        json.dumps(manifest | {"links": {"images": str(tmp_path / "far")}})
    )
    assert run(folder)[0] == 0


def test_roles_and_placeholders(tmp_path):
    records = [
        {**sample("a"), "messages": sample("a")["messages"][:1]},
        {**sample("b"), "messages": sample("b")["messages"][::-1]},
        sample("c", question="<image> what?"),
        {**sample("d"), "images": "images/a.png"},
        {**sample("e"), "id": 5},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    folder = stream(tmp_path / "s", records)
    code, content = run(folder)
    assert code == 1
    assert found(content) == [
        "no-answer",
        "role-order",
        "placeholders",
        "images-type",
        "id-type",
        "no-turns",
    ]


BOXES = {
    "[0.1, 0.2, 0.5, 0.6]": None,
    "[0.5, 0.2, 0.1, 0.6]": "box-order",
    "[0.1, 0.2, 0.5, 1.2]": "box-range",
    "[-0.1, 0.2, 0.5, 0.6]": "box-range",
    "[0.1, 0.2, 0.5]": "box",
    "<ref>2 dogs</ref><box>(100,200),(500,800)</box>": None,
    "<ref>2 dogs</ref><box>(500,200),(100,800)</box>": "box-order",
    "<|box_start|>(100,200),(500,800)<|box_end|>": None,
    "<bbox>[0.1, 0.2, 0.5, 0.6]</bbox>": None,
    "[0.1, 0.2, 0.5, 0.6] and again [0.1, 0.2, 0.5, 0.6]": None,
    "[100, 200, 500, 600] and [100, 200, 500, 1600]": "box-range",
    '{"bbox_2d": [100, 200, 500, 600], "label": "dog 2"}': None,
    '{"x1": 100, "y1": 200, "x2": 500, "y2": 600}': None,
    "<ref>2 dogs</ref>": "box",
    "the left one": "box",
    "[NaN, 0, 1, 1]": "box",
    "[100, 200, 500, 600]": None,
    "[100, 200, 500, 1600]": "box-range",
}


@pytest.mark.parametrize("answer", BOXES)
def test_boxes_of_training_answers(tmp_path, answer):
    record = sample("a", question="Give the bounding box of the dog.", answer=answer)
    content = run(stream(tmp_path / "s", [record]))[1]
    assert found(content) == ([BOXES[answer]] if BOXES[answer] else [])


@pytest.mark.parametrize(
    ("gold", "size", "code"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", [40, 30], None),
        ("[0.1, 0.2, 0.5, 0.9]", [40, 30], "box-range"),
        ("[4, 6, 20, 18]", [40, 30], "box-range"),
        (None, [40, 30], "box"),
        ("[0.1, 0.2, 0.5, 0.6]", None, "box-size"),
        ("[0.1, 0.2, 0.5, 0.6]", [40], "box-size"),
        ("[0.1, 0.2, 0.5, 0.6]", [30, 40], "box-size"),  # the picture is 40 x 30
        ("[0.1, 0.2, 0.5, 0.6]", [0, 30], "box-size"),
    ],
)
def test_gold_boxes_of_test_samples(tmp_path, gold, size, code):
    picture(tmp_path / "s/images/a.png")
    record = sample("a", "images/a.png", answer_bbox=gold, size=size)
    folder = stream(tmp_path / "s", [sample("b")], [record], scorer="grounding")
    assert found(run(folder)[1]) == ([code] if code else [])


def test_duplicates_and_leakage(tmp_path):
    folder = tmp_path / "s"
    for number, name in enumerate(("a", "b", "c")):
        picture(folder / f"images/{name}.png", number)
    shutil.copyfile(folder / "images/a.png", folder / "images/copy.png")
    train = [
        sample("1", "images/b.png", "Which colour has the bird?"),
        sample("2", "images/b.png", "which  colour has the BIRD?"),  # the same, case and blanks
        sample("2", "images/b.png", "How many birds are there?"),
        sample("4", "images/copy.png", "Is this copy of a test image new?"),
        sample("5", "images/copy.png", "What is the thing on the left?"),
        sample("6", "images/b.png", "Who painted the house of the mayor?"),
        sample("7", question="Name the capital of France, please."),
    ]
    test = [
        sample("t1", "images/a.png", "What is the thing on the left?"),
        sample("t2", "images/c.png", "Who painted the house of the mayor?"),
        sample("t2", question="Name the capital of France, please."),
    ]
    code, content = run(stream(folder, train, test))
    places = {(p["code"], p["severity"], p["where"].rsplit("/", 1)[1]) for p in content["problems"]}
    assert places == {
        ("duplicate-sample", "warning", "001.jsonl:2"),
        ("duplicate-id", "warning", "001.jsonl:3"),
        ("leak-image", "error", "001.jsonl:4"),
        ("leak-sample", "error", "001.jsonl:5"),
        ("leak-text", "warning", "001.jsonl:6"),
        ("leak-sample", "error", "001.jsonl:7"),
        ("duplicate-id", "error", "t.jsonl:3"),
    }
    assert code == 1


def damage(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "stream.json").read_text())
    change(manifest)
    (folder / "stream.json").write_text(json.dumps(manifest))


MANIFEST = {
    "file-missing": lambda m: m["chunks"][0].update(file="chunks/009.jsonl"),
    "file-changed": lambda m: m["chunks"][0].update(sha256="0" * 64),
    "samples-count": lambda m: m["chunks"][0].update(samples=99),
    "tasks-count": lambda m: m["chunks"][0].update(tasks={"t": 1, "u": 1}),
    "chunk-index": lambda m: m["chunks"][0].update(index=2),
    "manifest-escape": lambda m: m["chunks"][0].update(file="../s/chunks/../../x.jsonl"),
    "scorer": lambda m: m["tasks"]["t"].update(scorer="best"),
    "no-chunks": lambda m: m.update(chunks=[]),
}


@pytest.mark.parametrize("code", MANIFEST)
def test_a_manifest_that_is_wrong_is_told(tmp_path, code):
    folder = stream(tmp_path / "s", [sample("a"), sample("b")], [sample("c", question="Else?")])
    assert run(folder)[0] == 0
    damage(folder, MANIFEST[code])
    exit_code, content = run(folder)
    assert exit_code == 1
    assert code in found(content)


def test_what_cannot_be_checked_ends_with_two(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "s").mkdir()
    assert main([str(tmp_path / "s")]) == 2
    assert "no stream.json and no JSONL files" in capsys.readouterr().err
    (tmp_path / "s/stream.json").write_text("{")
    assert main([str(tmp_path / "s")]) == 2
    (tmp_path / "s/stream.json").write_text('{"format": "strlora-stream/1"}')
    assert main([str(tmp_path / "s")]) == 2
    assert "expected 'chunks'" in capsys.readouterr().err


def test_one_file_can_be_checked_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(sample("a")) + "\n")
    assert main([str(path), "--report", str(tmp_path / "r.json")]) == 0


def test_the_report_lies_beside_the_folder_by_default(tmp_path, capsys):
    folder = stream(tmp_path / "s", [sample("a"), sample("b", answer="a dog"), sample("c")])
    before = sorted(folder.rglob("*"))
    assert main([str(folder), "--workers", "1"]) == 0
    content = json.loads((tmp_path / "s.check.json").read_text())
    assert content["tasks"]["t"]["train"] == {
        "samples": 3,
        "images": 0,
        "answers": 2,
        "questions": 3,
        "most_common": "a cat",
        "most_common_share": 0.6667,
    }
    assert sorted(folder.rglob("*")) == before
    assert "t              train       3       0       2  'a cat' 67%" in capsys.readouterr().out


def test_values_of_odd_types_are_findings_and_never_crash(tmp_path):
    odd = ["x", None, [], {}, [1], ["a", "b"], 3, True, [640, 480], "[640, 480]", 1e308, [[1], [2]]]
    keys = ["size", "answer_bbox", "references", "options", "task", "id", "images", "messages"]
    box = {"question": "Give the bounding box.", "answer": "[0.1, 0.2, 0.3, 0.4]"}
    rows = [{**sample("x", **box), key: value} for key in [*keys, "extra"] for value in odd]
    folder = stream(tmp_path / "s", rows, rows, scorer="grounding")
    code, content = run(folder, "--near", "--fix", str(tmp_path / "clean"))
    assert code == 0  # the copy is good
    assert {"content-type", "role", "no-turns", "box", "box-size", "turns-type"} & set(
        found(content)
    )
    assert run(tmp_path / "clean")[0] == 0
