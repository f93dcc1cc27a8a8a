"""Faults of files, locks and machines: after each the run goes on, or stops and says what to do.

The run is one of two chunks whose first is done, with the stand-in host; kills at random moments
are in tests/recipes/run/test_runner.py, the real host's in test_kills.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recipes import REPO
from recipes.cli import main
from recipes.processes import host_process
from recipes.processes.command import Command
from recipes.processes.resident.worker import Worker
from recipes.processes.run_lock import RunLock, boot_id
from recipes.run import evaluation
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from tests.recipes import fake_host
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream

WEIGHTS = "chunks/001/adapter/adapter_model.safetensors"


@dataclass
class Half:
    """A run that has done chunk 1 of 2."""

    root: Path
    recipe: Path
    run: Path
    stream: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Half:
    root = tmp_path_factory.mktemp("half")
    stream = write_stream(root / "stream")
    write_model(root / "model")
    recipe = write_recipe(root / "toy.yaml", recipe_values(stream, root / "run", root / "model"))
    command = [sys.executable, "-m", "tests.recipes.fake_run", str(recipe)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(root / "run" / "chunks" / "002")
    path = root / "run" / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"done": 1, "finished": False, "chunks": content["chunks"][:2]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return Half(root, recipe, root / "run", stream)


@pytest.fixture
def half(original: Half, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Half]:
    """A copy of the run, on the same stream, which is mended afterwards."""
    monkeypatch.chdir(REPO)
    for place in ((Command, "argv"), (Worker, "start"), (host_process, "start_process")):
        monkeypatch.setattr(*place, getattr(*place))  # as they are, afterwards
    monkeypatch.setattr(evaluation, "write_report", evaluation.write_report)
    fake_host.install()
    shutil.copytree(original.run, tmp_path / "run")
    kept = {path: path.read_bytes() for path in original.stream.rglob("*.json*")}
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield Half(tmp_path, original.recipe, tmp_path / "run", original.stream)
    for path, content in kept.items():
        path.write_bytes(content)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def go_on(half: Half, *words: str) -> int:
    return main([str(half.recipe), f"run_dir={half.run}", *words])


def test_the_end_of_the_run_writes_the_report_once(
    half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []

    def note(layout: RunLayout, say: object, last: bool = False) -> None:
        written.append(last)

    monkeypatch.setattr(evaluation, "write_report", note)
    assert go_on(half) == 0
    assert written == [True], "not after the last chunk, too"


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("scorer", [None, "label"])
def test_killed_before_the_last_report_the_same_command_writes_it(
    half: Half, monkeypatch: pytest.MonkeyPatch, scorer: str | None
) -> None:
    report = RunLayout(half.run).report

    def killed(layout: RunLayout, say: object, last: bool = False) -> None:
        raise Killed

    def write(layout: RunLayout, say: object, last: bool = False) -> None:
        report.write_text(f"after chunk {load_state(layout.state).done}", encoding="utf-8")

    words = []
    if scorer:  # another scorer for a finished run
        assert go_on(half) == 0
        words = [f"eval.scorer={scorer}"]
    report.write_text("after chunk 1", encoding="utf-8")
    monkeypatch.setattr(evaluation, "write_report", killed)
    with pytest.raises(Killed):
        go_on(half, *words)
    monkeypatch.setattr(evaluation, "write_report", write)
    assert go_on(half, *words) == 0
    assert report.read_text(encoding="utf-8") == "after chunk 2"
    assert load_state(RunLayout(half.run).state).finished


def cut(name: str) -> Callable[[Half], None]:
    def fault(half: Half) -> None:
        path = half.run / name
        path.write_bytes(path.read_bytes()[:-5])

    return fault


def alter(name: str) -> Callable[[Half], None]:
    def fault(half: Half) -> None:
        path = half.run / name
        path.write_bytes(path.read_bytes()[:-1] + b"!")

    return fault


def remove(name: str) -> Callable[[Half], None]:
    return lambda half: (half.run / name).unlink()


def chunk_changed(half: Half) -> None:
    path = half.stream / "chunks" / "002.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("red", "blue"), encoding="utf-8")


def chunk_missing(half: Half) -> None:
    (half.stream / "chunks" / "002.jsonl").unlink()


def newer_state(half: Half) -> None:
    path = half.run / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["chunks"][1]["tokens"] = 7
    path.write_text(json.dumps(content), encoding="utf-8")


def lock_of_the_dead(half: Half) -> None:
    holder = {"pid": 2**22 - 1, "start": 1, "machine": socket.gethostname(), "boot": boot_id()}
    holder |= {"child": 2**22 - 2, "child_start": 2}
    (half.run / "run.lock").write_text(json.dumps(holder), encoding="utf-8")


def lock_cut_off(half: Half) -> None:
    (half.run / "run.lock").write_text('{"pid": 12', encoding="utf-8")


def half_an_adapter(half: Half) -> None:
    """A kill while the adapter was being installed leaves a folder with another name."""
    shutil.copytree(half.run / "chunks/001/adapter", half.run / "chunks/002/.adapter.x1y2")


def clock_jumped(half: Half) -> None:
    for path in half.run.rglob("*"):
        os.utime(path, (4e9, 4e9))


@dataclass
class Row:
    """A fault and its outcome: words of the message with which the run stops, or none."""

    name: str
    fault: Callable[[Half], None]
    words: list[str] = field(default_factory=list)


ROWS = [
    Row("truncated adapter", cut(WEIGHTS), ["was changed after", "bring the file back"]),
    Row("altered adapter", alter(WEIGHTS), ["was changed after", "another run_dir"]),
    Row("adapter gone", remove(WEIGHTS), ["adapter_model.safetensors is missing"]),
    Row("config altered", alter("chunks/001/adapter/adapter_config.json"), ["was changed after"]),
    Row("truncated state", cut("state.json"), ["state.json is damaged", "restore it from a copy"]),
    Row("newer state", newer_state, ["was written by a newer version", "or a later one"]),
    Row("chunk changed", chunk_changed, ["002.jsonl was changed", "prepare the stream again"]),
    Row("chunk gone", chunk_missing, ["002.jsonl is missing", "prepare the stream again"]),
    Row("stale lock", lock_of_the_dead),
    Row("lock cut off", lock_cut_off),
    Row("half an adapter", half_an_adapter),
    Row("a clock that jumped", clock_jumped),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-"))
def test_each_fault_has_its_outcome(
    half: Half, row: Row, capsys: pytest.CaptureFixture[str]
) -> None:
    row.fault(half)
    before = (half.run / "state.json").read_bytes()
    code = go_on(half)
    err = capsys.readouterr().err
    if not row.words:
        assert code == 0, err
        rows = (half.run / "matrix.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert len(rows) == len(set(line.rsplit(",", 2)[0] for line in rows)) == 6
        return
    assert code == 1
    assert all(word in err for word in ["stopped:", *row.words]), err
    assert "Traceback" not in err
    assert (half.run / "state.json").read_bytes() == before


def test_variables_that_change_numbers_are_compared(
    half: Half, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_PIXELS", "50176")
    assert go_on(half) == 1
    assert "MAX_PIXELS: None at its start, '50176' now" in capsys.readouterr().err
    monkeypatch.delenv("MAX_PIXELS")
    assert go_on(half) == 0


def test_without_locks_the_way_out_is_told(
    half: Half, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert go_on(half) == 1
    assert "this file system has no locks (Lustre" in capsys.readouterr().err


def test_what_a_chunk_or_the_host_lacks_is_told_before_anything_starts(
    half: Half, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/1/fdinfo/nowhere")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))
    (half.stream / "chunks" / "002.jsonl").write_text("", encoding="utf-8")
    assert (
        main([str(half.recipe), f"run_dir={half.root}/new", "launcher.deepspeed=zero4.json"]) == 1
    )
    err = capsys.readouterr().err
    for words in (
        "002.jsonl is empty",
        "launcher.deepspeed: zero4.json cannot be read",
        "HF_HOME (now",
    ):
        assert words in err


def test_two_orchestrators(half: Half, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(half.run / "run.lock"):
        assert go_on(half) == 1
    assert f"is being worked on by process {os.getpid()}" in capsys.readouterr().err
    assert go_on(half) == 0


def test_out_of_memory(
    half: Half, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KILL_AT", "2")
    assert go_on(half) == 1
    assert "was ended by SIGKILL (out of memory? see dmesg)" in capsys.readouterr().err
    monkeypatch.delenv("FAKE_KILL_AT")
    assert go_on(half) == 0
    assert "resuming at step 1 of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mount it writable"),
    ],
)
def test_what_the_system_refuses_is_told_with_advice(
    half: Half,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    advice: str,
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert go_on(half) == 1
    err = capsys.readouterr().err
    assert advice in err
    assert "repeat the command" in err
    assert go_on(half) == 0


def may_mount() -> bool:
    with_tools = shutil.which("unshare") is not None
    return with_tools and subprocess.run(["unshare", "-m", "true"]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="may not mount a file system (needs root)")
@pytest.mark.parametrize(
    ("mount", "words", "mend"),
    [
        ("mount -t tmpfs -o size=24k tmpfs", "make room", "mount -o remount,size=64m"),
        ("mount -t tmpfs -o ro tmpfs", "Read-only file system", "mount -o remount,rw"),
    ],
    ids=["disk-full", "read-only"],
)
def test_on_a_real_file_system(original: Half, tmp_path: Path, mount, words, mend) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run = f"{sys.executable} -m tests.recipes.fake_run {original.recipe} run_dir={disk}/run"
    script = (
        f"{mount} {disk} && {{ {run}; echo first $?; {mend} {disk} && {run}; echo second $?; }}"
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], cwd=REPO, capture_output=True, text=True
    )
    assert "first 1" in done.stdout, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "second 0" in done.stdout, done.stderr
