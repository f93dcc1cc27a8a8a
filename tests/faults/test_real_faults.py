"""Faults of the real host: an image gone, memory that runs out, a clock that jumps, ranks changed.

After each the run stops with what is wrong, or goes on; in the end it is what it would have been.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from recipes.processes.run_lock import read_holder
from recipes.run_folder.layout import RunLayout
from tests.faults.real import needs_host, parameters_of, rows_of
from tests.faults.test_kills import FULL, STEPS, make_recipe, recorded, start, to_the_end
from tests.recipes.real_host import wait_while

pytestmark = [pytest.mark.slow, needs_host]
# Version 1 of the kernel's control groups, then version 2: folder and the file of the limit.
GROUPS = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]


@contextmanager
def little_memory(mebibytes: int) -> Iterator[Path | None]:
    """A control group; a process written into its cgroup.procs is killed above the limit.

    None where this machine does not let us make one.
    """
    group = next(
        (found for root, limit in GROUPS if (found := make_group(root, limit, mebibytes))), None
    )
    yield group
    if group is not None:
        with suppress(OSError):
            group.rmdir()


def make_group(root: str, limit: str, mebibytes: int) -> Path | None:
    """A control group that takes processes, without swap; None where the kernel refuses."""
    group = Path(root) / f"test-{os.getpid()}"
    trial = subprocess.Popen(["sleep", "60"])
    try:
        group.mkdir()
        if not (group / limit).exists():
            raise OSError(f"{root} is no control group with a limit of memory")
        (group / limit).write_text(str(mebibytes * 2**20), encoding="utf-8")
        (group / "cgroup.procs").write_text(str(trial.pid), encoding="utf-8")
    except OSError:
        with suppress(OSError):
            group.rmdir()
        return None
    finally:
        trial.kill()
        trial.wait()
    for name in ("memory.swappiness", "memory.swap.max"):
        if (group / name).exists():
            with suppress(OSError):
                (group / name).write_text("0", encoding="utf-8")
    return group


def end_of(recipe: Path, run: Path, *overrides: str) -> str:
    """What a run prints that must stop by itself with exit code 1."""
    process = start(recipe, run, *overrides)
    assert process.wait() == 1, process.text()
    out = process.text()
    assert "Traceback" not in out, out
    return out


def few_answers(folder: Path) -> Path:
    """The recipe of the kills, with one question and only at the ends of the stream."""
    path = make_recipe(folder, 1)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["schedule"]["per_device_batch"] = 2
    values["eval"] |= {"every": 3, "limit": 1, "tasks": ["Fin"]}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_missing_image_and_memory_and_clock(tmp_path: Path) -> None:
    recipe, run = few_answers(tmp_path), tmp_path / "run"
    layout, one = RunLayout(run), "data.chunks=1"
    rows = (tmp_path / "stream/chunks/001.jsonl").read_text(encoding="utf-8").splitlines()
    image = tmp_path / "stream" / json.loads(rows[len(rows) // 2])["images"][0]
    image.rename(image.with_suffix(".gone"))
    out = end_of(recipe, run, one)
    assert f"{image} of {tmp_path / 'stream/chunks/001.jsonl'}:" in out
    image.with_suffix(".gone").rename(image)

    with little_memory(150) as group:
        if group is not None:
            process = start(recipe, run, one, "launcher.resident=false")  # memory of its own
            while not (child := read_holder(layout.lock).get("child")):
                assert process.poll() is None
                time.sleep(0.01)
            (group / "cgroup.procs").write_text(str(child), encoding="utf-8")
            assert process.wait() == 1, process.text()
            assert "was ended by SIGKILL (out of memory? see dmesg)" in process.text()

    for path in run.rglob("*"):
        os.utime(path, (4e9, 4e9))  # as if the clock had been far ahead
    to_the_end(recipe, run, one)
    trackers = "swift.report_to=tensorboard"
    to_the_end(recipe, tmp_path / "undisturbed", one, trackers)
    assert list((tmp_path / "undisturbed/chunks/001/trackers").glob("events.out.tfevents.*"))
    assert parameters_of(layout, 1) == parameters_of(RunLayout(tmp_path / "undisturbed"), 1)
    assert rows_of(layout) == [("0", "Fin", "1"), ("1", "Fin", "1")]


@pytest.mark.skipif(not FULL, reason="set FULL_FAULTS=1 (make faults)")
def test_the_number_of_processes_changes_between_chunks(tmp_path: Path) -> None:
    recipe, run = few_answers(tmp_path), tmp_path / "run"
    layout = RunLayout(run)
    for chunk, processes in ((1, 1), (2, 2)):
        process = start(recipe, run, f"launcher.nproc={processes}", "launcher.resident=false")
        while not recorded(layout, chunk):
            assert process.poll() is None, process.text()
            time.sleep(0.02)
        process.kill()
    process = start(recipe, run, "launcher.nproc=1")
    wait_while(process, layout.host(3) / "checkpoint-2" / "trainer_state.json")
    process.kill()
    out = end_of(recipe, run, "launcher.nproc=2")
    assert "inside a chunk their number cannot change" in out
    to_the_end(recipe, run, "launcher.nproc=1")
    manifest = json.loads(layout.manifest.read_text(encoding="utf-8"))
    assert [session["processes"] for session in manifest["sessions"]] == [1, 2, 1, 2, 1]
    state = json.loads(layout.state.read_text(encoding="utf-8"))
    assert [chunk["steps"] for chunk in state["chunks"]] == [0, STEPS, STEPS, STEPS]
    assert rows_of(layout) == [("0", "Fin", "1"), ("3", "Fin", "1")]
    assert len({parameters_of(layout, chunk) for chunk in (1, 2, 3)}) == 3
