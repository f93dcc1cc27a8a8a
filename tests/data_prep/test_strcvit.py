"""StrCVIT and MLLM-CL from trees in the published layout, and what the consumers say to them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.check.__main__ import main as check
from data_prep.mini.mixtures import strcvit_mixture
from data_prep.mllm_cl.__main__ import main as mllm_cl
from data_prep.published.benchmarks import COIN, MLLM_CL, SCORERS, STRCVIT, UCIT
from data_prep.strcvit.__main__ import main as strcvit
from data_prep.stream import open_stream as open_folder
from eval.questions import question_of, write_combined
from eval.scorers.registry import FIXED, TASKS
from recipes.config.loading import load_recipe
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.preflight.all_checks import look
from tests.data_prep import trees

REPO = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def convert(folder: Path, *more: str, **tree) -> tuple[int, Path]:
    source, images = trees.strcvit(folder, **tree)
    out = folder / "strcvit"
    return run(source, images, out, *more), out


def run(source: Path, images: Path, out: Path, *more: str) -> int:
    where = ["--source", str(source), "--images", str(images), "--out", str(out)]
    return strcvit([*where, "--workers", "1", *more])


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    code, out = convert(tmp_path_factory.mktemp("tree"))
    assert code == 0
    return out


def test_scorers_are_those_of_eval():
    assert set(SCORERS) == set(FIXED)
    assert {name: task.scorer for name, task in STRCVIT.items()} == {
        name: task.fixed for name, task in TASKS.items() if "/" not in name
    }
    known = {"MLLM-CL": (*MLLM_CL["DCL"].tasks, *MLLM_CL["ACL"].tasks),
             "UCIT": UCIT.tasks, "CoIN": COIN.tasks}  # fmt: skip
    ours = {f"{name}/{task.name}": task.scorer for name in known for task in known[name]}
    assert ours == {name: task.fixed for name, task in TASKS.items() if "/" in name}


def test_both_record_forms_become_the_hosts_with_unknown_fields_kept(stream):
    one, two = rows(stream / "chunks/001.jsonl"), rows(stream / "chunks/002.jsonl")
    for chunk in (one, two):
        assert all([t["role"] for t in r["messages"]] == ["user", "assistant"] for r in chunk)
        asked = [r["messages"][0]["content"] for r in chunk]  # as in test sets: no line end after
        assert all(text.startswith("<image>") and "\n" not in text for text in asked)
        assert all(
            r["images"][0].startswith("images/") and "<" not in r["images"][0] for r in chunk
        )
        assert sorted({r["task"] for r in chunk}) == sorted(STRCVIT)
    assert one[0]["origin"] == "set-0"
    assert two[0]["id"] == "0"
    assert one[3]["id"] == "strcvit-001-00004"


def test_the_manifest_states_what_is_there(stream):
    manifest = json.loads((stream / "stream.json").read_text())
    assert [entry["samples"] for entry in manifest["chunks"]] == [22, 22, 22]
    assert manifest["chunks"][0]["tasks"] == dict.fromkeys(sorted(STRCVIT), 2)
    assert {t: e["scorer"] for t, e in manifest["tasks"].items()} == {
        name: task.scorer for name, task in STRCVIT.items()
    }
    assert (stream / "images").is_symlink()


def test_evaluation_sets_are_the_proxies_with_gold_fields(stream):
    assert len(rows(stream / "test/VQAv2.jsonl")) == 3
    assert len(rows(stream / "test/ChartQA.jsonl")) == 6  # has no proxy
    assert [r["id"] for r in rows(stream / "test/ChartQA.jsonl")][2:4] == ["2", "0#2"]
    caption = rows(stream / "test/TextCaps.jsonl")[0]
    assert len(caption["references"]) == 5
    box = rows(stream / "test/Grounding.jsonl")[0]
    assert (box["answer_bbox"], box["size"]) == ("[0.1, 0.2, 0.5, 0.6]", [40, 30])
    assert box["messages"][-1]["content"] == "[0.1, 0.2, 0.5, 0.6]"
    assert box["question_id"] == 0


def test_eval_and_the_shipped_recipe_accept_the_stream(stream, tmp_path):
    loaded = open_folder(stream)
    assert write_combined(stream, loaded.tasks, tmp_path / "all.jsonl") == 33
    record = loaded.test_records("Fin")[0]
    assert question_of(record, stream)[1] == (record["images"][0],)
    values = [f"data.stream={stream}", "data.chunks=3"]
    recipe = load_recipe(str(REPO / "recipes/internvl3.5-8b.yaml"), values)
    opened = open_recipe_stream(recipe)
    opened.verify_tests(opened.tasks)
    for index in (1, 2, 3):
        opened.verify_chunk(index)
    assert not [each for each in look(recipe) if each.subject == "data"]


def test_the_stream_passes_check(stream, tmp_path):
    report = tmp_path / "report.json"
    assert check([str(stream), "--report", str(report), "--workers", "1"]) == 0
    content = json.loads(report.read_text())
    assert content["samples"] == 66 + 36
    assert content["by_code"].keys() == {"duplicate-sample"}  # ChartQA's test.json repeats itself


def test_a_rerun_is_a_no_op_and_another_source_is_refused(stream, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in stream.rglob("*.json*")}
    source, images = stream.parent / "source", stream.parent / "images"
    assert run(source, images, stream) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in stream.rglob("*.json*")} == before
    assert run(source, images, stream, "--eval", "test") == 2
    assert "eval" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in stream.rglob("*.json*")} == before


def test_a_missing_image_and_a_bad_box_are_named_and_nothing_is_written(tmp_path, capsys):
    source, images = trees.strcvit(tmp_path)
    (images / "AD/images/drivelm/stitch/train_1_0.jpg").unlink()
    path = source / "train/data_002.json"
    chunk = json.loads(path.read_text())
    chunk[4]["conversations"][1]["value"] = "[0.5, 0.2, 0.1, 0.6]"
    path.write_text(json.dumps(chunk))
    test = source / "test/Grounding/test_proxy.json"
    rows_ = json.loads(test.read_text())
    rows_[1]["answer_bbox"] = "[0.1, 0.2, 0.5, 0.9]"  # the picture ends at 30 / 40
    test.write_text(json.dumps(rows_))
    out = tmp_path / "out"
    assert run(source, images, out) == 1
    said = capsys.readouterr().err
    assert "data_001.json: sample 1: image '<STRCVIT_IMAGE_ROOT>/AD/images" in said
    assert "data_002.json: sample 5: the answer: '[0.5, 0.2, 0.1, 0.6]' has no area" in said
    assert (
        "test_proxy.json: sample 2: answer_bbox: '[0.1, 0.2, 0.5, 0.9]' leaves the picture" in said
    )
    assert not out.exists()
    assert run(source, images, out, "--skip-bad") == 0
    assert [len(rows(out / f"chunks/{n:03d}.jsonl")) for n in (1, 2, 3)] == [21, 21, 22]
    codes = [row["code"] for row in rows(out / "left_out.jsonl")]
    assert codes == ["image-missing", "box-order", "box-range"]


def test_counts_are_held_against_the_sources_manifest(tmp_path, capsys):
    source, images = trees.strcvit(tmp_path)
    path = source / "train/data_003.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:20]))
    assert run(source, images, tmp_path / "out") == 2
    assert "data_003.json has 20 samples, expected 22" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["folders", "list"])
def test_a_file_name_of_every_task_is_held_against_its_own_task_alone(form, tmp_path, capsys):
    source, images = trees.strcvit(tmp_path, chunks=1)
    proxy, whole = source / "test/AD/test_proxy.json", source / "test/AD/test.json"
    count = {path: len(json.loads(path.read_text())) for path in (proxy, whole)}
    trees.write_json(whole, json.loads(whole.read_text()) * 2)  # more than ChartQA's test.json has
    files = {"test.json": 2 * count[whole], "test_proxy.json": count[proxy]}
    manifest = {"test": {"AD": files}}
    if form == "list":
        entries = [{"task": "AD", "file": name, "samples": n} for name, n in files.items()]
        manifest = {"files": entries}
    trees.write_json(source / "manifest.json", manifest)
    assert run(source, images, tmp_path / "out") == 0
    trees.write_json(proxy, json.loads(proxy.read_text())[1:])
    assert run(source, images, tmp_path / "other") == 2
    assert "test/AD/test_proxy.json has 2 samples, expected 3" in capsys.readouterr().err


def test_differences_from_the_published_mixture_are_told(tmp_path, capsys):
    convert(tmp_path, chunks=1)
    said = capsys.readouterr().out
    assert "1 chunks, the published stream has 25" in said
    assert "short 10 (published 1186), ChartQA 2 (published 210)" in said
    assert sum(map(sum, (chunk.values() for chunk in strcvit_mixture()))) == 50_000


def test_a_gap_in_the_chunks_is_refused(tmp_path, capsys):
    source, images = trees.strcvit(tmp_path)
    (source / "train/data_002.json").unlink()
    assert run(source, images, tmp_path / "out") == 2
    assert "data_002.json missing between the others" in capsys.readouterr().err


def test_gqa_takes_its_answers_from_the_official_questions(tmp_path, capsys):
    source, images = trees.strcvit(tmp_path)
    path = source / "test/GQA/test_proxy.json"
    questions = [
        {k: v for k, v in r.items() if k != "answer"} for r in json.loads(path.read_text())
    ]
    path.write_text(json.dumps(questions))
    assert run(source, images, tmp_path / "out") == 1
    assert "put the official testdev_balanced_questions.json" in capsys.readouterr().err
    official = {str(n): {"answer": f"gold {n}"} for n in range(3)}
    trees.write_json(source / "test/GQA/testdev_balanced_questions.json", official)
    assert run(source, images, tmp_path / "out") == 0
    golds = [r["messages"][-1]["content"] for r in rows(tmp_path / "out/test/GQA.jsonl")]
    assert golds == ["gold 0", "gold 1", "gold 2"]


def test_the_checklist_names_sites_of_missing_sets(tmp_path, capsys):
    _, images = trees.strcvit(tmp_path, chunks=1)
    assert strcvit(["--images", str(images), "--checklist"]) == 1
    said = capsys.readouterr().out
    assert "  present  GQA        GQA/images" in said
    assert "  MISSING  ChartQA    ChartQA/test" in said
    assert "https://github.com/vis-nlp/ChartQA" in said


@pytest.mark.parametrize("tool", ["strcvit", "mllm_cl"])
def test_the_download_says_offline_in_words(tmp_path, tool):
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", f"data_prep.{tool}", "--source", str(tmp_path / "s"), "--download"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "the hub cannot be reached" in done.stderr
    assert "--repo-type dataset --local-dir" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("benchmark", ["DCL", "ACL"])
def test_mllm_cl_pure_stages_in_their_published_order(tmp_path, benchmark):
    source = trees.mllm_cl(tmp_path / "source", benchmark)
    out = tmp_path / "out"
    arguments = ["--source", str(source), "--out", str(out), "--benchmark", benchmark]
    assert mllm_cl([*arguments, "--workers", "1"]) == 0
    stream = open_folder(out)
    tasks = [task.name for task in MLLM_CL[benchmark].tasks]
    assert [list(chunk.tasks) for chunk in stream.chunks] == [[task] for task in tasks]
    assert stream.tasks == tasks
    assert [stream.task(t.name).scorer == t.scorer for t in MLLM_CL[benchmark].tasks] == [
        True
    ] * len(tasks)
    assert [r["id"] for r in stream.test_records(tasks[0])] == ["0", "0#2", "1", "1#2"]
    assert all((out / r["images"][0]).is_file() for r in rows(out / "chunks/001.jsonl"))
    assert check([str(out), "--report", str(tmp_path / "r.json"), "--workers", "1"]) == 0


def test_mllm_cl_router_data_holds_twenty_of_each_task_so_far(tmp_path):
    source = trees.mllm_cl(tmp_path / "source")
    out = tmp_path / "out"
    assert mllm_cl(["--source", str(source), "--out", str(out), "--workers", "1"]) == 0
    assert sorted(p.name for p in (out / "router").iterdir()) == [
        f"task{n}.jsonl" for n in range(2, 6)
    ]
    for stage in range(2, 6):
        found = rows(out / f"router/task{stage}.jsonl")
        assert len(found) == 20 * stage
        letters = [row["messages"][-1]["content"] for row in found]
        assert {letter: letters.count(letter) for letter in set(letters)} == {
            letter: 20 for letter in "ABCDE"[:stage]
        }
        assert f"\n{'ABCDE'[stage - 1]}. " in found[0]["messages"][0]["content"]
        assert f"\n{'ABCDEF'[stage]}. " not in found[0]["messages"][0]["content"]


def test_mllm_cl_mixed_chunks_use_no_sample_twice(tmp_path):
    source = trees.mllm_cl(tmp_path / "source")
    out = tmp_path / "out"
    mixed = ["--size", "10", "--mixed", "1.0", "--seed", "3"]
    assert mllm_cl(["--source", str(source), "--out", str(out), *mixed, "--workers", "1"]) == 0
    chunks = [rows(path) for path in sorted((out / "chunks").iterdir())]
    assert [len(chunk) for chunk in chunks] == [10] * 15
    assert any(len({r["task"] for r in chunk}) > 1 for chunk in chunks)
    names = [row["id"] for chunk in chunks for row in chunk]
    assert len(set(names)) == len(names) == 150


def test_mllm_cl_names_the_file_that_is_missing(tmp_path, capsys):
    source = trees.mllm_cl(tmp_path / "source", "ACL")
    (source / "Math_test/test.json").unlink()
    arguments = ["--source", str(source), "--out", str(tmp_path / "out"), "--benchmark", "ACL"]
    assert mllm_cl([*arguments, "--workers", "1"]) == 2
    assert "no Math/test.json or Math_test/test.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
