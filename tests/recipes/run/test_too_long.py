"""Training samples of more than model.max_length tokens: dealt with as asked, and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.files import read_json, read_jsonl
from eval.report.data import _long_samples as gaps_of_report
from recipes.config.loading import load_recipe
from recipes.config.schema import Recipe
from recipes.run import steps
from recipes.run.session import RunError
from recipes.run.too_long import name_samples
from recipes.run.training_job import TrainingJob, check_batches
from recipes.run_folder.checkpoints import Checkpoint
from recipes.run_folder.layout import RouterLayout, RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run, resolved
from tests.faults.real import BASE, needs_host, parameters_of, result_of, steps_of
from tests.recipes.run.test_real_methods import killed, start
from tests.recipes.toy import recipe_values, write_recipe, write_stream

LoadToy = Callable[..., Recipe]
LONG = {1: [0, 7], 2: [3, 4, 19]}  # the last row and two neighbours among them


def test_rows_become_file_line_and_id(tmp_path: Path) -> None:
    first, second, noted = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "too_long.jsonl"
    first.write_text('{"id": "x"}\n\n{"id": "y"}\n', encoding="utf-8")
    second.write_text("{}\n", encoding="utf-8")
    rows = [{"row": row, "of": 3, "tokens": 90 + row, "done": "skip"} for row in (2, 1, 1)]
    rows.append({"row": 0, "of": 2, "tokens": 99, "done": "skip"})  # of other data: EWC's
    noted.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"row', encoding="utf-8")
    expected = [(str(first), 3, "y", 91), (str(second), 1, None, 92)]
    for _ in range(2):  # done again it changes nothing
        found = name_samples(noted, [first, second], 64)
        assert [(s["file"], s["line"], s["id"], s["tokens"]) for s in found] == expected
        assert read_jsonl(noted) == found
    assert name_samples(tmp_path / "none.jsonl", [first], 64) == []


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_router_names_its_own(
    policy: str, toy: LoadToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, told = RouterLayout(tmp_path), list[str]()
    router.chunk(2).mkdir(parents=True)
    data, noted = router.router_data(2), router.too_long(2)
    data.write_text('{"id": "router-a"}\n{"id": "router-b"}\n', encoding="utf-8")

    def host(session: object, job: TrainingJob, record: object) -> None:
        row = {"row": 1, "of": 2, "tokens": 600, "done": policy}
        job.layout.too_long(job.index).write_text(json.dumps(row) + "\n", encoding="utf-8")
        if policy == "stop":
            raise RunError("the host failed")

    monkeypatch.setattr(steps, "train_adapter", host)
    session = SimpleNamespace(recipe=toy(), progress=SimpleNamespace(say=told.append))
    job = TrainingJob(toy(), router, 2, "the router of chunk 2", lambda: ([data], ""))
    words = f"{data}:2 (id router-b) has 600 tokens, model.max_length is 512"
    if policy == "stop":
        with pytest.raises(RunError) as refused:
            steps._train(session, job, None, [data])
        assert str(refused.value).startswith(f"the router of chunk 2: {words}, and data.too_long")
        assert not noted.exists()
    else:
        steps._train(session, job, None, [data])
        assert told == [f"note: {words}: skip; all in {noted}"]
        assert [row["id"] for row in read_jsonl(noted)] == ["router-b"]


def test_the_report_names_them(tmp_path: Path) -> None:
    chunk = tmp_path / "chunks" / "002"
    chunk.mkdir(parents=True)
    samples = [
        {"file": "c", "line": n, "id": f"s{n}", "tokens": 70, "max_length": 64,
         "done": "cut" if n == 1 else "skip"}
        for n in range(1, 8)
    ]  # fmt: skip
    text = "".join(json.dumps(each) + "\n" for each in samples)
    (chunk / "too_long.jsonl").write_text(text, encoding="utf-8")
    (chunk / "router_too_long.jsonl").write_text(text, encoding="utf-8")
    router, gap = gaps_of_report(tmp_path)
    assert router.what == "Chunk 2, router: 7 training samples too long"
    assert gap.what == "Chunk 2: 7 training samples too long"
    assert "more than 64 tokens: 1 cut, 6 skipped" in gap.why
    assert gap.why.endswith("s1, s2, s3, s4, s5 and 2 more")


def begun(recipe: Recipe) -> RunLayout:
    """The folder of a run that was started with the recipe."""
    layout = RunLayout(Path(recipe.folder))
    layout.root.mkdir()
    layout.manifest.write_text(json.dumps({"recipe": resolved(recipe)}), encoding="utf-8")
    return layout


def test_what_may_change_between_chunks(toy: LoadToy) -> None:
    layout = begun(toy())
    allowed = ("model.max_length=1024", "schedule.per_device_batch=2", "launcher.deepspeed=zero2",
               "data.too_long=cut", "schedule.per_device_batch=1")  # fmt: skip
    for change in allowed:
        check_same_run(layout, toy(change))
    for change, words in (
        ("model.max_length=256", "model.max_length: 512 in the run, 256 now (it may only grow)"),
        ("schedule.global_batch=8", "schedule.global_batch: 4 in the run, 8 now"),
    ):
        with pytest.raises(RunChanged) as refused:
            check_same_run(layout, toy(change))
        assert words in str(refused.value)


def test_a_policy_that_was_needed_stays(toy: LoadToy) -> None:
    layout = begun(toy())
    layout.chunk(1).mkdir(parents=True)
    layout.too_long(1).write_text("", encoding="utf-8")
    with pytest.raises(
        RunChanged, match=r"data\.too_long: 'skip' in the run, 'cut' now .*too_long\."
    ):
        check_same_run(layout, toy("data.too_long=cut"))


def test_averages_over_padding_keep_the_batch(toy: LoadToy) -> None:
    released = ("method=strlora", "tuner.preset=released")
    layout = begun(toy(*released))
    with pytest.raises(RunChanged, match="averages over padding depend on the batch"):
        check_same_run(layout, toy(*released, "schedule.per_device_batch=2"))
    check_same_run(layout, toy(*released, "model.max_length=1024"))


# Longer than a file's name may be.
TEXT = json.dumps({"zero_optimization": {"stage": 1}, "note": "x" * 300})


@pytest.mark.parametrize(
    ("began", "now", "words"),
    [
        (
            {},
            "schedule.per_device_batch=2",
            "batch 4, no DeepSpeed, max_length 512, now",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "seed=0", "ZeRO stage 2, max_length"),
        ({}, "launcher.deepspeed=zero3_offload", "ZeRO stage 3 with offload"),
        ({}, f"launcher.deepspeed='{TEXT}'", "ZeRO stage 1, max_length"),
        ({}, "model.max_length=1024", "max_length 1024: inside a chunk they cannot change"),
    ],
)
def test_inside_a_chunk_they_stay(
    began: dict[str, Any], now: str, words: str, toy: LoadToy, tmp_path: Path
) -> None:
    told = {"per_device_train_batch_size": 4, "deepspeed": None, "max_length": 512} | began
    (tmp_path / "args.json").write_text(json.dumps(told), encoding="utf-8")
    checkpoint = Checkpoint(tmp_path, 3, 5)
    if not began:
        check_batches(checkpoint, toy(), 1)
    with pytest.raises(RunError) as refused:
        check_batches(checkpoint, toy(now), 1)
    assert words in str(refused.value)


def lengthened(stream: Path) -> Path:
    """Makes the questions of the rows in LONG 600 words longer."""

    def change(rows: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
        for row in LONG[index]:
            rows[row]["messages"][0]["content"] += " please" * 600
        return rows

    return rewritten(stream, change)


def replaced(stream: Path) -> Path:
    """Puts the next row that is not in LONG in the place of each that is."""

    def change(rows: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
        count, short = len(rows), [i for i in range(len(rows)) if i not in LONG[index]]
        return [rows[min(short, key=lambda i, row=row: (i - row) % count)] for row in range(count)]

    return rewritten(stream, change)


def rewritten(
    stream: Path, change: Callable[[list[dict[str, Any]], int], list[dict[str, Any]]]
) -> Path:
    manifest = read_json(stream / "stream.json")
    for entry in manifest["chunks"]:
        rows = change(read_jsonl(stream / entry["file"]), entry["index"])
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (stream / entry["file"]).write_text(text, encoding="utf-8")
        entry["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (stream / "stream.json").write_text(json.dumps(manifest), encoding="utf-8")
    return stream


@pytest.mark.slow
@needs_host
def test_a_run_that_skips_stops_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Against the same stream with the next sample written in the place of each long one."""
    stream = write_stream(tmp_path / "stream", samples=20)
    shutil.copytree(stream, tmp_path / "by hand")
    lengthened(stream)
    values = recipe_values(stream, tmp_path / "run", BASE)
    values["tuner"] |= {"dropout": 0.05}  # so that a lost random state is seen
    values["schedule"] |= {"save_steps": 2}
    values["eval"] |= {"every": 2}
    values["launcher"] |= {"resident": True}
    path = write_recipe(tmp_path / "long.yaml", values)
    reference = start(path, tmp_path / "reference", f"data.stream={replaced(tmp_path / 'by hand')}")
    stopped = start(path, tmp_path / "whole", "data.too_long=stop")
    assert stopped.wait() == 1
    place = f"{stream}/chunks/001.jsonl:"
    assert place in stopped.text()
    assert "model.max_length is 512, and data.too_long is stop" in stopped.text()
    whole = start(path, tmp_path / "whole")
    run, moment = killed(path, tmp_path)
    again = start(path, run)
    for process in (reference, whole, again):
        assert process.wait() == 0, f"{moment}: {process.text()}"
    first, other = RunLayout(tmp_path / "whole"), RunLayout(run)
    assert result_of(other) == result_of(first), moment
    by_hand = RunLayout(tmp_path / "reference")
    for chunk, rows in LONG.items():
        assert parameters_of(first, chunk) == parameters_of(by_hand, chunk)
        assert steps_of(first.train_metrics(chunk)) == steps_of(by_hand.train_metrics(chunk))
        for layout in (first, other):
            named = read_jsonl(layout.too_long(chunk))
            assert [each["line"] for each in named] == [row + 1 for row in rows]
            assert all(each["tokens"] > 600 for each in named)
    assert f"note: {place}1 (id " in whole.text()
    sessions = read_json(first.manifest)["sessions"]
    assert [each.get("changes") for each in sessions] == [
        None, {"data.too_long": "'stop' -> 'skip'"},
    ]  # fmt: skip
    assert "2 training samples too long" in first.report.read_text(encoding="utf-8")
    assert load_recipe(str(path)).data.too_long == "skip"
