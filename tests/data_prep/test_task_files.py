"""UCIT and CoIN from trees in their published layouts, and quick subsets of every benchmark."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.check.__main__ import main as check
from data_prep.coin.__main__ import main as coin
from data_prep.mllm_cl.__main__ import main as mllm_cl
from data_prep.published.benchmarks import COIN, UCIT, Benchmark
from data_prep.sources.converting import Limit, chosen
from data_prep.strcvit.__main__ import main as strcvit
from data_prep.stream import open_stream
from data_prep.ucit.__main__ import main as ucit
from tests.data_prep import trees

Command = Callable[[list[str]], int]
BOTH = [(UCIT, ucit), (COIN, coin)]
NAMES = ["ucit", "coin"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {each.name: trees.task_files(root / each.name, each) for each, _ in BOTH}


def convert(command: Command, source: Path, out: Path, *more: str) -> int:
    return command(["--source", str(source), "--out", str(out), "--workers", "1", *more])


@pytest.mark.parametrize("command", [strcvit, ucit, coin, mllm_cl])
def test_an_option_that_a_command_cannot_follow_is_no_option_of_it(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        convert(command, tmp_path, tmp_path / "out", "--append", str(tmp_path / "stream"))
    assert "unrecognized arguments: --append" in capsys.readouterr().err


@pytest.mark.parametrize(("benchmark", "command"), BOTH, ids=NAMES)
def test_one_chunk_a_task_in_the_published_order(
    benchmark: Benchmark, command: Command, sources: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "stream"
    assert convert(command, sources[benchmark.name], out) == 0
    stream = open_stream(out)
    names = [task.name for task in benchmark.tasks]
    assert [dict(chunk.tasks) for chunk in stream.chunks] == [{name: 12} for name in names]
    assert stream.tasks == names
    assert [stream.task(t.name).scorer for t in benchmark.tasks] == [
        t.scorer for t in benchmark.tasks
    ]
    assert check([str(out), "--report", str(tmp_path / "r.json"), "--workers", "1"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["by_code"] == {}
    assert (out / "router" / f"task{len(names)}.jsonl").is_file()


def test_captions_have_the_five_references_of_their_own_file(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    assert convert(ucit, sources["ucit"], tmp_path / "s", "--order", "VizWiz") == 0
    record = open_stream(tmp_path / "s").test_records("VizWiz")[1]
    assert record["references"] == [f"caption {n} of 2" for n in range(5)]
    assert record["messages"][0]["content"] == f"<image>{trees.CAPTION}"
    assert record["images"] == ["images/VizWiz/val/test_000001.jpg"]


def test_a_picture_that_is_listed_twice_keeps_its_captions(tmp_path: Path) -> None:
    source = trees.task_files(tmp_path / "ucit", UCIT, train=3, tests=2)
    path = source / "instructions/VizWiz/val_coco_type_3000.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 77, "file_name": content["images"][0]["file_name"]})
    trees.write_json(path, content)
    assert convert(ucit, source, tmp_path / "s", "--order", "VizWiz") == 0
    record = open_stream(tmp_path / "s").test_records("VizWiz")[0]
    assert record["references"] == [f"caption {n} of 1" for n in range(5)]


def test_textvqa_has_its_ten_answers_and_scienceqa_its_letters(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "coin"
    trees.task_files(source, COIN)
    test = source / "Instructions_Original/ScienceQA/test.json"
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in json.loads(test.read_text())]
    trees.write_json(test, rows)
    order = ("--order", "ScienceQA,TextVQA")
    assert convert(coin, source, tmp_path / "s", *order) == 1  # no answer, and no problems.json
    problems = {str(n): {"answer": n % 2, "choices": ["red", "blue"]} for n in range(4)}
    trees.write_json(source / "cl_dataset/ScienceQA/problems.json", problems)
    assert convert(coin, source, tmp_path / "s", *order) == 0
    stream = open_stream(tmp_path / "s")
    letters = [r["messages"][-1]["content"] for r in stream.test_records("ScienceQA")]
    assert letters == ["A", "B", "A", "B"]
    assert stream.test_records("TextVQA")[0]["references"] == ["stop"] * 9 + ["x"]


def test_golds_are_found_where_archives_put_them_and_missed_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trees.task_files(tmp_path / "coin", COIN, train=3, tests=2)
    place = source / "Instructions_Original"
    (place / "TextVQA/TextVQA_0.5.1_val.json").unlink()
    questions = json.loads((place / "GQA/test.json").read_text())
    trees.write_json(
        place / "GQA/test.json", [{k: v for k, v in q.items() if k != "answer"} for q in questions]
    )
    official = source / "cl_dataset/GQA/questions1.2/testdev_balanced_questions.json"
    trees.write_json(official, {"0": {"answer": "left"}, "1": {"answer": "right"}})
    science = json.loads((place / "ScienceQA/train.json").read_text())
    science[0]["conversations"][0]["value"] = "Which is larger?"  # a question without a picture
    del science[0]["image"]
    trees.write_json(place / "ScienceQA/train.json", science)
    assert convert(coin, source, tmp_path / "s", "--order", "ScienceQA,TextVQA,GQA") == 0
    said = capsys.readouterr().out
    assert "TextVQA: no TextVQA_0.5.1_val.json was found: one gold answer a question" in said
    stream = open_stream(tmp_path / "s")
    golds = [record["messages"][-1]["content"] for record in stream.test_records("GQA")]
    assert golds == ["left", "right"]
    lines = (tmp_path / "s/chunks/001.jsonl").read_text().splitlines()
    assert sorted(len(json.loads(line)["images"]) for line in lines) == [0, 1, 1]


@pytest.mark.parametrize("place", ["Instruction_Type1", "playground/Instructions_Original"])
def test_layouts_of_the_other_pages_are_found(place: str, tmp_path: Path) -> None:
    source = trees.task_files(tmp_path / "coin", COIN, train=3, tests=2)
    (source / place).parent.mkdir(exist_ok=True)
    (source / "Instructions_Original").rename(source / place)
    (source / "cl_dataset").rename(source / "datasets")
    assert convert(coin, source, tmp_path / "c", "--order", "GQA,VQAv2") == 0
    source = trees.task_files(tmp_path / "ucit", UCIT, train=3, tests=2)
    (source / "instructions/CLEVR").rename(source / "CLEVR-Math")  # MCITlib's
    assert convert(ucit, source, tmp_path / "u", "--order", "CLEVR") == 0


@pytest.mark.parametrize("task", ["VizWiz", "TextVQA"])  # the second's official file is not there
def test_answers_of_several_annotators_count_under_either_name(task: str, tmp_path: Path) -> None:
    source = trees.task_files(tmp_path / "coin", COIN, train=3, tests=2)
    (source / "Instructions_Original/TextVQA/TextVQA_0.5.1_val.json").unlink()
    path = source / f"Instructions_Original/{task}/val.json"
    rows = json.loads(path.read_text())
    for row in rows:
        del row["answer"]
        row["answers"] = [{"answer": "unanswerable"}, {"answer": "a mug"}]
    trees.write_json(path, rows)
    assert convert(coin, source, tmp_path / "s", "--order", task, "--limit", "2") == 0
    record = open_stream(tmp_path / "s").test_records(task)[0]
    assert record["references"] == ["unanswerable", "a mug"]


def test_mixed_chunks_by_shares_and_as_a_file_states(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    assert convert(ucit, sources["ucit"], tmp_path / "a", "--mixed", "0.5", "--size", "10") == 0
    chunks = open_stream(tmp_path / "a").chunks
    assert [chunk.samples for chunk in chunks] == [10] * 7
    total = sum((Counter(dict(chunk.tasks)) for chunk in chunks), Counter())
    assert max(total.values()) <= 12
    stated = [{"CLEVR": 5, "IconQA": 2}, {"CLEVR": 7}]
    trees.write_json(tmp_path / "mixture.json", stated)
    mixture = ("--mixture", str(tmp_path / "mixture.json"))
    assert convert(ucit, sources["ucit"], tmp_path / "b", *mixture) == 0
    assert [dict(chunk.tasks) for chunk in open_stream(tmp_path / "b").chunks] == stated


@pytest.mark.parametrize(
    ("file", "content", "code", "said"),
    [
        ("ArxivQA/train_4w.json", None, 2, "no instructions/ArxivQA/train_4w.json"),
        ("ArxivQA/train_4w.json", " [ ] ", 2, "train_4w.json: no samples in it"),
        ("ArxivQA/test_3000.json", "[]", 2, "test_3000.json: no samples in it"),
        ("ArxivQA/train_4w.json", '[{"id": "1", "ima', 1, "ArxivQA/train_4w.json"),
        ("ArxivQA/train_4w.json", '[{"id": "1", "image": "ArxivQA/images/train_000000.jpg"}]', 1,
         "train_4w.json: sample 1: found the keys: id, image; expected"),
        ("ArxivQA/test_3000.json", '[{"question_id": "1", "image": "none.jpg", "text": "A?", '
         '"answer": "A"}]', 1, "test_3000.json: sample 1: image 'none.jpg'"),
        ("VizWiz/val_coco_type_3000.json", None, 2, "holds the reference captions of"),
        ("VizWiz/val_coco_type_3000.json", '{"images": []}', 1,
         "not in COCO's form: no 'annotations'; fetch this file again"),
        ("VizWiz/val_coco_type_3000.json", '{"images": [], "annotations": []}', 1,
         "has no answer for image 'VizWiz/val/test_000000.jpg'"),
    ],
    ids=["missing", "none", "no-test", "cut", "key", "image", "no-captions", "captions-form",
         "captions-part"],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_written(
    file: str, content: str | None, code: int, said: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = trees.task_files(tmp_path / "ucit", UCIT, train=3, tests=2)
    path = source / "instructions" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    found = convert(ucit, source, tmp_path / "s", "--order", "ArxivQA,VizWiz")
    text = capsys.readouterr().err
    assert (found, said in text) == (code, True), text
    assert not (tmp_path / "s").exists()


def test_other_sizes_than_the_published_ones_are_told(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(ucit, sources["ucit"], tmp_path / "s", "--order", "CLEVR") == 0
    said = capsys.readouterr().out
    assert "CLEVR: 12 samples in the training file, the published one has 40000" in said
    assert "CLEVR: 4 samples in the test file, the published one has 3000" in said


def test_a_box_of_four_numbers_is_one_answer(tmp_path: Path) -> None:
    source = trees.task_files(tmp_path / "coin", COIN, train=3, tests=2)
    path = source / "Instructions_Original/Grounding/test.json"
    box = [0.1, 0.2, 0.5, 0.6]
    rows = json.loads(path.read_text())
    trees.write_json(path, [{**row, "answer": box, "answer_bbox": box} for row in rows])
    assert convert(coin, source, tmp_path / "s", "--order", "Grounding") == 0
    record = open_stream(tmp_path / "s").test_records("Grounding")[0]
    assert record["messages"][-1]["content"] == record["answer_bbox"] == "[0.1, 0.2, 0.5, 0.6]"
    assert "references" not in record


@pytest.mark.parametrize("task", ["GQA", "VizWiz"])  # with a file of answers, and without
def test_the_text_that_published_scripts_ask_is_asked(task: str, tmp_path: Path) -> None:
    source = trees.task_files(tmp_path / "coin", COIN, train=3, tests=2)
    path = next((source / "Instructions_Original" / task).glob("[tv]*[tl].json"))
    rows = json.loads(path.read_text())
    trees.write_json(path, [{**row, "question": "How?", "Prompt": "Raw"} for row in rows])
    assert convert(coin, source, tmp_path / "s", "--order", task) == 0
    asked = [r["messages"][0]["content"] for r in open_stream(tmp_path / "s").test_records(task)]
    assert asked == [f"<image>{row['text']}" for row in rows]


def test_sizes_are_those_of_the_files_whatever_the_chunks_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trees.task_files(tmp_path / "ucit", UCIT, train=12, tests=4)
    for name in ("train_4w", "test_3000"):
        path = source / f"instructions/CLEVR/{name}.json"
        rows = json.loads(path.read_text())
        trees.write_json(path, [{**rows[0], "image": "gone.jpg"}, *rows[1:]])
    trees.write_json(tmp_path / "mixture.json", [{"CLEVR": 5}])
    stated = ("--order", "CLEVR", "--mixture", str(tmp_path / "mixture.json"), "--skip-bad")
    assert convert(ucit, source, tmp_path / "s", *stated) == 0
    said = capsys.readouterr().out
    assert "CLEVR: 12 samples in the training file, the published one has 40000" in said
    assert "CLEVR: 4 samples in the test file, the published one has 3000" in said


def test_the_checklist_says_what_is_there_and_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trees.task_files(tmp_path / "coin", COIN, train=3, tests=2)
    assert coin(["--source", str(source), "--checklist"]) == 0
    assert "  present  GQA        GQA/images (5 entries)" in capsys.readouterr().out
    for path in (source / "cl_dataset/ImageNet_withlabel/val").iterdir():
        path.unlink()
    assert coin(["--source", str(source), "--checklist"]) == 1
    said = capsys.readouterr().out
    assert "  MISSING  ImageNet   ImageNet_withlabel/val\n" in said
    assert "134,883 pictures in all: https://www.image-net.org" in said


def test_an_image_set_that_is_not_there_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trees.task_files(tmp_path / "ucit", UCIT, train=3, tests=2)
    (source / "datasets/CLEVR").rename(source / "datasets/Clevr")
    assert convert(ucit, source, tmp_path / "s", "--order", "CLEVR,ArxivQA") == 1
    said = capsys.readouterr().err
    assert f"below {source}/datasets: CLEVR/images/train, CLEVR/images/val: empty or not" in said
    assert "--checklist says where" in said


def test_each_answer_keeps_its_share_in_a_subset() -> None:
    strata = ["a"] * 60 + ["b"] * 30 + ["c"] * 9 + ["d"]
    kept = chosen(strata, Limit(20, seed=3))
    counts = Counter(strata[place] for place in kept)
    # 20 of 100: 12, 6, 1.8 and 0.2 of each, rounded up or down
    assert (counts["a"], counts["b"], sum(counts.values())) == (12, 6, 20)
    assert counts["c"] in (1, 2)
    assert kept == chosen(strata, Limit(20, seed=3)) != chosen(strata, Limit(20, seed=4))
    assert chosen(strata, Limit(100, seed=3)) == set(range(100))


def test_quick_subsets_of_every_benchmark(sources: dict[str, Path], tmp_path: Path) -> None:
    published, images = trees.strcvit(tmp_path / "strcvit", chunks=2)
    small = ["--limit", "2", "--workers", "1"]
    where = ["--source", str(published), "--images", str(images), "--out", str(tmp_path / "a")]
    assert strcvit([*where, *small]) == 0
    where = ["--source", str(trees.mllm_cl(tmp_path / "m")), "--out", str(tmp_path / "b")]
    assert mllm_cl([*where, *small]) == 0
    assert convert(ucit, sources["ucit"], tmp_path / "c", "--limit", "2") == 0
    assert convert(coin, sources["coin"], tmp_path / "d", "--limit", "2") == 0
    for name, chunks in {"a": 2, "b": 5, "c": 6, "d": 8}.items():
        stream = open_stream(tmp_path / name)
        assert [chunk.samples for chunk in stream.chunks] == [2] * chunks
        assert {len(stream.test_records(task)) for task in stream.tasks} == {2}
        again = json.loads((tmp_path / name / "stream.json").read_text())
        assert again["generator"]["settings"]["limit"] == 2
    answers = [json.loads(line)["messages"][-1]["content"]
               for line in (tmp_path / "c/chunks/002.jsonl").read_text().splitlines()]  # fmt: skip
    assert sorted(answers) == ["A", "B"]  # of ArxivQA: half of its answers each
    assert convert(ucit, sources["ucit"], tmp_path / "e", "--limit", "0") == 2
