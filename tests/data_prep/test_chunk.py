"""data_prep.chunk: every form, every way to cut, memory, resume after a real kill."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import main as chunk
from data_prep.files import sha256_file
from data_prep.stream import open_stream

REPO = Path(__file__).resolve().parents[2]
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "yes"}]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def cut(source: Path, out: Path, *more: str) -> int:
    return chunk(["--source", str(source), "--out", str(out), "--workers", "1", *more])


def plain(count: int, **fields) -> list[dict]:
    return [
        {"id": f"s{n}", "question": f"What is {n}?", "answer": "yes", **fields}
        for n in range(count)
    ]


def ids(out: Path) -> list[list[str]]:
    return [[row["id"] for row in rows(path)] for path in sorted((out / "chunks").iterdir())]


EXPECTED = {
    "messages": [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "yes"},
    ],
    "images": ["images/a/b.jpg"],
    "task": "mine",
    "id": "7",
}
FORMS = {
    "host": {
        "messages": [{"role": t["role"], "content": t["content"]} for t in EXPECTED["messages"]],
        "images": ["a/b.jpg"],
        "id": "7",
    },
    "llava": {"id": 7, "image": "a/b.jpg", "conversations": TURNS},
    "llava list": {"id": "7", "image": ["a/b.jpg"], "conversations": TURNS},
    "image dict": {
        "id": "7",
        "images": [{"path": "a/b.jpg", "bytes": None}],
        "conversations": TURNS,
    },
    "placeholder missing": {
        "id": "7",
        "image": "./a//b.jpg",
        "conversations": [
            {"from": "user", "value": "\nWhat?"},
            {"from": "assistant", "value": "yes"},
        ],
    },
    "test form": {"question_id": 7, "image": "a/b.jpg", "text": "<image>\nWhat?", "answer": "yes"},
    "flat": {"id": 7, "image": "a/b.jpg", "query": "<image>\nWhat?", "response": "yes"},
    "parts": {
        "id": "7",
        "messages": [
            {
                "role": "User",
                "content": [
                    {"type": "image", "image": "a/b.jpg"},
                    {"type": "text", "text": "\nWhat?"},
                ],
            },
            {"role": "ASSISTANT", "content": "yes"},
        ],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_sample(tmp_path, form):
    assert cut(write(tmp_path / "a.jsonl", [FORMS[form]]), tmp_path / "out", "--task", "mine") == 0
    assert rows(tmp_path / "out/chunks/001.jsonl") == [EXPECTED]


def test_system_turns_and_unknown_fields_are_kept(tmp_path):
    record = {
        "system": "Be brief.",
        "conversations": [{**t, "value": t["value"].replace("<image>\n", "")} for t in TURNS],
        "origin": "x",
        "task": "t",
        "weight": 2,
    }
    cut(write(tmp_path / "a.jsonl", [record]), tmp_path / "out")
    (found,) = rows(tmp_path / "out/chunks/001.jsonl")
    assert [turn["role"] for turn in found["messages"]] == ["system", "user", "assistant"]
    assert (found["origin"], found["weight"], found["task"]) == ("x", 2, "t")
    assert found["id"] == "a-0000001"


@pytest.mark.parametrize("kind", ["jsonl", "crlf", "bom", "gz", "json", "csv", "parquet", "ndjson"])
def test_every_kind_of_file_gives_the_same_samples(tmp_path, kind):
    records = plain(50)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path = tmp_path / f"a.{ {'crlf': 'jsonl', 'bom': 'jsonl', 'gz': 'jsonl.gz'}.get(kind, kind) }"
    if kind == "json":
        path.write_text(json.dumps(records, indent=2))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["id", "question", "answer"])
            table.writeheader()
            table.writerows(records)
    elif kind == "parquet":
        Dataset.from_list(records).to_parquet(path)
    else:
        data = {"crlf": text.replace("\n", "\r\n\r\n"), "bom": "\ufeff" + text}.get(kind, text)
        path.write_bytes(gzip.compress(data.encode()) if kind == "gz" else data.encode())
    assert cut(path, tmp_path / "out", "--size", "20", "--no-shuffle") == 0
    assert ids(tmp_path / "out") == [
        [f"s{n}" for n in range(a, min(a + 20, 50))] for a in (0, 20, 40)
    ]


def test_csv_cells_stay_text(tmp_path):
    (tmp_path / "a.csv").write_text('id,question,answer\n007,"a, b?",NA\n')
    cut(tmp_path / "a.csv", tmp_path / "out")
    (found,) = rows(tmp_path / "out/chunks/001.jsonl")
    assert (found["id"], found["messages"][1]["content"]) == ("007", "NA")


def test_pictures_inside_samples_become_files(tmp_path):
    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    records = [
        {"image": uri, "conversations": TURNS},
        {"image": {"bytes": base64.b64encode(buffer.getvalue()).decode()}, "conversations": TURNS},
    ]
    cut(write(tmp_path / "a.jsonl", records), tmp_path / "out", "--task", "t")
    found = rows(tmp_path / "out/chunks/001.jsonl")
    assert found[0]["images"] == found[1]["images"]
    assert (tmp_path / "out" / found[0]["images"][0]).read_bytes() == buffer.getvalue()
    Dataset.from_list(
        [
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "question": "What?",
                "answer": "red",
            }
        ]
    ).to_parquet(tmp_path / "p.parquet")
    cut(tmp_path / "p.parquet", tmp_path / "out2")
    (found,) = rows(tmp_path / "out2/chunks/001.jsonl")
    assert (tmp_path / "out2" / found["images"][0]).read_bytes() == buffer.getvalue()


def test_parquet_with_times_nested_turns_and_bytes(tmp_path):
    moment = datetime(2026, 3, 1, 12)
    turns = [{**turn, "value": turn["value"].replace("<image>", "")} for turn in TURNS]
    row = {"conversations": turns, "when": moment, "weight": 1.5}
    Dataset.from_list([row] * 3).to_parquet(tmp_path / "a.parquet")
    options = ["--by", "time", "--column", "when", "--every", "1d"]
    assert cut(tmp_path / "a.parquet", tmp_path / "out", *options) == 0
    found = rows(tmp_path / "out/chunks/001.jsonl")
    assert [row["when"] for row in found] == ["2026-03-01T12:00:00"] * 3
    Dataset.from_list([row | {"blob": b"x"}]).to_parquet(tmp_path / "b.parquet")
    assert cut(tmp_path / "b.parquet", tmp_path / "no") == 1


def test_by_count_shuffles_inside_chunks_only(tmp_path):
    source = write(tmp_path / "a.jsonl", plain(100))
    cut(source, tmp_path / "out", "--size", "30", "--seed", "5")
    found = ids(tmp_path / "out")
    assert [len(chunk) for chunk in found] == [30, 30, 30, 10]
    for start, chunk_ids in zip(range(0, 100, 30), found, strict=True):
        assert sorted(chunk_ids) == sorted(f"s{n}" for n in range(start, min(start + 30, 100)))
        assert chunk_ids != sorted(chunk_ids, key=lambda name: int(name[1:]))
    cut(source, tmp_path / "again", "--size", "30", "--seed", "5")
    cut(source, tmp_path / "other", "--size", "30", "--seed", "6")
    assert ids(tmp_path / "again") == found != ids(tmp_path / "other")


def test_by_column_makes_a_chunk_a_value(tmp_path):
    records = [{**row, "meta": {"site": "bac"[n % 3]}} for n, row in enumerate(plain(30))]
    options = ["--by", "column", "--column", "meta.site", "--size", "8"]
    assert cut(write(tmp_path / "a.jsonl", records), tmp_path / "out", *options) == 0
    assert [len(chunk) for chunk in ids(tmp_path / "out")] == [8, 2, 8, 2, 8, 2]
    manifest = json.loads((tmp_path / "out/stream.json").read_text())
    assert [fact["label"] for fact in manifest["cut"]] == list("bbaacc")
    assert rows(tmp_path / "out/chunks/001.jsonl")[0]["meta"] == {"site": "b"}


@pytest.mark.parametrize("form", ["iso", "zone", "seconds", "milliseconds"])
def test_by_time_sorts_and_cuts_windows(tmp_path, form):
    days = [17, 2, 9, 1, 8, 16, 3]
    write_time = {
        "iso": lambda day: f"2026-03-{day:02d}",
        "zone": lambda day: f"2026-03-{day:02d}T02:00:00+02:00",
        "seconds": lambda day: 1772323200 + (day - 1) * 86400,
        "milliseconds": lambda day: str((1772323200 + (day - 1) * 86400) * 1000),
    }[form]
    records = [{**row, "when": write_time(day)} for row, day in zip(plain(7), days, strict=True)]
    options = ["--by", "time", "--column", "when", "--every", "7d", "--no-shuffle"]
    assert cut(write(tmp_path / "a.jsonl", records), tmp_path / "out", *options) == 0
    assert ids(tmp_path / "out") == [["s3", "s1", "s6"], ["s4", "s2"], ["s5", "s0"]]
    facts = json.loads((tmp_path / "out/stream.json").read_text())["cut"]
    span = {"from": "2026-03-01T00:00:00.000000Z", "to": "2026-03-03T00:00:00.000000Z"}
    assert facts[0] == {**span, "period": "2026-03-01"}


def test_holdout_keeps_images_apart_and_eval_reads_the_stream(tmp_path):
    records = [
        {"image": f"{n % 40}.png", "question": f"q {n}?", "answer": "a", "task": "xy"[n % 2]}
        for n in range(400)
    ]
    options = ["--holdout", "0.2", "--scorer", "vqa", "--scorer", "y=exact"]
    assert cut(write(tmp_path / "a.jsonl", records), tmp_path / "out", *options) == 0
    stream = open_stream(tmp_path / "out")
    tests = [record for task in stream.tasks for record in stream.test_records(task)]
    trained = [r for path in sorted((tmp_path / "out/chunks").iterdir()) for r in rows(path)]
    assert len(tests) + len(trained) == 400
    assert 0 < len(tests) < 200
    assert not {r["images"][0] for r in tests} & {r["images"][0] for r in trained}
    assert (stream.task("x").scorer, stream.task("y").scorer) == ("vqa", "exact")


def test_test_files_become_test_sets(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", plain(10))
    tests = write(tmp_path / "t.jsonl", plain(3) + plain(1))
    assert cut(source, tmp_path / "out", "--test", f"mine={tests}") == 1
    assert "t.jsonl:4: id 's0' occurs twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    write(tests, plain(3))
    assert cut(source, tmp_path / "out", "--test", f"mine={tests}") == 0
    assert len(open_stream(tmp_path / "out").test_records("mine")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "time"], "--by time needs --column NAME"),
        (["--by", "time", "--column", "x"], "--by time needs --every (such as 7d) or --size"),
        (["--by", "time", "--column", "x", "--every", "7x"], "--every 7x: expected a number and"),
        (["--column", "x"], "--column and --every go with --by time or --by column"),
        (["--size", "0"], "--size 0: expected at least 1"),
        (["--holdout", "1"], "--holdout 1.0: expected a share from 0 to below 1"),
        (["--scorer", "best"], "--scorer best: expected one of vqa"),
        (["--test", "a"], "--test a: expected NAME=FILE"),
        (
            ["--test", "a/b=x"],
            "task 'a/b' has a test set, so its name must also work as a file name",
        ),
        (["--task", "a b", "--holdout", "0.5"], "task 'a b' has a test set, so its name must also"),
        (["--images", "/no/such"], "--images /no/such: no such folder"),
        (["--by", "column", "--column", "no"], "column 'no' is missing; every sample must have it"),
        (["--image-column", "pics"], "--image-column pics: no sample has a value there"),
        (["--image-column", "Question"], "did you mean question? Columns found: answer, "),
        (["--scorer", "cats=exact"], "--scorer cats=exact: no task has this name"),
        (["--by", "time", "--column", "answer", "--size", "5"], "found 'yes', expected a time"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(tmp_path, capsys, options, message):
    source = write(tmp_path / "a.jsonl", plain(5))
    assert cut(source, tmp_path / "out", *options) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_rerun_is_a_no_op_and_changed_files_are_told(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", plain(50))
    out = tmp_path / "out"
    cut(source, out, "--size", "20")
    before = {p: (p.stat().st_mtime_ns, sha256_file(p)) for p in out.rglob("*") if p.is_file()}
    assert cut(source, out, "--size", "20") == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert {p: (p.stat().st_mtime_ns, sha256_file(p)) for p in before} == before
    assert cut(source, out, "--size", "10") == 2
    assert "generator.settings.size is 20, this run would make 10" in capsys.readouterr().err
    write(source, plain(51))
    assert cut(source, out, "--size", "20") == 2
    assert "Choose another --out, or delete the folder." in capsys.readouterr().err
    write(source, plain(50))
    (out / "chunks/002.jsonl").write_text("changed\n")
    assert cut(source, out, "--size", "20") == 2
    assert "the file was changed" in capsys.readouterr().err
    (out / "chunks/002.jsonl").unlink()
    assert cut(source, out, "--size", "20") == 0
    assert sha256_file(out / "chunks/002.jsonl") == before[out / "chunks/002.jsonl"][1]


def test_a_bad_sample_is_left_out_whatever_its_id_is(tmp_path):
    source = write(tmp_path / "a.jsonl", [*plain(2), {**plain(1)[0], "id": "\ud800"}])
    assert cut(source, tmp_path / "out", "--skip-bad") == 0
    (left,) = rows(tmp_path / "out/left_out.jsonl")
    assert (left["code"], left["sample"]) == ("surrogate", "\\ud800")


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert cut(write(tmp_path / "a.jsonl", plain(5)), tmp_path / "out") == 2
    assert "holds 'notes.txt' and no stream.json" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("phase", ["reading", "writing"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path, phase):
    """Kill -9 the real command in the middle of each pass, then give it again."""
    source = write(tmp_path / "a.jsonl", plain(15_000, note="x" * 50))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--size", "100", "--task", "t"]
    assert cut(source, whole, *options) == 0
    command = [sys.executable, "-m", "data_prep.chunk", "--source", str(source), "--out"]
    watched = killed / ".partial" / ("first_pass/state.json" if phase == "reading" else "chunks")
    process = subprocess.Popen(
        [*command, str(killed), *options, "--workers", "1"], cwd=REPO, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not _begun(watched) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "stream.json").exists()
    assert not (killed / "chunks").exists()
    state = json.loads((killed / ".partial/first_pass/state.json").read_text())
    assert state["number"] > 0
    assert state["finished"] == (phase == "writing")
    assert cut(source, killed, *options) == 0
    assert not (killed / ".partial").exists()
    for path in sorted((whole / "chunks").iterdir()):
        assert sha256_file(killed / "chunks" / path.name) == sha256_file(path)
    assert len(list((killed / "chunks").iterdir())) == 150


def _begun(path: Path) -> bool:
    if path.name == "chunks":
        return path.is_dir() and len(list(path.glob("*.jsonl"))) > 20
    return path.exists()


def test_the_result_passes_check(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    records = [
        {"image": "a.png", "conversations": [{**t, "value": t["value"] + str(n)} for t in TURNS]}
        for n in range(30)
    ]
    cut(write(tmp_path / "a.jsonl", records), tmp_path / "out")
    report = tmp_path / "report.json"
    assert check([str(tmp_path / "out"), "--report", str(report), "--workers", "1"]) == 0
    tasks = json.loads(report.read_text())["tasks"]
    assert Counter({"out": 30}) == Counter(
        {task: e["train"]["samples"] for task, e in tasks.items()}
    )
