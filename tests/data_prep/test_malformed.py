"""Malformed input, each kind with the exact message; nothing may be left behind."""

# ruff: noqa: E501 - a message of the table stands on one line

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


def lines(*rows):
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "".join(text + "\n" for text in texts).encode()


DEEP = "[" * 100_000
# Name of the case, name of the file, its bytes, the first line of the message.
CASES = [
    ("empty", "a.jsonl", b"", "error: a.jsonl: no samples in it; expected at least one"),
    ("blank", "a.jsonl", b"\n \r\n", "error: a.jsonl: no samples in it; expected at least one"),
    (
        "bom only",
        "a.jsonl",
        b"\xef\xbb\xbf",
        "error: a.jsonl: no samples in it; expected at least one",
    ),
    (
        "utf16",
        "a.jsonl",
        lines(host()).decode().encode("utf-16"),
        "error: a.jsonl: UTF-16 or binary; save the file as UTF-8 text",
    ),
    (
        "spreadsheet",
        "a.xlsx",
        b"PK\x03\x04aaaa",
        "error: a.xlsx: a spreadsheet; save it as CSV, in UTF-8",
    ),
    (
        "zip",
        "a.jsonl",
        b"PK\x03\x04aaaa",
        "error: a.jsonl: an archive; unpack it (only gzip is read directly)",
    ),
    (
        "not utf8",
        "a.jsonl",
        lines(host()) + b'{"messages": "\xff"}\n',
        "a.jsonl:2: not UTF-8: byte b'\\xff' at position 15 of the line; save the file as UTF-8 [encoding]",
    ),
    (
        "gz cut",
        "a.jsonl.gz",
        gzip.compress(lines(*[host(id=str(i) + "x" * 20) for i in range(500)]))[:300],
        "error: a.jsonl.gz: damaged gzip file (Compressed file ended before the end-of-stream marker was reached)",
    ),
    (
        "broken json",
        "a.jsonl",
        lines(host(), '{"messages": [}'),
        'a.jsonl:2: not JSON: Expecting value at column 15, near \'ssages": [}\'; expected a sample such as {"messages": [...], "images": [...]} [json]',
    ),
    (
        "cut line",
        "a.jsonl",
        lines('{"messages": [{"role": "user"'),
        "a.jsonl:1: not JSON: Expecting ',' delimiter at column 30, near 'e\": \"user\"'; the line ends inside the sample: a sample must not be spread over several lines [json]",
    ),
    (
        "two objects",
        "a.jsonl",
        lines('{"a": 1} {"b": 2}'),
        'a.jsonl:1: not JSON: Extra data at column 10, near \'{"a": 1} {"b": 2}\'; one line must hold one sample: put a line end between the objects [json]',
    ),
    (
        "single quotes",
        "a.jsonl",
        lines("{'messages': []}"),
        'a.jsonl:1: not JSON: Expecting property name enclosed in double quotes at column 2, near "{\'messages\': []}"; expected a sample such as {"messages": [...], "images": [...]} [json]',
    ),
    (
        "trailing comma",
        "a.jsonl",
        lines('{"messages": [],}'),
        'a.jsonl:1: not JSON: Expecting property name enclosed in double quotes at column 17, near \'ages": [],}\'; expected a sample such as {"messages": [...], "images": [...]} [json]',
    ),
    (
        "NaN",
        "a.jsonl",
        lines('{"messages": [], "x": NaN}'),
        "a.jsonl:1: found NaN, which is not JSON; write null or leave it out [json-constant]",
    ),
    (
        "Infinity",
        "a.jsonl",
        lines('{"messages": [], "x": -Infinity}'),
        "a.jsonl:1: found -Infinity, which is not JSON; write null or leave it out [json-constant]",
    ),
    (
        "deep",
        "a.jsonl",
        (DEEP + "\n").encode(),
        "a.jsonl:1: nested too deep; expected a flat JSON object [json-depth]",
    ),
    (
        "number",
        "a.jsonl",
        lines("17"),
        "a.jsonl:1: found 17 (int), expected a JSON object [not-object]",
    ),
    (
        "list",
        "a.jsonl",
        lines(host(), "[1, 2]"),
        "a.jsonl:2: found [1, 2] (list), expected a JSON object [not-object]",
    ),
    (
        "string",
        "a.jsonl",
        lines('"hello"'),
        "a.jsonl:1: found 'hello' (str), expected a JSON object [not-object]",
    ),
    (
        "null",
        "a.jsonl",
        lines("null"),
        "a.jsonl:1: found None (NoneType), expected a JSON object [not-object]",
    ),
    (
        "digits",
        "a.jsonl",
        lines('{"x": %s}' % ("9" * 5000)),
        "a.jsonl:1: a number of more than 4,300 digits; write it as text [json]",
    ),
    (
        "array cut",
        "a.json",
        json.dumps([{"text": "a", "answer": "b"}]).encode()[:-1] + b', {"tex',
        "a.json: sample 2: not JSON: Unterminated string starting at in line 1, near '' [json]",
    ),
    (
        "array no end",
        "a.json",
        json.dumps([host()]).encode()[:-1],
        "a.json: sample 2: the file ends after sample 1 without ']'; it is incomplete [json]",
    ),
    (
        "array no comma",
        "a.json",
        b'[{"text": "a", "answer": "b"} {"text": 1}]',
        "a.json: sample 2: expected ',' or ']' before line 1, found '{\"text\": 1}]' [json]",
    ),
    (
        "array tail",
        "a.json",
        json.dumps([host()]).encode() + b" x",
        "a.json: sample 2: text after the array: 'x'; expected its end [json]",
    ),
    (
        "array trailing comma",
        "a.json",
        b'[{"text": "a", "answer": "b"},]',
        "a.json: sample 2: a comma before the closing bracket; remove it [json]",
    ),
    (
        "array of numbers",
        "a.json",
        b"[1, 2]",
        "a.json: sample 1: found 1 (int), expected a JSON object [not-object]",
    ),
    (
        "array empty",
        "a.json",
        b"[]",
        "error: a.json: no samples to train on; expected at least one",
    ),
    (
        "array NaN",
        "a.json",
        b'[{"text": "a", "answer": NaN}, {"text": "a", "answer": "b"}]',
        "a.json: sample 1: found NaN, which is not JSON; write null or leave it out [json-constant]",
    ),
    (
        "no turns",
        "a.jsonl",
        lines({"id": "x", "picture": "a.jpg"}),
        "a.jsonl:1: found the keys: id, picture; expected 'messages' (role, content), 'conversations' (from, value) or 'question' and 'answer' [no-turns]",
    ),
    (
        "messages null",
        "a.jsonl",
        lines({"messages": None}),
        "a.jsonl:1: found the keys: messages; expected 'messages' (role, content), 'conversations' (from, value) or 'question' and 'answer' [no-turns]",
    ),
    (
        "messages empty",
        "a.jsonl",
        lines({"messages": []}),
        "a.jsonl:1: no turns; expected a user turn and an assistant turn [no-turns]",
    ),
    (
        "messages string",
        "a.jsonl",
        lines({"messages": "hello"}),
        "a.jsonl:1: messages: found 'hello', expected a list of turns [turns-type]",
    ),
    (
        "turn string",
        "a.jsonl",
        lines({"messages": ["hi"]}),
        "a.jsonl:1: turn 1: found 'hi', expected an object [turn-keys]",
    ),
    (
        "turn nested",
        "a.jsonl",
        lines({"messages": [turns()]}),
        "a.jsonl:1: turn 1: found [{'role': 'user', 'content': 'What?'}, {'role': 'assistant',..., expected an object [turn-keys]",
    ),
    (
        "turn keys",
        "a.jsonl",
        lines({"messages": [{"speaker": "user", "text": "hi"}]}),
        "a.jsonl:1: turn 1: found the keys ['speaker', 'text'], expected role and content, or from and value [turn-keys]",
    ),
    (
        "role unknown",
        "a.jsonl",
        lines({"messages": [{"role": "tool", "content": "x"}]}),
        "a.jsonl:1: turn 1: role 'tool', expected system, user (human) or assistant (gpt) [role]",
    ),
    (
        "role number",
        "a.jsonl",
        lines({"messages": [{"role": 1, "content": "x"}]}),
        "a.jsonl:1: turn 1: role 1, expected system, user (human) or assistant (gpt) [role]",
    ),
    (
        "two users",
        "a.jsonl",
        lines(llava(("human", "a"), ("human", "b"), ("gpt", "c"))),
        "a.jsonl:1: turn 2: found 'user', expected 'assistant': after an optional system turn, user and assistant alternate [role-order]",
    ),
    (
        "starts assistant",
        "a.jsonl",
        lines(llava(("gpt", "c"), ("human", "a"))),
        "a.jsonl:1: turn 1: found 'assistant', expected 'user': after an optional system turn, user and assistant alternate [role-order]",
    ),
    (
        "system late",
        "a.jsonl",
        lines(llava(("human", "a"), ("system", "s"), ("gpt", "c"))),
        "a.jsonl:1: turn 2: found 'system', expected 'assistant': after an optional system turn, user and assistant alternate [role-order]",
    ),
    (
        "only system",
        "a.jsonl",
        lines(llava(("system", "s"))),
        "a.jsonl:1: the last turn is not the assistant's: the answer is missing [no-answer]",
    ),
    (
        "no answer",
        "a.jsonl",
        lines(llava(("human", "a"))),
        "a.jsonl:1: the last turn is not the assistant's: the answer is missing [no-answer]",
    ),
    (
        "empty answer",
        "a.jsonl",
        lines(llava(("human", "a"), ("gpt", "  "))),
        "a.jsonl:1: turn 2: the answer is empty; leave the sample out [empty-answer]",
    ),
    (
        "empty question",
        "a.jsonl",
        lines(llava(("human", "<image>"), ("gpt", "x"), image="a.jpg")),
        "a.jsonl:1: turn 1: the question is empty [empty-question]",
    ),
    (
        "content null",
        "a.jsonl",
        lines(host(messages=turns(answer=None))),
        "a.jsonl:1: turn 2: the content is null, expected text [content-type]",
    ),
    (
        "content number",
        "a.jsonl",
        lines(host(messages=turns(answer=5))),
        "a.jsonl:1: turn 2: content 5 (int), expected text: put it in quotes [content-type]",
    ),
    (
        "content dict",
        "a.jsonl",
        lines(host(messages=turns(answer={"x": 1}))),
        "a.jsonl:1: turn 2: content {'x': 1} (dict), expected text: put it in quotes [content-type]",
    ),
    (
        "content parts",
        "a.jsonl",
        lines(host(messages=turns(question=[{"type": "video", "video": "x"}]))),
        "a.jsonl:1: turn 1: found the part {'type': 'video', 'video': 'x'} [content-type]",
    ),
    (
        "surrogate",
        "a.jsonl",
        lines(
            '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}'
        ),
        "a.jsonl:1: turn 1: '\\ud800' is half of a surrogate pair; repair the text [surrogate]",
    ),
    (
        "nul",
        "a.jsonl",
        lines(host(messages=turns(question="a\0b"))),
        "a.jsonl:1: turn 1: a NUL character in the text; remove it [control]",
    ),
    (
        "placeholders",
        "a.jsonl",
        lines(llava(("human", "<image><image> what"), ("gpt", "x"), image="a.jpg")),
        "a.jsonl:1: 2 <image> in the turns, but 1 images: write one for each image [placeholders]",
    ),
    (
        "placeholder no image",
        "a.jsonl",
        lines(llava(("human", "<image> what"), ("gpt", "x"))),
        "a.jsonl:1: 1 <image> in the turns, but 0 images: write one for each image [placeholders]",
    ),
    (
        "placeholder in answer",
        "a.jsonl",
        lines(llava(("human", "what"), ("gpt", "<image>"), image="a.jpg")),
        "a.jsonl:1: turn 2: <image> in an answer [placeholder-in-answer]",
    ),
    (
        "image number",
        "a.jsonl",
        lines(host(images=[3])),
        "a.jsonl:1: images: found 3, expected a path as text [image-type]",
    ),
    (
        "image nested",
        "a.jsonl",
        lines(host(images=[["a.jpg"]])),
        "a.jsonl:1: images: found ['a.jpg'], expected a path as text [image-type]",
    ),
    (
        "image dict",
        "a.jsonl",
        lines(host(images=[{"name": "x"}])),
        "a.jsonl:1: images: found {'name': 'x'}, expected a path as text [image-type]",
    ),
    (
        "image url",
        "a.jsonl",
        lines(host(images=["https://x.org/a.jpg"])),
        "a.jsonl:1: image 'https://x.org/a.jpg' is a URL; download it and give its path [image-url]",
    ),
    (
        "image abs",
        "a.jsonl",
        lines(host(images=["/etc/passwd"])),
        "a.jsonl:1: image '/etc/passwd' lies outside ROOT: give --images a folder that holds all [image-absolute]",
    ),
    (
        "image escape",
        "a.jsonl",
        lines(host(images=["../../a.jpg"])),
        "a.jsonl:1: image '../../a.jpg' leaves the stream folder by '..' [image-escape]",
    ),
    (
        "image base64 bad",
        "a.jsonl",
        lines(host(images=["data:image/png;base64,@@@"])),
        "a.jsonl:1: the image inside the sample is not base64: Only base64 data is allowed [image-data]",
    ),
    (
        "image base64 not image",
        "a.jsonl",
        lines(host(images=["data:image/png;base64,aGVsbG8="])),
        "a.jsonl:1: the image inside the sample is not an image: it begins with b'hello' [image-data]",
    ),
    (
        "image blank",
        "a.jsonl",
        lines(host(images=[" "])),
        "a.jsonl:1: an empty image path; remove it and its <image> [image-name]",
    ),
    (
        "image marker",
        "a.jsonl",
        lines(host(images=["<STRCVIT_IMAGE_ROOT>/a.jpg"])),
        "a.jsonl:1: image '<STRCVIT_IMAGE_ROOT>/a.jpg': expected a path [image-name]",
    ),
    (
        "image nul",
        "a.jsonl",
        lines(host(images=["a\0.jpg"])),
        "a.jsonl:1: image 'a\\x00.jpg' has a character that no path can have [image-name]",
    ),
    (
        "video",
        "a.jsonl",
        lines(host(videos=["a.mp4"])),
        "a.jsonl:1: videos: video and audio are not supported; leave it out [media]",
    ),
    (
        "id list",
        "a.jsonl",
        lines(host(id=[1])),
        "a.jsonl:1: id: found [1], expected text or a number [id-type]",
    ),
    (
        "task number list",
        "a.jsonl",
        lines(host(task=["a"])),
        "a.jsonl:1: task: found ['a'], expected text or a number [task-type]",
    ),
    (
        "answer missing",
        "a.jsonl",
        lines({"question": "a"}),
        "a.jsonl:1: 'question' has no 'answer' beside it [no-answer]",
    ),
    (
        "answer null",
        "a.jsonl",
        lines({"question": "a", "answer": None}),
        "a.jsonl:1: answer: the answer is missing; leave the sample out [no-answer]",
    ),
    (
        "answer bool",
        "a.jsonl",
        lines({"question": "a", "answer": True}),
        "a.jsonl:1: answer: found True, expected text [content-type]",
    ),
    (
        "question number",
        "a.jsonl",
        lines({"question": 1, "answer": "a"}),
        "a.jsonl:1: question: found 1, expected text [content-type]",
    ),
    (
        "csv columns",
        "a.csv",
        b"question,answer\na,b\na,b,c\n",
        "a.csv:3: found 3 cells, the header names 2: quote cells with commas [csv-columns]",
    ),
    (
        "csv quote",
        "a.csv",
        b'question,answer\n"a"x,b\n',
        "a.csv:2: not CSV: ',' expected after '\"' [csv]",
    ),
    (
        "csv no answer",
        "a.csv",
        b"question,answer\na,\n",
        "a.csv:2: 'question' has no 'answer' beside it [no-answer]",
    ),
    (
        "csv json",
        "a.csv",
        b'messages\n"[{""role"": ]"\n',
        'a.csv:2: column \'messages\': not JSON: Expecting value at column 11, near \'[{"role": ]\'; expected a sample such as {"messages": [...], "images": [...]} [csv-json]',
    ),
    (
        "csv not utf8",
        "a.csv",
        b"question,answer\na,\xff\n",
        "a.csv:2: not UTF-8: byte b'\\xff'; save the file as UTF-8 [encoding]",
    ),
    (
        "csv header only",
        "a.csv",
        b"question,answer\n",
        "error: a.csv: no samples to train on; expected at least one",
    ),
    (
        "parquet fake",
        "a.parquet",
        b"hello world",
        "error: a.parquet: not a Parquet file, it begins with b'hello world'",
    ),
    (
        "parquet cut",
        "a.parquet",
        b"PAR1hello world",
        "error: a.parquet: damaged Parquet file (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.)",
    ),
    (
        "number without end",
        "a.jsonl",
        lines('{"question": "a", "answer": "b", "x": 1e999}'),
        "a.jsonl:1: a field holds an infinite number, which JSON cannot express [json-number]",
    ),
    (
        "half a character in a field",
        "a.jsonl",
        lines('{"question": "a", "answer": "b", "x": "\\ud800"}'),
        "a.jsonl:1: a field holds half of a surrogate pair; repair the text [surrogate]",
    ),
    (
        "half a character in a path",
        "a.jsonl",
        lines('{"question": "a", "answer": "b", "image": "\\ud800.jpg"}'),
        "a.jsonl:1: image '\\ud800.jpg' has a character that no path can have [image-name]",
    ),
]


@pytest.mark.parametrize(("name", "file", "data", "message"), CASES, ids=[c[0] for c in CASES])
def test_malformed_input_is_refused_in_words(tmp_path, capsys, name, file, data, message):
    (tmp_path / file).write_bytes(data)
    source, out = str(tmp_path / file), tmp_path / "out"
    code = chunk(["--source", source, "--out", str(out), "--workers", "1"])
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "").replace(str(tmp_path), "ROOT")
    first = next(text for text in said.splitlines() if not text.startswith("Failed to read"))
    assert first == message
    assert code == (2 if message.startswith("error: ") else 1)
    assert [path.name for path in tmp_path.iterdir()] == [file], "something was left behind"


def test_there_are_more_than_forty_kinds():
    assert len({message for *_, message in CASES}) > 60


@pytest.mark.parametrize(("name", "file", "data", "message"), CASES, ids=[c[0] for c in CASES])
def test_check_finds_every_one_too(tmp_path, capsys, name, file, data, message):
    if file != "a.jsonl" or "image 'data" in message or "inside the sample" in message:
        pytest.skip("a stream's files are JSON Lines, and check refuses pictures in them by kind")
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "001.jsonl").write_bytes(data)
    report = tmp_path / "report.json"
    code = check([str(tmp_path), "--report", str(report), "--workers", "1"])
    found = {p["code"] for p in json.loads(report.read_text())["problems"]}
    assert code == 1
    assert found - {"manifest-missing"}


def test_all_problems_of_a_file_are_listed_at_once(tmp_path, capsys):
    rows = [host(), "{", host(images=[3]), "17", host()]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    out = tmp_path / "out"
    assert chunk(["--source", str(tmp_path / "a.jsonl"), "--out", str(out), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert [f"a.jsonl:{n}:" in said for n in range(1, 6)] == [False, True, True, True, False]
    assert "error: 3 bad samples, nothing was written." in said
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
