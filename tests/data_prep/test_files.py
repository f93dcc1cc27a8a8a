"""data_prep.files: the place in every error, torn lines, odd line separators, atomic writes."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.files import (
    complete_lines,
    numbered_jsonl,
    read_json,
    read_jsonl,
    sha256_file,
    write_blocks,
    write_json,
    write_jsonl,
    write_text,
)
from strlora_tuner.saved import replace_file

REPO = Path(__file__).resolve().parents[2]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_lines_are_numbered_and_blank_ones_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n\n  \n{"a": 2}\r\n{"a": 3}')
    assert list(numbered_jsonl(path)) == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n\n{"a": \n', "a.jsonl:3: not JSON (Expecting value"),
        (b'{"a": 1}\n[1]\n', "a.jsonl:2: expected a JSON object, found '[1]'"),
        (b'{"a": 1}\nnull\n', "a.jsonl:2: expected a JSON object, found 'null'"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        (b'{"a": 1}{"a": 2}\n', "a.jsonl:1: not JSON (Extra data"),
    ],
)
def test_a_bad_line_is_named(tmp_path, data, message):
    with pytest.raises(ValueError, match=r"a\.jsonl") as caught:
        read_jsonl(write(tmp_path / "a.jsonl", data))
    assert message in str(caught.value)


def test_a_torn_tail_is_left_out_on_request_only(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": 2')
    assert read_jsonl(path, torn_tail=True) == [{"a": 1}]
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not JSON"):
        read_jsonl(path)
    # Only the end of a file can be torn: a broken line that ends is an error, and so is one before.
    for data in (b'{"a": 1}\n{"a": 2\n', b'{"a": 1\n{"a": 2}'):
        with pytest.raises(ValueError, match="not JSON"):
            read_jsonl(write(path, data), torn_tail=True)


def test_a_byte_order_mark_is_skipped(tmp_path):
    assert read_jsonl(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n')) == [{"a": 1}]


def test_other_line_separators_stay_inside_a_record(tmp_path):
    path, records = tmp_path / "a.jsonl", [{"a": "x\u2028y\u2029z\x85w\x0cv"}, {"a": "é\n"}]
    digest = write_jsonl(path, records)
    assert digest == sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_bytes().count(b"\n") == 2
    assert "x\u2028y" in path.read_text("utf-8")  # readable, not escaped
    assert read_jsonl(path) == records


def test_json_errors_name_file_and_line(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json:2: not JSON"):
        read_json(write(tmp_path / "a.json", b'{"a":\n}'))
    with pytest.raises(ValueError, match=r"a\.json:2: not UTF-8 .*save the file as UTF-8"):
        read_json(write(tmp_path / "a.json", b'{"a":\n"caf\xe9"}'))
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_json_has_no_word_for_infinity(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("inf")})
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(tmp_path / "a.jsonl", [{"a": float("nan")}])
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"a": float("inf")}, allow_nan=True)
    assert read_json(tmp_path / "a.json") == {"a": float("inf")}


def test_complete_lines_leave_out_what_is_still_being_written(tmp_path):
    path = write(tmp_path / "a.log", b"one\ntw\xffo\nthr")
    assert complete_lines(path) == ["one\n", "tw\ufffdo\n"]


def test_a_writer_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def blocks() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_blocks(path, blocks())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from data_prep.files import write_blocks"
        "\ndef blocks():\n    yield b'n' * (1 << 21)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_blocks(Path(sys.argv[1]), blocks())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=REPO)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def saved(path: Path) -> None:
    replace_file(path, lambda temporary: temporary.write_text("x" * 5000))


@pytest.mark.parametrize("write_whole", [lambda path: write_text(path, "x" * 5000), saved])
def test_bytes_are_on_the_disk_before_the_name_stands_over_them(tmp_path, monkeypatch, write_whole):
    path, synced, sync = tmp_path / "a.txt", [], os.fsync

    def noted(descriptor: int) -> None:
        info = os.fstat(descriptor)
        synced.append((info.st_ino, info.st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_whole(path)
    assert (path.stat().st_ino, 5000, False) in synced


def test_written_files_can_be_read_by_others_and_folders_are_made(tmp_path):
    path = tmp_path / "b" / "c" / "a.txt"
    write_text(path, "x")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
