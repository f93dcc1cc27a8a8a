"""A stream that grows under a run: the same command goes on, with the result of one run."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_prep.chunk.__main__ import main as chunk
from data_prep.stream import open_stream
from recipes.baselines.task_labels import write_label_table
from recipes.cli import main
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run
from tests.recipes import fake_run
from tests.recipes.toy import recipe_values, write_recipe


def write_table(folder: Path, month: int, count: int = 12) -> Path:
    """Write a table of text questions: the stand-in host reads no pictures."""
    lines = ["question,answer,day"]
    lines += [f"What is {month}-{n}?,{n % 3},2026-{month:02d}-{n + 1:02d}" for n in range(count)]
    path = folder / f"month{month}.csv"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def begin(folder: Path) -> Path:
    source, stream = write_table(folder, 1), folder / "grown"
    options = ["--by", "time", "--column", "day", "--every", "1mo", "--holdout", "0.3"]
    assert chunk(["--source", str(source), "--out", str(stream), "--workers", "1", *options]) == 0
    return stream


def grow(folder: Path, stream: Path, month: int) -> None:
    source = str(write_table(folder, month))
    assert chunk(["--append", str(stream), "--source", source, "--workers", "1"]) == 0


def finish(recipe: Path, *overrides: str, **environment: str) -> tuple[int, str]:
    """Run the orchestrator with the stand-in host; return exit code and all that it printed."""
    code, out, err = fake_run.finish("run", recipe, *overrides, **environment)
    return code, out + err


def weights(run: Path) -> list[str]:
    files = sorted(run.glob("chunks/*/adapter/adapter_model.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def cells(run: Path) -> dict[tuple[int, str], str]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(row["chunk"]), row["task"]): row["score"] for row in csv.DictReader(file)}


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Callable[..., Path]:
    def write(stream: Path, run: str, **changes: object) -> Path:
        values = recipe_values(stream, tmp_path / run, model, **changes)
        del values["data"]["chunks"]
        return write_recipe(tmp_path / f"{run}.yaml", values)

    return write


METHODS = ["er", "mr_lora", "strlora", "branchlora"]


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS)]
)
def test_two_arrivals_end_as_one_run_over_the_grown_stream(tmp_path, recipe, method):
    stream = begin(tmp_path)
    path = recipe(stream, "run", method=method)
    run = tmp_path / "run"
    assert finish(path)[0] == 0
    old_cells, old_weights = cells(run), weights(run)
    assert len(old_weights) == 1
    for month in (2, 3):
        grow(tmp_path, stream, month)
        code, out = finish(path, FAKE_REPORT="1")
        assert code == 0, out
        assert f"chunk {month} (2026-0{month})" in (run / "report.html").read_text("utf-8")
        assert f"chunk {month}/{month} (2026-0{month}) trained" in out
        # Changes are since the chunk before, which had no such task; chunk 0 was asked meanwhile.
        (line,) = re.findall(rf"chunk {month}/{month} .* scores: .*", out)
        assert "grown.2026-01 0.0 (+0.0)" in line
        assert re.search(rf"grown.2026-0{month} [\d.]+ \|", line), line
    grown = cells(run)
    assert old_cells.items() < grown.items()
    assert weights(run)[:1] == old_weights
    new = [f"grown.2026-0{n}" for n in (2, 3)]
    found = {(c, t) for c, t in grown if t in new}
    assert found == {(0, new[0]), (2, new[0]), (3, new[0]), (0, new[1]), (3, new[1])}
    manifest = json.loads((run / "manifest.json").read_text())
    opened = open_stream(stream)
    assert manifest["data"]["sha256"] == opened.sha256
    assert manifest["data"]["chunks"] == [entry.sha256 for entry in opened.chunks]
    assert [chunks for _, chunks in manifest["data"]["grown"]] == [1, 2]
    assert load_recipe(str(run / "recipe.yaml")).data.chunks == 3
    assert finish(path)[1].count("is finished; nothing to do") == 1

    at_once = recipe(stream, "at-once", method=method)
    assert finish(at_once)[0] == 0
    assert weights(tmp_path / "at-once") == weights(run)
    same = cells(tmp_path / "at-once")
    assert {key: same[key] for key in grown} == grown


def test_a_kill_after_the_stream_grew_loses_nothing(tmp_path, recipe):
    stream = begin(tmp_path)
    path = recipe(stream, "run")
    assert finish(path)[0] == 0
    grow(tmp_path, stream, 2)
    assert finish(path, FAKE_KILL_AT="2")[0] == 1
    assert finish(path)[0] == 0
    assert len(weights(tmp_path / "run")) == 2
    assert (0, "grown.2026-02") in cells(tmp_path / "run")


def test_trained_chunk_files_may_go(tmp_path, recipe, capsys):
    stream = begin(tmp_path)
    path = recipe(stream, "run")
    assert finish(path)[0] == 0
    chunk_file = stream / "chunks/001.jsonl"
    assert main(["status", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"keep for the next chunk: {tmp_path}/run/chunks/001/adapter, which" in told
    assert f"may go: chunk files 001.jsonl of {stream}, and pictures that nothing above" in told
    kept = shutil.move(chunk_file, tmp_path / "kept.jsonl")
    capsys.readouterr()
    grow(tmp_path, stream, 2)
    assert "not compared with what is gone: 'chunks/001.jsonl', 1 files" in capsys.readouterr().out
    code, out = finish(path, FAKE_REPORT="1")
    assert code == 0, out
    assert len(weights(tmp_path / "run")) == 2
    assert main(["status", str(path)]) == 0
    assert "may go: adapters of chunk 1 (clean --old-adapters)" in capsys.readouterr().out
    assert main(["reproduce", str(path), "--into", str(tmp_path / "again")]) == 1
    assert "001.jsonl were removed after they were trained" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    at_once = recipe(stream, "at-once")
    shutil.move(kept, chunk_file)
    assert finish(at_once)[0] == 0
    assert weights(tmp_path / "at-once") == weights(tmp_path / "run")


@pytest.mark.slow
def test_replay_needs_the_pictures_of_the_samples_that_it_keeps(tmp_path, recipe):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "mug.png")
    rows = [f"What is {n}?,a mug,2026-01-{n + 1:02d},mug.png" for n in range(6)]
    (tmp_path / "mugs.csv").write_text("\n".join(["question,answer,day,image", *rows]) + "\n")
    made = ["--source", str(tmp_path / "mugs.csv"), "--by", "time", "--column", "day"]
    test = write_table(tmp_path, 9)
    more = ["--every", "1mo", "--test", f"words={test}", "--workers", "1"]
    assert chunk([*made, *more, "--out", str(tmp_path / "grown")]) == 0
    path = recipe(tmp_path / "grown", "run", method="er", replay={"memory": 4, "share": 0.5})
    assert finish(path)[0] == 0
    (tmp_path / "mug.png").unlink()
    source = str(write_table(tmp_path, 2))
    assert chunk(["--append", str(tmp_path / "grown"), "--source", source, "--workers", "1"]) == 0
    code, out = finish(path)
    assert code == 1
    assert "grown/images/mug.png of " in out
    assert "replay/memory.jsonl:1 is not there" in out


def test_the_table_of_smolora_grows_behind_what_it_was(tmp_path):
    stream = begin(tmp_path)  # What is 1-0?, What is 1-1?, ...
    write_label_table(open_stream(stream), 1, "template", tmp_path / "told.json")
    before = json.loads((tmp_path / "told.json").read_text())
    assert set(before.values()) == {"What is"}
    source = write_table(tmp_path, 2)
    source.write_text(source.read_text().replace("What is", "Please name"))
    assert chunk(["--append", str(stream), "--source", str(source), "--workers", "1"]) == 0
    write_label_table(open_stream(stream), 2, "template", tmp_path / "told.json")
    grown = json.loads((tmp_path / "told.json").read_text())
    assert before.items() < grown.items()
    assert len(grown) == 24
    assert set(grown.values()) == {"What is"}


def test_joint_cannot_grow_and_says_why(tmp_path, recipe):
    stream = begin(tmp_path)
    path = recipe(stream, "run", method="joint")
    assert finish(path)[0] == 0
    grow(tmp_path, stream, 2)
    code, out = finish(path)
    assert code == 1
    assert "data.chunks: 1 in the run, 2 now (method joint shuffles all chunks into one" in out


def test_zero_shot_answers_what_is_new(tmp_path, recipe):
    stream = begin(tmp_path)
    path = recipe(stream, "run", method="zero_shot")
    assert finish(path)[0] == 0
    grow(tmp_path, stream, 2)
    assert finish(path)[0] == 0
    found = cells(tmp_path / "run")
    assert found[0, "grown.2026-02"] == found[2, "grown.2026-02"]


def test_what_is_no_growth_is_refused(tmp_path, recipe):
    stream = begin(tmp_path)
    grow(tmp_path, stream, 2)
    path = recipe(stream, "run")
    assert finish(path)[0] == 0
    before = RunLayout(tmp_path / "run")
    code, out = finish(path, "data.chunks=1")
    assert code == 1
    assert "data.chunks: 2 in the run, 1 now" in out
    shutil.rmtree(stream)
    begin(tmp_path)  # made again: the same first chunk, others behind it
    grow(tmp_path, stream, 4)
    grow(tmp_path, stream, 5)
    code, out = finish(path)
    assert code == 1
    assert "a stream that grows under a run is made with data_prep.chunk --append" in out
    with pytest.raises(RunChanged, match=r"schedule\.epochs"):
        check_same_run(before, load_recipe(str(path), ["schedule.epochs=2"]))


def test_descriptions_of_a_pool_grow_behind_the_old(tmp_path, recipe):
    stream = begin(tmp_path)
    path = recipe(stream, "run", method="mr_lora", pool={"descriptions": ["January"]})
    assert finish(path)[0] == 0
    grow(tmp_path, stream, 2)
    assert finish(path, "pool.descriptions=[May,February]")[0] == 1
    assert finish(path, "pool.descriptions=[January,February]")[0] == 0


def test_the_count_of_chunks_follows_from_the_stream(tmp_path, recipe):
    stream = begin(tmp_path)
    path = recipe(stream, "run")
    assert load_recipe(str(path)).data.chunks == 1
    assert load_recipe(str(path), ["data.chunks=2"]).data.chunks == 2
    assert load_recipe("tiny", [f"data.stream={stream}", "data.source=folder"]).data.chunks == 1
    child = write_recipe(
        tmp_path / "child.yaml",
        {"extends": "tiny", "name": "c", "data": {"source": "folder", "stream": str(stream)}},
    )
    assert load_recipe(str(child)).data.chunks == 1
    assert load_recipe("tiny").data.chunks == 8
    with pytest.raises(RecipeError, match=r"data\.chunks: is not set"):
        load_recipe(str(child), [f"data.stream={tmp_path / 'none'}"])
