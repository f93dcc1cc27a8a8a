"""`watch`: every kind of delivery has its outcome, nothing that arrives is lost or done twice."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_prep.chunk.__main__ import main as chunk
from data_prep.files import read_jsonl
from data_prep.stream import open_stream
from recipes.cli import main
from recipes.watch.inbox import Inbox, changed_at, content_of
from tests.recipes import fake_host
from tests.recipes.fork import Fork, write_to
from tests.recipes.growth.test_growth import begin, cells, weights, write_table
from tests.recipes.toy import recipe_values, write_recipe

NOW = ("--once", "--rest", "0", "--workers", "1")


def watching(recipe: Path, *options: str, die: Callable[[], None] | None = None) -> Fork:
    """Start watching the inbox beside a recipe, with the stand-in host."""

    def life() -> None:
        write_to(recipe.with_suffix(".log"))
        sys.stdout = sys.stderr = recipe.with_suffix(".log").open("a", buffering=1)
        fake_host.install()
        if die is not None:
            die()
        os._exit(main(["watch", str(recipe), str(recipe.parent / "inbox"), *options]))

    return Fork(life)


def look(recipe: Path, *options: str, code: int = 0) -> str:
    """Let it look once; return what it printed."""
    log = recipe.with_suffix(".log")
    log.unlink(missing_ok=True)
    found = watching(recipe, *NOW, *options).wait(120)
    assert found == code, log.read_text()
    return log.read_text()


def deliver(recipe: Path, month: int, name: str = "", count: int = 12) -> Path:
    path = write_table(recipe.parent, month, count)
    return Path(shutil.move(path, recipe.parent / "inbox" / (name or path.name)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def reasons(recipe: Path, name: str) -> str:
    return (recipe.parent / "inbox/rejected" / f"{name}.reasons.txt").read_text()


def test_what_arrives_is_appended_trained_and_evaluated(shop):
    deliver(shop, 3)
    deliver(shop, 2)
    out = look(shop)
    inbox, run = shop.parent / "inbox", shop.parent / "run"
    assert out.index("month2.csv: accepted") < out.index("chunk 2/2 (2026-02) trained")
    assert out.index("chunk 2/2 (2026-02) trained") < out.index("month3.csv: accepted")
    assert names(inbox) == ["accepted", "rejected"]
    assert names(inbox / "accepted") == ["month2.csv", "month3.csv"]
    assert len(weights(run)) == 3
    assert {(2, "grown.2026-02"), (3, "grown.2026-03")} < cells(run).keys()
    batches = open_stream(shop.parent / "grown").facts["batches"]
    given = [batch["generator"]["settings"]["delivery"] for batch in batches]
    assert given[0] == {"name": "month2.csv", "sha256": content_of(inbox / "accepted/month2.csv")}
    before = weights(run)
    assert "trained" not in look(shop)
    assert weights(run) == before


def test_bad_deliveries_are_rejected_with_reasons_and_stop_nothing(shop):
    inbox = shop.parent / "inbox"
    (inbox / "a_bad.csv").write_text("question,answer,day\nWhy?,,2026-02-01\n")
    (inbox / "b_empty.csv").touch()
    (inbox / "c_folder").mkdir()
    (inbox / "d_link.csv").symlink_to(shop)
    (inbox / "e_lost.csv").symlink_to("nowhere")
    (inbox / "f_inside").mkdir()
    shutil.copy(write_table(shop.parent, 4), inbox / "f_inside")
    (inbox / "f_inside/x.jpg").symlink_to("/etc/hostname")
    os.mkfifo(inbox / "g_pipe.csv")
    (inbox / "h.txt").write_text("hello\n")
    (inbox / "i_missing.csv").write_text(
        "question,answer,day,image\nWhat is it?,a mug,2026-02-01,none.png\n"
    )
    deliver(shop, 2, "z.csv")
    out = look(shop)
    assert names(inbox / "accepted") == ["z.csv"]
    assert len(weights(shop.parent / "run")) == 2
    found = {n.removesuffix(".reasons.txt") for n in names(inbox / "rejected")}
    assert sorted(name[0] for name in found) == list("abcdefghi")
    assert "a_bad.csv: rejected, a_bad.csv:2: " in out
    for name, words in {
        "a_bad.csv": f"{inbox}/rejected/a_bad.csv:2: ",
        "b_empty.csv": "no samples",
        "c_folder": "no data file",
        "d_link.csv": f"is a link to {shop}: deliver the file itself",
        "e_lost.csv": "is a link to nowhere",
        "f_inside": "x.jpg is a link to /etc/hostname",
        "g_pipe.csv": "neither a file nor a folder",
        "h.txt": "",
        "i_missing.csv": "image 'images/none.png' does not exist",
    }.items():
        assert words in reasons(shop, name)
    assert (inbox / "rejected/d_link.csv").is_symlink()
    assert shop.is_file()


def test_the_same_content_is_there_once(shop):
    deliver(shop, 2)
    look(shop)
    stream = (shop.parent / "grown/stream.json").read_bytes()
    deliver(shop, 2)
    deliver(shop, 2, "another name.csv")
    deliver(shop, 1)  # what the stream was made from
    look(shop)
    assert (shop.parent / "grown/stream.json").read_bytes() == stream
    assert "the same content as month2.csv" in reasons(shop, "month2-2.csv")
    assert "the same content as month2.csv" in reasons(shop, "another name.csv")
    assert "is in" in reasons(shop, "month1.csv")
    assert names(shop.parent / "inbox/accepted") == ["month2.csv"]


@pytest.mark.slow
def test_another_content_under_a_known_name_is_another_delivery(shop):
    deliver(shop, 2)
    look(shop)
    accepted = shop.parent / "inbox/accepted"
    deliver(shop, 3, "month2.csv")
    look(shop)
    assert names(accepted) == ["month2-2.csv", "month2.csv"]
    (accepted / "month2.csv").unlink()  # its chunk is trained; the name stays taken
    deliver(shop, 4, "month2.csv")
    look(shop)
    assert names(accepted) == ["month2-2.csv", "month2-3.csv"]
    assert len(weights(shop.parent / "run")) == 4


def pictures(folder: Path, shade: int, count: int = 6) -> Path:
    folder.mkdir(parents=True)
    lines = ["photo,question,answer,day"]
    for n in range(count):
        image = Image.new("RGB", (24, 24 + n), (shade, n * 40, 9))
        image.paste((n * 30, 255 - shade, 80), (n, 2, n + 9, 12))
        image.save(folder / f"{n}.png")
        lines.append(f"{n}.png,What is it?,a mug,2026-02-0{n + 1}")
    (folder / "table.csv").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_a_folder_brings_its_pictures_and_tables_may_be_the_same(shop):
    inbox = shop.parent / "inbox"
    pictures(inbox / "east", 10)
    pictures(inbox / "west", 200)  # the table is the same byte for byte, its pictures are not
    pictures(inbox / "west again", 200)
    look(shop)
    assert names(inbox / "accepted") == ["east", "west"]
    assert "the same content as west" in reasons(shop, "west again")
    stream = open_stream(shop.parent / "grown")
    records = [read_jsonl(stream.chunk_file(number)) for number in (2, 3)]
    files = [stream.root / each["images"][0] for part in records for each in part]
    assert {file.resolve().parent.name for file in files} == {"east", "west"}


@pytest.mark.slow
def test_folders_named_by_class_are_taken_with_the_question_of_the_first(tmp_path, model):
    for name, shade in (("pets", 1), ("inbox/more", 2)):
        for animal in ("cat", "dog"):
            (tmp_path / name / animal).mkdir(parents=True)
            for n in range(4):
                image = Image.effect_noise((20, 20 + n), shade * 40)
                image.save(tmp_path / name / animal / f"{n}.png")
    made = ["--source", str(tmp_path / "pets"), "--question", "Which?", "--holdout", "0.3"]
    assert chunk([*made, "--out", str(tmp_path / "grown"), "--workers", "1"]) == 0
    values = recipe_values(tmp_path / "grown", tmp_path / "run", model)
    del values["data"]["chunks"]
    look(write_recipe(tmp_path / "shop.yaml", values))
    (new,) = read_jsonl(tmp_path / "grown/chunks/002.jsonl")[:1]
    assert new["messages"][0]["content"] == "<image>Which?"
    assert new["messages"][1]["content"] in ("cat", "dog")


def test_what_is_not_whole_waits(shop):
    inbox = shop.parent / "inbox"
    deliver(shop, 2)
    for name in (".hidden.csv", "big.csv.part", "old.csv.crdownload"):
        (inbox / name).write_text("half")
    out = look(shop, "--rest", "1h")
    assert "accepted" not in out
    assert "rejected" not in out
    (inbox / "month2.csv.done").touch()
    look(shop, "--rest", "1h")
    assert names(inbox) == [
        ".hidden.csv", "accepted", "big.csv.part", "old.csv.crdownload", "rejected",
    ]  # fmt: skip
    assert names(inbox / "accepted") == ["month2.csv"]
    deliver(shop, 3)
    look(shop, "--marked")
    assert "month3.csv" in names(inbox)


def test_a_mark_that_is_older_than_its_file_says_nothing(tmp_path):
    box = Inbox(tmp_path, rest=3600, marked=False, kept=())
    (tmp_path / "a.csv.done").touch()
    time.sleep(0.02)
    (tmp_path / "a.csv").write_text("half")
    assert list(box.arrived()) == []
    time.sleep(0.02)
    (tmp_path / "a.csv.done").write_text("again")
    assert list(box.arrived()) == [tmp_path / "a.csv"]


def test_a_folder_that_is_being_copied_is_at_rest_only_when_its_newest_file_is(tmp_path):
    (tmp_path / "july/photos").mkdir(parents=True)
    (tmp_path / "july/table.csv").write_text("a")
    before = changed_at(tmp_path / "july")
    time.sleep(0.02)
    (tmp_path / "july/photos/1.png").write_text("b")
    os.utime(tmp_path / "july/photos/1.png", (0, 0))  # as rsync -t sets the sender's time
    assert changed_at(tmp_path / "july") > before


def forget_the_rights_of_root() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads everything."""
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert not libc.capget(header, sets)
    sets[0] &= ~0b110
    assert not libc.capset(header, sets)


def test_what_may_not_be_read_is_rejected(shop):
    deliver(shop, 2).chmod(0)
    (shop.parent / "inbox/closed").mkdir()
    shutil.copy(deliver(shop, 3, "4.csv"), shop.parent / "inbox/closed")
    (shop.parent / "inbox/closed").chmod(0)
    assert watching(shop, *NOW, die=forget_the_rights_of_root).wait(60) == 0
    assert "month2.csv cannot be read: Permission denied" in reasons(shop, "month2.csv")
    assert names(shop.parent / "inbox/accepted") == ["4.csv"]
    assert (shop.parent / "inbox/closed").is_dir()
    log = shop.with_suffix(".log").read_text()
    assert "closed: left where it is, Permission denied: it may not be moved" in log


def test_a_full_disk_loses_nothing_and_is_tried_again(shop):
    deliver(shop, 2)

    def full() -> None:
        from data_prep import stream_writer

        def write(*ignored: object) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

        stream_writer.write_blocks = write

    log = shop.with_suffix(".log")
    assert watching(shop, *NOW, die=full).wait(60) == 1
    assert "No space left on device; finished work is saved; free some space" in log.read_text()
    assert names(shop.parent / "inbox/accepted") == ["month2.csv"]
    assert len(open_stream(shop.parent / "grown").chunks) == 1
    look(shop)
    assert len(weights(shop.parent / "run")) == 2


def test_recipes_that_cannot_grow_are_refused_before_anything_moves(shop):
    path = deliver(shop, 2)
    for override, words in {
        "method=joint": "method = joint shuffles all chunks into one training: it cannot grow",
        "data.stream=none": "which is not there yet: make it from the first files with python",
        "data.chunks=2": "data.chunks = 2, but ",
    }.items():
        more = ["data.chunks=1"] if override.startswith("data.stream") else []
        assert words in look(shop, override, *more, code=1)
        assert path.is_file()


def test_the_folder_of_the_stream_s_own_pictures_is_not_emptied(tmp_path, model):
    inbox = pictures(tmp_path / "inbox", 10)
    made = ["--source", str(inbox / "table.csv"), "--holdout", "0.3", "--workers", "1"]
    assert chunk([*made, "--out", str(tmp_path / "grown")]) == 0
    values = recipe_values(tmp_path / "grown", tmp_path / "run", model)
    del values["data"]["chunks"]
    recipe = write_recipe(tmp_path / "shop.yaml", values)
    assert "holds the pictures of the stream" in look(recipe, code=1)
    assert "0.png" in names(inbox)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_stops_it_cleanly_while_it_waits(shop, number):
    watch = watching(shop, "--poll", "0.05", "--rest", "0", "--workers", "1")
    deadline = time.monotonic() + 60
    while not (shop.parent / "run/state.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    deliver(shop, 2)
    while not (shop.parent / "run/chunks/002/scores.json").is_file():
        assert time.monotonic() < deadline, shop.with_suffix(".log").read_text()
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(watch.pid, number)
    assert watch.wait(30) == 128 + number
    assert "the same command continues from there" in shop.with_suffix(".log").read_text()


def outcome(recipe: Path) -> dict[str, str]:
    """Hashes of all that a stream and its run came to."""
    stream, run = open_stream(recipe.parent / "grown"), recipe.parent / "run"
    found = {chunk.file: chunk.sha256 for chunk in stream.chunks}
    found |= {test.test.file: test.test.sha256 for test in stream.tests.values()}
    found |= {str(n): digest for n, digest in enumerate(weights(run))}
    found["matrix"] = hashlib.sha256((run / "matrix.csv").read_bytes()).hexdigest()
    return found


@pytest.fixture
def two_shops(tmp_path: Path, model: Path) -> tuple[Path, Path]:
    """Two recipes whose inboxes hold the same three months."""
    found = []
    for name in ("calm", "killed"):
        folder = tmp_path / name
        (folder / "inbox").mkdir(parents=True)
        values = recipe_values(begin(folder), folder / "run", model)
        del values["data"]["chunks"]
        found.append(write_recipe(folder / "shop.yaml", values))
        for month in (2, 3, 4):
            deliver(found[-1], month)
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("WATCH_KILLS", "1"))))
def test_kills_at_any_moment_lose_nothing_and_do_nothing_twice(two_shops, seed):
    calm, killed = two_shops
    started = time.monotonic()
    look(calm)
    whole = time.monotonic() - started
    draw = random.Random(seed)
    for _ in range(5):
        watch = watching(killed, *NOW)
        time.sleep(draw.uniform(0.02, 0.5) * whole)
        if watch.poll() is None:
            os.kill(watch.pid, signal.SIGKILL)
            watch.wait()
    look(killed)
    assert outcome(killed) == outcome(calm)
    assert names(killed.parent / "inbox/accepted") == names(calm.parent / "inbox/accepted")
    assert names(killed.parent / "inbox/rejected") == []
    assert not list((killed.parent / "grown").glob(".*"))
    batches = open_stream(killed.parent / "grown").facts["batches"]
    assert len({json.dumps(batch["files"]) for batch in batches}) == len(batches) == 3
