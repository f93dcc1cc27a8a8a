"""The report as a page: complete, alone, with marked gaps where files lack, never a crash."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html import unescape
from pathlib import Path
from statistics import fmean

import pytest

from data_prep.files import read_json, read_jsonl, write_json, write_jsonl
from eval.compare.comparison import compare
from eval.compare.tables import notes
from eval.report import write_report
from eval.report.__main__ import main
from eval.report.data import load_run
from eval.scorers.cider import chrf
from tests.eval.make_run import make_run
from tests.eval.report.page_reader import cards_of, mean, shown, tables_of

CHUNKS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, not to be changed."""
    run, _ = make_run(tmp_path_factory.mktemp("finished"), chunks=CHUNKS, done=CHUNKS, tests=16)
    write_report(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's folder, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def _page(run: Path) -> str:
    return (run / "report.html").read_text("utf-8")


def _matrix(run: Path) -> dict[tuple[int, str], float]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(r["chunk"]), r["task"]): float(r["score"]) for r in csv.DictReader(file)}


def test_the_page_stands_alone(finished: Path) -> None:
    page = _page(finished)
    assert page.count('role="img" aria-label=') == page.count("<svg") >= 14
    assert page.count("data:image/jpeg;base64,") == 5
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) or link == "answers.html" for link in links)
    assert "<script" not in page
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert "prefers-color-scheme: dark" in page
    assert "Finished: 4 of 4 chunks" in page
    assert "not available" not in page


def test_the_same_files_give_the_same_page(run: Path) -> None:
    first = _page(run)
    write_report(run)
    assert re.sub(r"Written [^<]* UTC", "", _page(run)) == re.sub(r"Written [^<]* UTC", "", first)


def test_the_seed_of_a_stream_that_is_made_from_one_stands_beside_the_runs(run: Path) -> None:
    manifest = read_json(run / "manifest.json")
    assert "stream seed" not in _page(run)
    data = manifest["recipe"].get("data", {}) | {"source": "mini", "seed": 3}
    manifest["recipe"]["data"] = data
    write_json(run / "manifest.json", manifest)
    write_report(run)
    seeds = f"{manifest['seed']}, stream seed 3"
    assert f", seed {seeds}" in _page(run)
    assert f">{seeds}<" in _page(run), "among the facts"


def test_a_run_still_going_on(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=6, done=2, tests=8)
    shutil.rmtree(run / "chunks" / "002" / "predictions")
    write_report(run)
    page = _page(run)
    assert "Still going on: 2 of 6 chunks" in page
    assert "Predictions of VQAv2 after chunk 2" in page
    # The scores themselves are in matrix.csv.
    assert cards_of(page)["Last"][0] == shown(
        mean([v for (c, _), v in _matrix(run).items() if c == 2])
    )


def test_only_the_base_model(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=3, done=0, tests=4)
    page = write_report(run).read_text("utf-8")
    assert cards_of(page)["Last"] == ("–", "")  # noqa: RUF001
    assert cards_of(page)["Base model"][0] != "–"  # noqa: RUF001
    assert "Forgetting: not available" in page
    assert "Expert use: not available" in page
    assert "Loss curves: not available" in page


def test_an_empty_folder(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text("utf-8")
    assert "Nothing has been evaluated yet" in page
    assert "What this report could not read" in page


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("manifest.json", "Configuration"),
        ("state.json", "State of the run"),
        ("recipe.yaml", "Recipe"),
        ("matrix.csv", "Nothing has been evaluated yet"),
        ("chunks/002/routing.json", "Routing after chunk 2"),
        ("chunks/002/train_metrics.jsonl", "Training log of chunk 2"),
        ("chunks/002/predictions/Fin.jsonl", "Predictions of Fin after chunk 2"),
    ],
)
def test_damaged_files_are_marked(run: Path, damage: str, expected: str) -> None:
    path = run / damage
    if path.suffix in (".json", ".jsonl"):
        path.write_text('{"torn\n{}\n', "utf-8")
    else:
        path.unlink()
    write_report(run)
    assert expected in _page(run)
    assert Path(damage).name in unescape(_page(run))


def test_scores_that_contradict_the_predictions_are_told(run: Path) -> None:
    path = run / "matrix.csv"
    lines = path.read_text("utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("2,Fin,"))
    lines[at] = "2,Fin,0.999000,16"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    write_report(run)
    assert "matrix.csv says 0.999000" in _page(run)


def test_a_number_whose_predictions_lack_has_no_standard_error(run: Path) -> None:
    """Fin's and Grounding's last predictions: a mean of 5 tasks has not the error of 3."""
    assert all(error for name, (_, error) in cards_of(_page(run)).items() if name[0] != "M")
    for task in ("Fin", "Grounding"):
        (run / "chunks" / "004" / "predictions" / f"{task}.jsonl").unlink()
    write_report(run)
    cards = cards_of(_page(run))
    assert {name for name, (_, error) in cards.items() if error} == {
        "Base model",
        "Forward transfer",
    }
    assert "no ± where prediction files that a number needs cannot be read" in _page(run)
    rows = tables_of(_page(run))["all tasks, scores in percent; failed: over all chunks"]
    assert {row[0]: "±" in row[rows[0].index("last")] for row in rows[1:]} == {
        "VQAv2": True, "OCRVQA": True, "Fin": False, "Grounding": False, "TextCaps": True,
    }  # fmt: skip


def test_one_test_sample_is_no_certainty(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=2, done=2, tests=1)
    write_report(run)
    assert not any(error for _, error in cards_of(_page(run)).values())
    assert "± 0.0" not in _page(run)
    assert "or a task has one test sample" in _page(run)


def test_keys_and_types_that_lack_are_gaps(run: Path) -> None:
    """Files that are JSON, but not of the kind that is read: each is told, none ends the report."""
    lines = {
        "VQAv2": ({"gold": ["a"]}, "VQAv2.jsonl:1: gold: found ['a'], expected text"),
        "OCRVQA": ({"prediction": 5}, "OCRVQA.jsonl:1: prediction: found 5, expected text"),
        "Fin": ({"lenient": "x"}, "Fin.jsonl:1: lenient: found 'x', expected a number"),
        "Grounding": ({"gold": ...}, "Grounding.jsonl:1: gold: no such key, expected text"),
        "TextCaps": ({"prediction": ...}, "TextCaps.jsonl:1: prediction: no such key"),
    }
    for task, (changed, _) in lines.items():
        path = run / "chunks" / "004" / "predictions" / f"{task}.jsonl"
        first, *others = read_jsonl(path)
        first = {key: value for key, value in (first | changed).items() if value is not ...}
        write_jsonl(path, [first, *others])
    manifest = read_json(run / "manifest.json") | {"hardware": {"gpus": 3, "cores": 2}}
    steps = {"schedule": {"first": "x", "epochs": "2"}, "swift": {"logging_steps": "0.1"}}
    write_json(run / "manifest.json", manifest | {"recipe": manifest["recipe"] | steps})
    write_json(run / "state.json", {"done": 4, "chunks": [{"index": 1, "steps": "x"}]})
    last = run / "chunks" / "004"
    write_json(last / "scores.json", {"tasks": {}, "published": {}})
    write_json(last / "router.json", {"chunk": 4, "what": "other", "tasks": {}})
    write_jsonl(last / "too_long.jsonl", [{"file": "x"}])
    fast = "chunk,task,score,n\n0,VQAv2,0.1,16\n9,VQAv2,0.5,16\n"
    (run / "matrix-fast.csv").write_text(fast, "utf-8")
    write_report(run)
    told = {gap.why.replace("; evaluate the chunk again", "") for gap in load_run(run).gaps}
    for words in (
        *(words for _, words in lines.values()),
        "state.json: chunks: steps: found 'x', expected a number",
        "scores.json: no published.tasks, no published.crashes, no published.mean; evaluate again",
        "router.json: what: found 'other', expected adapter or router",
        "no key 'line'",
        "left out: matrix.csv ends with chunk 4",
    ):
        assert any(words in why for why in told), words
    assert "2 CPU cores" in _page(run)
    assert "matrix-fast.csv: chunks after 4." in _page(run)


def test_joint_training_has_only_what_it_ends_with(run: Path) -> None:
    """Between base model and end it has nothing: no average, no loss, no forgetting."""
    rows = (run / "matrix.csv").read_text("utf-8").splitlines()
    kept = [row for row in rows if not row.startswith(("1,", "2,", "3,"))]
    (run / "matrix.csv").write_text("\n".join(kept) + "\n", "utf-8")
    write_json(run / "manifest.json", read_json(run / "manifest.json") | {"protocol": "joint"})
    write_report(run)
    assert list(cards_of(_page(run))) == ["Last", "Base model", "Majority answer"]
    assert "There is no stream to forget in." in _page(run)
    assert "Nothing is lost" not in _page(run)
    form = tables_of(_page(run))["form or knowledge, in percent, after chunk 4"]
    assert {cell for row in form[1:] for cell in row[4:]} == {"\u2013"}


def test_a_mean_over_fewer_tasks_is_told(run: Path) -> None:
    """A stream that grows: Fin's test set came late, and the base model was not asked it."""
    rows = (run / "matrix.csv").read_text("utf-8").splitlines()
    kept = [row for row in rows if not row.startswith(("0,Fin", "2,Fin"))]
    (run / "matrix.csv").write_text("\n".join(kept) + "\n", "utf-8")
    write_report(run)
    fewer = "Not all of the 5 tasks are tested each time: after base model (4), chunk 2 (4) the"
    assert fewer in _page(run)
    assert "before the stream, 4 of 5 tasks" in _page(run)
    assert " on 4 of them, where this model has " in _page(run)
    assert "Every task is tested" not in _page(run)


def test_failed_samples_areshown(run: Path) -> None:
    path = run / "chunks" / "001" / "predictions" / "Fin.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[0] |= {"prediction": None, "error": "out of memory"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    write_report(run)
    assert "1 test samples got no answer" in _page(run)


def test_text_from_models_is_escaped(run: Path) -> None:
    for chunk in range(CHUNKS + 1):
        path = run / "chunks" / f"{chunk:03d}" / "predictions" / "Fin.jsonl"
        path.write_text(
            path.read_text("utf-8").replace('"prediction": "C"', '"prediction": "<b>x"'), "utf-8"
        )
    write_report(run)
    assert "<b>x" not in _page(run)
    assert "&lt;b&gt;x" in _page(run)


def test_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert main([str(run / "none")]) == 2
    assert "no such run" in capsys.readouterr().err


def test_a_moved_stream_can_be_named(tmp_path: Path) -> None:
    run, stream = make_run(tmp_path, chunks=2, done=1, tests=4)
    moved = Path(shutil.move(stream, tmp_path / "elsewhere"))
    assert "Stream" in {gap.what for gap in load_run(run).gaps}
    assert load_run(run, moved).gaps == []


def test_many_tasks_and_chunks(tmp_path: Path) -> None:
    tasks = [f"Task{n:02d}" for n in range(20)]
    run, _ = make_run(tmp_path, chunks=30, done=30, tests=2, tasks=tasks, routed=False)
    page = write_report(run).read_text("utf-8")
    assert len(page) < 2_000_000
    assert "one task each" in page


def test_damaged_ablations_and_routing_are_marked(run: Path) -> None:
    (run / "ablation.json").write_text('{"format": 1, "chunk": 4, "intact": {}}', "utf-8")
    path = run / "chunks" / "003" / "routing.json"
    content = json.loads(path.read_text("utf-8"))
    content["groups"][0]["use"][0] = [None] * 4
    content["groups"][1]["rows"] -= 9
    content["rows"] -= 9
    path.write_text(json.dumps(content), "utf-8")
    write_report(run)
    page = unescape(_page(run))
    assert "ablation.json: damaged" in page
    assert "What each part is worth" not in page
    assert "Chunk 3: recorded for 71 of 80 questions" in page
    assert "nan" not in re.findall(r"[a-z]+", re.sub(r'"data:image[^"]*"', "", page).lower())


def test_a_run_without_experts(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chunks=2, done=2, tests=4, routed=False)
    path = run / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["recipe"]["method"], manifest["tuner"] = (
        "lora",
        None,
    )  # as recipes.run_folder.manifest writes it
    path.write_text(json.dumps(manifest), "utf-8")
    page = write_report(run).read_text("utf-8")
    assert "The method lora has no routed experts." in page


def test_chunks_that_were_not_evaluated_are_gaps(tmp_path: Path) -> None:
    """Evaluation every second chunk: holes in every plot and table, no zeros."""
    run, _ = make_run(tmp_path, chunks=4, done=4, tests=8)
    lines = (run / "matrix.csv").read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("1,", "3,"))]
    (run / "matrix.csv").write_text("\n".join(kept) + "\n", "utf-8")
    for chunk in (1, 3):
        shutil.rmtree(run / "chunks" / f"{chunk:03d}")
    tables = tables_of(write_report(run).read_text("utf-8"))
    rows = tables["score after each chunk, in percent"]
    assert set(rows[2][1:]) == set(rows[4][1:]) == {"\u2013"}
    assert [row[0] for row in tables["routing over the stream"][1:]] == [
        "chunk 2", "chunk 4"
    ]  # fmt: skip


def test_scores_are_read_with_the_predictions(run: Path) -> None:
    """What a sample earned was decided once; a report does not decide again."""
    path = run / "chunks" / "001" / "predictions" / "VQAv2.jsonl"
    write_jsonl(path, [line | {"score": 0.25} for line in read_jsonl(path)])
    assert set(load_run(run).scored[1, "VQAv2"].scores) == {0.25}


@pytest.mark.parametrize(("tests", "told"), [(4, True), (12, False)])
def test_captions_that_are_too_few_for_cider_are_told(tmp_path: Path, tests: int, told: bool):
    """coco-caption#9, pycocoevalcap#18: one perfect caption scores 0."""
    run, _ = make_run(tmp_path, chunks=1, done=1, tests=tests, tasks=["TextCaps"], routed=False)
    lines = read_jsonl(run / "chunks/001/predictions/TextCaps.jsonl")
    mean = fmean(chrf(line["prediction"], line["references"]) for line in lines)
    page = write_report(run).read_text("utf-8")
    assert (f"TextCaps: the test set ({tests} pictures) is too small for CIDEr" in page) == told
    assert (f"chrF (characters) of the same captions, of 100: {100 * mean:.1f}." in page) == told
    assert any("too small for CIDEr" in note for note in notes(compare([run]))) == told


def test_a_damaged_chunk_leaves_a_gap_where_the_constant_answers_stand(tmp_path: Path) -> None:
    """Of a stream of one's own, whose manifest does not tell their scores."""
    run, stream = make_run(tmp_path, chunks=3, done=3, tests=4, tasks=["VQAv2", "OCRVQA"])
    manifest = read_json(stream / "stream.json")
    for entry in manifest["tasks"].values():
        entry.pop("majority")
    write_json(stream / "stream.json", manifest)
    with (stream / "chunks/001.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"broken\n')
    page = unescape(write_report(run).read_text("utf-8"))
    assert page.count("Best constant answers") == 1
    assert re.search(r"Best constant answers\W.{0,40}chunks/001.jsonl:\d+: not JSON", page, re.S)
    assert str(stream) not in page


def test_a_run_of_one_task_has_a_full_report(tmp_path: Path) -> None:
    """Nothing compares tasks, and nothing counts "1 tasks"."""
    run, _ = make_run(tmp_path, tasks=["VQAv2"], chunks=3, done=3, tests=4)
    told: list[str] = []
    page = unescape(write_report(run, tell=told.append).read_text("utf-8"))
    assert len(told) == 1
    assert told[0] in page
    assert told[0].startswith("After chunk 3 of 3 VQAv2 has ")
    assert "1 task, last evaluated chunk 3" in page
    for wrong in (
        "1 tasks",
        "</i>mean</li>",
        "the mean in bold",
        "mutual information",
        "Overlap of tasks",
        "eparation",
        "CKA",
    ):
        assert wrong not in page, wrong


def test_equal_questions_are_no_interruption(tmp_path: Path) -> None:
    """Two rows of one picture are asked once: what lacks of the record was never asked."""
    run, stream = make_run(tmp_path, tasks=["VQAv2", "OCRVQA"], chunks=2, done=2, tests=4)
    path = stream / "test" / "VQAv2.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows[1] |= {"messages": rows[0]["messages"], "images": rows[0].get("images")}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    record = run / "chunks" / "002" / "routing.json"
    content = json.loads(record.read_text("utf-8"))
    for lacking, interrupted in ((1, False), (2, True)):
        groups = [{**content["groups"][0], "rows": content["groups"][0]["rows"] - lacking}]
        changed = {"groups": groups + content["groups"][1:], "rows": content["rows"] - lacking}
        record.write_text(json.dumps(content | changed), "utf-8")
        page = unescape(write_report(run).read_text("utf-8"))
        assert ("the evaluation was interrupted" in page) is interrupted
    assert "recorded for 6 of 7 questions" in page
