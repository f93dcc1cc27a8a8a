"""Malformed input: each kind is refused at its place, with its code and the fix."""

from __future__ import annotations

import gzip
import json

import pytest

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk


def turns(question="What?", answer="yes"):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def host(**fields):
    return {"messages": turns(), **fields}


def llava(*spoken, **fields):
    return {"conversations": [{"from": who, "value": text} for who, text in spoken], **fields}


def pair(more):
    return f'{{"question": "a", "answer": "b", {more}}}'


def lines(*rows):
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "".join(text + "\n" for text in texts).encode()


TURN, ITEM = '[{"role": "user"', '{"text": "a", "answer": "b"}'
DEEP, DIGITS = "[" * 100_000, '{"x": %s}' % ("9" * 5000)
HALF = (
    '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}'
)
FORMS = "expected 'messages' (role, content), 'conversations' (from, value) or 'question' and"
ORDER = "after an optional system turn, user and assistant alternate"
ASK, TELL, SYSTEM, BOX = ("human", "a"), ("gpt", "c"), ("system", "s"), "data:image/png;base64,"
# fmt: off
# The rows of a.jsonl (the last is the bad one), the code, what the message says.
ROWS = [
    ((host(), '{"messages": [}'), "json", 'Expecting value at column 15, near \'ssages": [}\''),
    ((f'{{"messages": {TURN}',), "json", "a sample must not be spread over several lines"),
    (('{"a": 1} {"b": 2}',), "json", "put a line end between the objects"),
    (("{'messages': []}",), "json", "double quotes at column 2"),
    (('{"messages": [],}',), "json", 'expected a sample such as {"messages": [...], "images"'),
    (('{"messages": [], "x": NaN}',), "json-constant", "found NaN, which is not JSON; write null"),
    (('{"messages": [], "x": -Infinity}',), "json-constant", "found -Infinity"),
    ((DEEP,), "json-depth", "nested too deep; expected a flat JSON object"),
    (("17",), "not-object", "found 17 (int), expected a JSON object"),
    ((host(), "[1, 2]"), "not-object", "found [1, 2] (list), expected a JSON object"),
    (('"hello"',), "not-object", "found 'hello' (str), expected a JSON object"),
    (("null",), "not-object", "found None (NoneType), expected a JSON object"),
    ((DIGITS,), "json", "a number of more than 4,300 digits; write it as text"),
    (({"id": "x", "picture": "a.jpg"},), "no-turns", f"found the keys: id, picture; {FORMS}"),
    (({"messages": None},), "no-turns", f"found the keys: messages; {FORMS}"),
    (({"messages": []},), "no-turns", "no turns; expected a user turn and an assistant turn"),
    (({"messages": "hello"},), "turns-type", "messages: found 'hello', expected a list of turns"),
    (({"messages": ["hi"]},), "turn-keys", "turn 1: found 'hi', expected an object"),
    (({"messages": [turns()]},), "turn-keys", "turn 1: found [{'role': 'user'"),
    (({"messages": [{"speaker": "user", "text": "hi"}]},), "turn-keys", "expected role and"),
    (({"messages": [{"role": "tool", "content": "x"}]},), "role", "'tool', expected system, user"),
    (({"messages": [{"role": 1, "content": "x"}]},), "role", "turn 1: role 1, expected system"),
    ((llava(ASK, ASK, TELL),), "role-order", "turn 2: found 'user', expected 'assistant':"),
    ((llava(TELL, ASK),), "role-order", f"turn 1: found 'assistant', expected 'user': {ORDER}"),
    ((llava(ASK, SYSTEM, TELL),), "role-order", f"found 'system', expected 'assistant': {ORDER}"),
    ((llava(SYSTEM),), "no-answer", "the last turn is not the assistant's: the answer is missing"),
    ((llava(ASK),), "no-answer", "the last turn is not the assistant's: the answer is missing"),
    ((llava(ASK, ("gpt", "  ")),), "empty-answer", "turn 2: the answer is empty; leave the sample"),
    ((llava(("human", "<image>"), TELL, image="a.jpg"),), "empty-question", "turn 1: the question"),
    ((host(messages=turns(answer=None)),), "content-type", "turn 2: the content is null"),
    ((host(messages=turns(answer=5)),), "content-type", "content 5 (int), expected text: put it"),
    ((host(messages=turns(answer={"x": 1})),), "content-type", "content {'x': 1} (dict), expected"),
    ((host(messages=turns([{"type": "video"}])),), "content-type", "the part {'type': 'video'}"),
    ((HALF,), "surrogate", "turn 1: '\\ud800' is half of a surrogate pair; repair the text"),
    ((host(messages=turns("a\0b")),), "control", "turn 1: a NUL character in the text; remove it"),
    ((llava(("human", "<image><image> b"), TELL, image="a.jpg"),), "placeholders",
     "2 <image> in the turns, but 1 images: write one for each image"),
    ((llava(("human", "<image> b"), TELL),), "placeholders", "1 <image> in the turns, but 0"),
    ((llava(ASK, ("gpt", "<image>"), image="a.jpg"),), "placeholder-in-answer", "turn 2: <image>"),
    ((host(images=[3]),), "image-type", "images: found 3, expected a path as text"),
    ((host(images=[["a.jpg"]]),), "image-type", "found ['a.jpg'], expected a path as text"),
    ((host(images=[{"name": "x"}]),), "image-type", "found {'name': 'x'}, expected a path as text"),
    ((host(images=["https://x.org/a.jpg"]),), "image-url", "is a URL; download it and give its"),
    ((host(images=["/etc/passwd"]),), "image-absolute", "ROOT: give --images a folder that holds"),
    ((host(images=["../../a.jpg"]),), "image-escape", "'../../a.jpg' leaves the stream folder"),
    ((host(images=[f"{BOX}@@@"]),), "image-data", "the image inside the sample is not base64"),
    ((host(images=[f"{BOX}aGVsbG8="]),), "image-data", "not an image: it begins with b'hello'"),
    ((host(images=[" "]),), "image-name", "an empty image path; remove it and its <image>"),
    ((host(images=["<STRCVIT_IMAGE_ROOT>/a.jpg"]),), "image-name", "_ROOT>/a.jpg': expected a"),
    ((host(images=["a\0.jpg"]),), "image-name", "'a\\x00.jpg' has a character that no path can"),
    ((pair('"image": "\\ud800.jpg"'),), "image-name", "'\\ud800.jpg' has a character that no path"),
    ((host(videos=["a.mp4"]),), "media", "videos: video and audio are not supported; leave it out"),
    ((host(id=[1]),), "id-type", "id: found [1], expected text or a number"),
    ((host(task=["a"]),), "task-type", "task: found ['a'], expected text or a number"),
    (({"question": "a"},), "no-answer", "'question' has no 'answer' beside it"),
    (({"question": "a", "answer": None},), "no-answer", "the answer is missing; leave the sample"),
    (({"question": "a", "answer": True},), "content-type", "answer: found True, expected text"),
    (({"question": 1, "answer": "a"},), "content-type", "question: found 1, expected text"),
    ((pair('"x": 1e999'),), "json-number", "a field holds an infinite number, which JSON cannot"),
    ((pair('"x": "\\ud800"'),), "surrogate", "a field holds half of a surrogate pair; repair the"),
]
# Other files: name, bytes, the place (and that it is one sample: else the whole file), the words.
FILES = [
    ("a.jsonl", b"", "error: a.jsonl", "no samples in it; expected at least one"),
    ("a.jsonl", b"\n \r\n", "error: a.jsonl", "no samples in it"),
    ("a.jsonl", b"\xef\xbb\xbf", "error: a.jsonl", "no samples in it"),
    ("a.jsonl", lines(host()).decode().encode("utf-16"), "error: a.jsonl", "save the file as"),
    ("a.xlsx", b"PK\x03\x04aaaa", "error: a.xlsx", "a spreadsheet; save it as CSV, in UTF-8"),
    ("a.jsonl", b"PK\x03\x04aaaa", "error: a.jsonl", "an archive; unpack it"),
    ("a.jsonl.gz", gzip.compress(lines(*(host(id=f"{i:020}") for i in range(500))))[:300],
     "error: a.jsonl.gz", "damaged gzip file (Compressed file ended before the end"),
    ("a.jsonl", lines(host()) + b'{"messages": "\xff"}\n', "a.jsonl:2",
     "not UTF-8: byte b'\\xff' at position 15 of the line; save the file as UTF-8 [encoding]"),
    ("a.json", f'[{ITEM}, {{"tex'.encode(), "a.json: sample 2", "Unterminated string starting at"),
    ("a.json", f"[{ITEM}".encode(), "a.json: sample 2", "the file ends after sample 1 without ']'"),
    ("a.json", f'[{ITEM} {{"text": 1}}]'.encode(), "a.json: sample 2",
     "expected ',' or ']' before line 1, found '{\"text\": 1}]' [json]"),
    ("a.json", f"[{ITEM}] x".encode(), "a.json: sample 2", "text after the array: 'x'; expected"),
    ("a.json", f"[{ITEM},]".encode(), "a.json: sample 2", "a comma before the closing bracket"),
    ("a.json", b"[1, 2]", "a.json: sample 1", "found 1 (int), expected a JSON object [not-object]"),
    ("a.json", b"[]", "error: a.json", "no samples in it; expected at least one"),
    ("a.json", f'[{{"text": "a", "answer": NaN}}, {ITEM}]'.encode(), "a.json: sample 1",
     "found NaN, which is not JSON; write null or leave it out [json-constant]"),
    ("a.csv", b"question,answer\na,b\na,b,c\n", "a.csv:3",
     "found 3 cells, the header names 2: quote cells that hold ',' [csv-columns]"),
    ("a.csv", b'question,answer\n"a"x,b\n', "a.csv:2", "not CSV: ',' expected after '\"' [csv]"),
    ("a.csv", b"question,answer\na,\n", "a.csv:2", "'question' has no 'answer' beside it"),
    ("a.csv", b'messages\n"[{""role"": ]"\n', "a.csv:2",
     "column 'messages': not JSON: Expecting value at column 11, near '[{\"role\": ]'"),
    ("a.csv", b"question,answer\na,\xff\n", "a.csv:2", "byte b'\\xff'; save the file as UTF-8"),
    ("a.csv", b"question,answer\n", "error: a.csv", "no samples to train on; expected at least"),
    ("a.parquet", b"hello world", "error: a.parquet", "not a Parquet file, it begins with b'hello"),
    ("a.parquet", b"PAR1hello world", "error: a.parquet", "damaged Parquet file"),
]
# fmt: on
CASES = FILES + [
    ("a.jsonl", lines(*rows), f"a.jsonl:{len(rows)}", (words, f" [{code}]"))
    for rows, code, words in ROWS
]


@pytest.mark.parametrize(("file", "data", "place", "words"), CASES)
def test_malformed_input_is_refused_in_words(tmp_path, capsys, file, data, place, words):
    (tmp_path / file).write_bytes(data)
    code = chunk(["--source", f"{tmp_path / file}", "--out", f"{tmp_path / 'out'}", "--workers=1"])
    printed = capsys.readouterr().err.replace(f"{tmp_path}/", "").replace(str(tmp_path), "ROOT")
    first = next(text for text in printed.splitlines() if not text.startswith("Failed to read"))
    assert first.startswith(f"{place}: ")
    assert all(part in first for part in ([words] if isinstance(words, str) else words))
    assert code == (2 if place.startswith("error: ") else 1)
    assert [path.name for path in tmp_path.iterdir()] == [file], "something was left behind"


@pytest.mark.parametrize(("rows", "code"), [case[:2] for case in ROWS if case[1] != "image-data"])
def test_check_finds_every_one_too(tmp_path, capsys, rows, code):
    """In a stream's own files; check refuses pictures inside them by kind."""
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks/001.jsonl").write_bytes(lines(*rows))
    report = tmp_path / "report.json"
    assert check([str(tmp_path), "--report", str(report), "--workers", "1"]) == 1
    problems = json.loads(report.read_text())["problems"]
    assert {p["code"] for p in problems} - {"manifest-missing"}


def test_all_problems_of_a_file_are_listed_at_once(tmp_path, capsys):
    rows = [host(), "{", host(images=[3]), "17", host()]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    out = tmp_path / "out"
    assert chunk(["--source", str(tmp_path / "a.jsonl"), "--out", str(out), "--workers", "1"]) == 1
    printed = capsys.readouterr().err
    assert [f"a.jsonl:{n}:" in printed for n in range(1, 6)] == [False, True, True, True, False]
    assert "error: 3 bad samples, nothing was written." in printed
    assert not out.exists()


def test_skip_bad_keeps_the_good_ones_and_lists_the_others(tmp_path):
    rows = [host(id="a"), "{", host(images=[3]), host(id="b")]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    out = tmp_path / "out"
    arguments = ["--source", str(tmp_path / "a.jsonl"), "--out", str(out), "--skip-bad"]
    assert chunk([*arguments, "--workers", "1"]) == 0
    kept = [json.loads(row)["id"] for row in (out / "chunks/001.jsonl").read_text().splitlines()]
    left = [json.loads(row) for row in (out / "left_out.jsonl").read_text().splitlines()]
    assert sorted(kept) == ["a", "b"]
    assert [(p["code"], p["where"].rsplit(":", 1)[1]) for p in left] == [
        ("json", "2"),
        ("image-type", "3"),
    ]


def test_a_place_that_cannot_be_written_is_told(tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_bytes(lines({"question": "Why?", "answer": "so"}))
    assert chunk(["--source", str(source), "--out", str(source / "s")]) == 2
    assert capsys.readouterr().err == f"error: [Errno 20] Not a directory: '{source / 's'}'\n"


BROKEN = "caf\udce9"  # what Python makes of the byte E9, é in Latin-1


def test_names_that_are_not_utf8_are_refused_in_words(tmp_path, capsys):
    table, out, classes = tmp_path / f"{BROKEN}.jsonl", str(tmp_path / "s"), tmp_path / "pets"
    good = tmp_path / "good.jsonl"
    for path in (table, good):
        path.write_bytes(lines({"question": "Why?", "answer": "so"}))
    for picture in (f"cat/{BROKEN}.png", "dog/b.png"):
        (classes / picture).parent.mkdir(parents=True)
        (classes / picture).write_bytes(b"")
    (tmp_path / BROKEN).mkdir()
    stream = ["--source", str(good), "--out", out]
    for words, name in (
        (["--source", str(table), "--out", out], f"{BROKEN}.jsonl"),
        (["--source", str(classes), "--question", "Which?", "--out", out], f"{BROKEN}.png"),
        ([*stream, "--test", f"t={table}"], f"{BROKEN}.jsonl"),
        ([*stream, "--images", str(tmp_path / BROKEN)], BROKEN),
        ([*stream[:2], "--out", str(tmp_path / BROKEN)], BROKEN),
    ):
        assert chunk([*words, "--workers", "1"]) == 2
        assert capsys.readouterr().err == f"error: the name {name!r} is not UTF-8; rename it\n"
    for path in (table, tmp_path / BROKEN):
        assert check([str(path)]) == 2
        assert "is not UTF-8; rename it" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
