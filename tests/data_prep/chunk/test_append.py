"""--append: what was there stays byte for byte, batches are recorded, kills leave old or new."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check import pictures
from data_prep.check.__main__ import main as check
from data_prep.chunk.__main__ import append_source
from data_prep.chunk.__main__ import main as chunk
from data_prep.compose.__main__ import main as compose
from data_prep.files import sha256_file
from data_prep.images import Picture, inspect
from data_prep.stream import open_stream
from data_prep.stream_writer import BadSamples

REPO = Path(__file__).resolve().parents[3]
HEADING = "file,question,answer,day"


def month(folder: Path, number: int, count: int = 12, name: str = "") -> Path:
    """Write a table of one month and its pictures, each of another size and colour."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    lines = [HEADING]
    for n in range(count):
        picture = f"m{number}-{n}.png"
        shade = (number * 37 % 256, n * 19 % 256, (number * 53 + n * 71) % 256)
        image = Image.new("RGB", (24, 24), shade)
        image.paste((255 - shade[0], shade[2], shade[1]), (n, number, n + 9, number + 9 + n % 5))
        image.save(folder / "photos" / picture)
        lines.append(f"{picture},What is {number}-{n}?,{shade[1]},2026-{number:02d}-{n + 1:02d}")
    path = folder / (name or f"month{number}.csv")
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def made(folder: Path) -> Path:
    source, out = month(folder, 1), folder / "shop"
    time_options = ["--by", "time", "--column", "day", "--every", "1mo", "--holdout", "0.3"]
    options = ["--images", str(folder / "photos"), "--workers", "1", *time_options]
    assert chunk(["--source", str(source), "--out", str(out), *options]) == 0
    return out


def append(stream: Path, source: Path, *more: str) -> int:
    return chunk(["--append", str(stream), "--source", str(source), "--workers", "1", *more])


def content(stream: Path) -> dict[str, str]:
    """Return the hash of every chunk and test file that the manifest names."""
    opened = open_stream(stream)
    files = [chunk.file for chunk in opened.chunks]
    files += [test.test.file for test in opened.tests.values()]
    return {file: sha256_file(stream / file) for file in files}


def test_a_month_is_appended_with_the_options_of_the_first(tmp_path, capsys):
    stream = made(tmp_path)
    before, was = content(stream), sha256_file(stream / "stream.json")
    facts = {name: (stream / name).stat().st_mtime_ns for name in before}
    assert append(stream, month(tmp_path, 2)) == 0
    assert "added 1 chunks with" in capsys.readouterr().out
    after, opened = content(stream), open_stream(stream)
    assert before.items() < after.items()
    assert {name: (stream / name).stat().st_mtime_ns for name in before} == facts
    assert sorted(after.keys() - before) == ["chunks/002.jsonl", "test/shop.2026-02.jsonl"]
    assert [opened.chunk_name(n) for n in (1, 2)] == ["2026-01", "2026-02"]
    assert opened.tests["shop.2026-02"].chunk == 2
    opened.verify_chunk(2)
    (batch,) = opened.facts["batches"]
    assert batch["before"] == was
    assert batch["files"] == {name: after[name] for name in after.keys() - before}
    assert batch["generator"]["settings"]["sources"][0]["sha256"] == sha256_file(
        tmp_path / "month2.csv"
    )
    assert batch["time"].startswith("20")
    assert check([str(stream)]) == 0
    assert not list(stream.glob(".*"))


def test_the_same_source_twice_is_there_once(tmp_path, capsys):
    stream = made(tmp_path)
    source = month(tmp_path, 2)
    assert append(stream, source) == 0
    after = sha256_file(stream / "stream.json")
    assert append(stream, source) == 0
    assert append(stream, tmp_path / "month1.csv") == 0  # what the stream was made from
    assert capsys.readouterr().out.count("complete, nothing to do") == 2
    assert sha256_file(stream / "stream.json") == after


def test_the_same_bytes_under_another_name_are_there_with_the_same_pictures(tmp_path, capsys):
    stream = made(tmp_path)
    copy = shutil.copy(tmp_path / "month1.csv", tmp_path / "copy.csv")
    assert append(stream, Path(copy)) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    month(tmp_path / "new", 1)  # a table of the same bytes, its pictures in another folder
    other = tmp_path / "new/month1.csv"
    assert other.read_bytes() == (tmp_path / "month1.csv").read_bytes()
    assert append(stream, other, "--images", str(tmp_path / "new/photos")) == 0
    assert len(open_stream(stream).chunks) == 2


def test_an_append_decodes_the_pictures_of_its_batch_alone(tmp_path, monkeypatch):
    stream = made(tmp_path)
    assert append(stream, month(tmp_path, 2)) == 0  # the first one decodes the old ones, too
    decoded: list[str] = []

    def noted(path: Path, name: str, near: bool = False) -> Picture:
        decoded.append(path.name)
        return inspect(path, name, near)

    monkeypatch.setattr(pictures, "inspect", noted)
    changed = tmp_path / "photos/m1-0.png"
    Image.open(changed).rotate(90).save(changed)
    source = month(tmp_path, 3)
    shutil.copy(tmp_path / "photos/m2-0.png", tmp_path / "photos/m3-0.png")
    assert append(stream, source) == 0
    assert sorted(decoded) == sorted(["m1-0.png", *(f"m3-{n}.png" for n in range(12))])
    found = open_stream(stream).facts["batches"][-1]["found"]
    assert found == one_that_decodes_everything(tmp_path, source)


def one_that_decodes_everything(folder: Path, source: Path) -> dict[str, int]:
    """What an append of `source` finds that has no notes of the pictures before."""
    stream = folder / "again"
    shutil.copytree(folder / "shop", stream, symlinks=True)
    manifest = json.loads((stream / "stream.json").read_text())
    manifest["batches"].pop()
    chunk = manifest["chunks"].pop()
    manifest["tasks"].pop("shop.2026-03")
    (stream / chunk["file"]).unlink()
    (stream / "stream.json").write_text(json.dumps(manifest))
    (stream / "pictures.jsonl").unlink()
    assert append(stream, source) == 0
    return open_stream(stream).facts["batches"][-1]["found"]


def test_notes_that_cannot_be_read_are_as_good_as_none(tmp_path):
    stream = made(tmp_path)
    (stream / "pictures.jsonl").write_text('{"name": 1}\n[]\nnonsense')
    assert append(stream, month(tmp_path, 2)) == 0
    notes = [json.loads(line) for line in (stream / "pictures.jsonl").read_text().splitlines()]
    assert len(notes) == 24


def test_a_refused_batch_leaves_no_link_that_the_next_one_would_take(tmp_path):
    stream = made(tmp_path)
    for name in ("bad", "good"):
        month(tmp_path / name, 2)
    (tmp_path / "bad/photos/m2-0.png").write_bytes(b"no picture")

    def arrived(name: str) -> None:
        folder = tmp_path / name
        append_source(stream, folder / "month2.csv", folder, {}, lambda: None, workers=1)

    for name in ("bad", "good"):
        source = tmp_path / name / "month2.csv"
        source.write_text(source.read_text().replace("m2-", "photos/m2-"))
    with pytest.raises(BadSamples) as refused:
        arrived("bad")
    assert "does not decode" in str(refused.value.problems[0]) or "not an image" in str(
        refused.value.problems[0]
    )
    assert len(open_stream(stream).chunks) == 1
    arrived("good")
    record = json.loads((stream / "chunks/002.jsonl").read_text().splitlines()[0])
    assert (stream / record["images"][0]).resolve().is_relative_to(tmp_path / "good")
    assert check([str(stream)]) == 0


def test_the_first_command_finds_its_stream_complete_when_it_has_grown(tmp_path, capsys):
    stream = made(tmp_path)
    append(stream, month(tmp_path, 2))
    after = sha256_file(stream / "stream.json")
    made(tmp_path)
    assert "complete, nothing to do" in capsys.readouterr().out
    assert sha256_file(stream / "stream.json") == after


def test_duplicates_and_leaks_are_told_with_both_places(tmp_path, capsys):
    stream = made(tmp_path)
    trained = json.loads((stream / "chunks/001.jsonl").read_text().splitlines()[0])
    tested = json.loads((stream / "test/shop.2026-01.jsonl").read_text().splitlines()[0])
    source = month(tmp_path, 2)
    for name, record in (("again", trained), ("leak", tested)):
        shutil.copy(stream / record["images"][0], tmp_path / f"photos/{name}.png")
        question = record["messages"][0]["content"].removeprefix("<image>")
        answer = record["messages"][1]["content"]
        with source.open("a") as file:
            file.write(f"{name}.png,{question},{answer},2026-02-20\n")
    assert append(stream, source, "--holdout", "0") == 0
    told = capsys.readouterr().out
    assert "between the new samples and those before:" in told
    assert f"the same sample as {stream}/chunks/001.jsonl:1 [duplicate-sample]" in told
    assert f"the test sample {stream}/test/shop.2026-01.jsonl:1 asks the same" in told
    assert ".append" not in told
    found = open_stream(stream).facts["batches"][0]["found"]
    assert (found["duplicate-sample"], found["leak-sample"]) == (1, 1)


def test_pictures_of_another_folder_get_a_link_of_their_own(tmp_path):
    stream = made(tmp_path)
    source = month(tmp_path / "new", 2)
    assert append(stream, source, "--images", str(tmp_path / "new/photos")) == 0
    opened = open_stream(stream)
    line = json.loads(opened.chunk_file(2).read_text().splitlines()[0])
    assert line["images"][0].startswith("images2/")
    assert (stream / line["images"][0]).is_file()
    assert list(opened.facts["links"]) == ["images", "images2"]
    assert check([str(stream)]) == 0


def test_test_sets_without_periods_stand_beside_the_old_one(tmp_path):
    source, out = month(tmp_path, 1), tmp_path / "shop"
    options = ["--images", str(tmp_path / "photos"), "--holdout", "0.3", "--size", "5"]
    assert chunk(["--source", str(source), "--out", str(out), "--workers", "1", *options]) == 0
    chunks = len(open_stream(out).chunks)
    assert append(out, month(tmp_path, 2), "--test", f"shop={month(tmp_path, 3)}") == 2  # one name
    assert append(out, month(tmp_path, 2), "--test", f"extra={month(tmp_path, 3)}") == 0
    stream = open_stream(out)
    assert stream.tasks == ["shop", "shop.batch2", "extra"]
    assert stream.tests["shop.batch2"].chunk == chunks + 1
    ids = [record["id"] for record in stream.test_records("shop.batch2")]
    assert all(name.startswith("b2-month2-") for name in ids)
    assert check([str(out)]) == 0


def test_a_bad_batch_changes_nothing(tmp_path, capsys):
    stream = made(tmp_path)
    before = {p: p.read_bytes() for p in stream.rglob("*") if p.is_file()}
    source = month(tmp_path, 2)
    with source.open("a") as file:
        file.write("x.png,,red,2026-02-01\n")
    assert append(stream, source) == 1
    assert "month2.csv:14" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in stream.rglob("*") if p.is_file()} == before
    assert append(tmp_path / "none", source) == 2
    assert "no stream.json there; make the stream with --out" in capsys.readouterr().err


def test_what_is_left_out_is_that_of_the_batch(tmp_path, capsys):
    stream = made(tmp_path)
    (stream / "left_out.jsonl").write_text("{}\n")  # of the first batch
    capsys.readouterr()
    assert append(stream, month(tmp_path, 2)) == 0
    assert "left out" not in capsys.readouterr().out
    bad = month(tmp_path, 3)
    bad.write_text(bad.read_text() + "m3-0.png,Which?,,2026-03-20\n")
    assert append(stream, bad, "--skip-bad") == 0
    told = stream / "left_out.batch3.jsonl"
    assert f"{told}: 1 bad samples were left out" in capsys.readouterr().out
    assert len(told.read_text().splitlines()) == 1


def test_a_cleaned_copy_grows_as_its_source_would(tmp_path):
    stream = made(tmp_path)
    assert check([str(stream), "--fix"]) == 0
    assert append(tmp_path / "shop.clean", month(tmp_path, 2)) == 0
    assert append(stream, tmp_path / "month2.csv") == 0
    assert content(tmp_path / "shop.clean") == content(stream)


def test_compose_appends_chunks_of_new_files(tmp_path):
    for task in ("a", "b"):
        rows = [{"question": f"{task}{n}?", "answer": "yes"} for n in range(20)]
        for number, part in enumerate((rows[:10], rows[10:]), start=1):
            path = tmp_path / f"tasks{number}/{task}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "tasks2/test").mkdir()
    (tmp_path / "tasks2/test/a.jsonl").write_text('{"question": "t?", "answer": "no"}\n')
    out = tmp_path / "mine"
    shares = ["--dirichlet", "1", "--chunks", "2", "--size", "4"]
    common = ["--workers", "1", "--source"]
    assert compose(["--out", str(out), *shares, *common, str(tmp_path / "tasks1")]) == 0
    before = content(out)
    assert compose(["--append", str(out), "--chunks", "2", *common, str(tmp_path / "tasks2")]) == 0
    after, stream = content(out), open_stream(out)
    assert before.items() < after.items()
    assert [entry.samples for entry in stream.chunks] == [4, 4, 4, 4]
    assert stream.tasks == ["a"]
    lines = [json.loads(line) for line in stream.chunk_file(3).read_text().splitlines()]
    assert {int(line["messages"][0]["content"][1:-1]) >= 10 for line in lines} == {True}
    assert all(line["id"].startswith("b2-") for line in lines)
    (tmp_path / "tasks3").mkdir()
    shutil.copy(tmp_path / "tasks1/a.jsonl", tmp_path / "tasks3/a.jsonl")
    again = ["--append", str(out), "--chunks", "1", "--images", str(tmp_path / "tasks1"), *common]
    assert compose([*again, str(tmp_path / "tasks3")]) == 0  # one file of the first batch
    assert content(out) == after


def killed_at_rename(number: int, stream: Path, source: Path) -> bool:
    """Append in a child that dies before its rename `number`; return whether it died."""
    child = os.fork()
    if not child:
        replace, left = os.replace, iter(range(number))

        def replace_or_die(*args: object) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)

        os.replace = replace_or_die
        code = append(stream, source)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_before_any_rename_leaves_the_old_stream_or_the_new(tmp_path):
    stream = made(tmp_path)
    source, old = month(tmp_path, 2), content(stream)
    whole = tmp_path / "whole"
    shutil.copytree(stream, whole, symlinks=True)
    assert append(whole, source) == 0
    new = content(whole)
    renames = 0
    while killed_at_rename(renames, stream, source):
        assert content(stream) == old
        renames += 1
    assert renames >= 8  # two chunk and test files, made and moved, and two manifests at least
    assert content(stream) == new
    assert not list(stream.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("APPEND_KILLS", "1"))))
def test_a_kill_at_any_moment_leaves_the_old_stream_or_the_new(tmp_path, seed):
    stream = made(tmp_path)
    source, old = month(tmp_path, 2), content(stream)
    whole = tmp_path / "whole"
    shutil.copytree(stream, whole, symlinks=True)
    seconds = append_as_process(whole, source, 60)
    new = content(whole)
    assert new != old
    for share in random.Random(seed).sample(range(50, 105), 3):
        append_as_process(stream, source, seconds * share / 100)
        assert content(stream) in (old, new)
    assert append(stream, source) == 0
    assert content(stream) == new
    assert not list(stream.glob(".*"))


def append_as_process(stream: Path, source: Path, seconds: float) -> float:
    """Append in a process that is killed after `seconds`; return how long it ran."""
    command = [sys.executable, "-m", "data_prep.chunk", "--append", str(stream)]
    started = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*command, "--source", str(source), "--workers", "1"],
            cwd=REPO,
            capture_output=True,
            timeout=seconds,
        )
    return time.monotonic() - started
