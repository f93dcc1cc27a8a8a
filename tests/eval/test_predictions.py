"""The join: every answer finds its question by content, every gap is marked, nothing is guessed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data_prep.files import read_jsonl, write_jsonl
from data_prep.stream import StreamError
from eval.predictions import chunk_scores, read_predictions, split_results
from eval.questions import repair_results, write_combined
from eval.scorers.registry import open_scored_stream
from tests.eval.make_run import host_results, make_stream

TASKS = ["VQAv2", "OCRVQA", "Grounding"]


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return make_stream(tmp_path / "stream", TASKS, chunks=2, tests=6)


def _answer(stream: Path, lines: list[dict], out: Path) -> dict[str, int]:
    write_jsonl(out / "answers.jsonl", lines)
    return split_results(out / "answers.jsonl", stream, out / "predictions")


def _all_right(stream: Path) -> list[dict]:
    return host_results(stream, TASKS, dict.fromkeys(TASKS, 1.0), seed=0)


def test_question_file(stream: Path, tmp_path: Path) -> None:
    count = write_combined(stream, TASKS, tmp_path / "val.jsonl")
    lines = read_jsonl(tmp_path / "val.jsonl")
    assert count == len(lines) == 18
    assert all(m["role"] != "assistant" for line in lines for m in line["messages"])
    assert all(line.keys() == {"messages", "images"} for line in lines), "nobody is told the task"
    pictures = {f"images/test/{t}/{n:06d}.png" for t in TASKS for n in range(6)}
    assert {line["images"][0] for line in lines} == pictures
    # Long answers first, then sorted by length inside a task.
    tasks = [Path(line["images"][0]).parent.name for line in lines[::6]]
    assert tasks == ["Grounding", "OCRVQA", "VQAv2"]
    lengths = [len(line["messages"][0]["content"]) for line in lines[:6]]
    assert lengths == sorted(lengths, reverse=True)
    assert write_combined(stream, ["VQAv2"], tmp_path / "few.jsonl", limit=2) == 2


def test_order_does_not_matter(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    random.Random(3).shuffle(lines)
    assert _answer(stream, lines, tmp_path) == dict.fromkeys(TASKS, 0)
    scores = chunk_scores(tmp_path / "predictions", stream, chunk=4)
    assert scores["chunk"] == 4
    assert {t: s["score"] for t, s in scores["tasks"].items()} == dict.fromkeys(TASKS, 1.0)
    first = read_jsonl(tmp_path / "predictions" / "Grounding.jsonl")[0]
    assert first["id"] == "Grounding-test-000000"
    assert first["prompt"] == "Where is shape 0? Give [x1, y1, x2, y2]."
    assert first["size"] == [112, 112]
    assert first["prediction"] == first["gold"] == first["answer_bbox"]


def test_missing_and_failed_answers_are_errors(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    lines[1]["response"] = None
    del lines[0]
    assert _answer(stream, lines, tmp_path) == {"VQAv2": 2, "OCRVQA": 0, "Grounding": 0}
    written = read_jsonl(tmp_path / "predictions" / "VQAv2.jsonl")
    assert [line["prediction"] for line in written[:2]] == [None, None]
    assert all(line["error"] for line in written[:2])
    entry = chunk_scores(tmp_path / "predictions", stream, 1)["tasks"]["VQAv2"]
    assert entry["failed"] == 2
    assert entry["n"] == 6
    assert entry["score"] == pytest.approx(4 / 6, abs=1e-6)


def test_an_empty_answer_is_an_answer(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    lines[0]["response"] = ""
    assert _answer(stream, lines, tmp_path)["VQAv2"] == 0
    assert chunk_scores(tmp_path / "predictions", stream, 1)["tasks"]["VQAv2"]["failed"] == 0


def test_thoughts_are_no_answers(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    for line in lines[:6]:
        line["response"] = f"<think>Not red?</think>{line['response']}"
    lines[0]["response"] = "<think>Let me see"
    _answer(stream, lines, tmp_path)
    tasks = chunk_scores(tmp_path / "predictions", stream, 1)["tasks"]
    scores = [tasks[task]["score"] for task in TASKS]
    assert sorted(scores) == [pytest.approx(5 / 6, abs=1e-6), 1.0, 1.0]
    assert [entry.get("unfinished") for entry in tasks.values()].count(1) == 1
    assert [entry.get("unfinished") for entry in tasks.values()].count(None) == 2


def test_nothing_answered_is_no_score(stream: Path, tmp_path: Path) -> None:
    lines = [line for line in _all_right(stream) if "shape" not in line["messages"][0]["content"]]
    _answer(stream, lines, tmp_path)
    entry = chunk_scores(tmp_path / "predictions", stream, 1)["tasks"]["VQAv2"]
    assert entry == {"score": None, "n": 6, "failed": 6, "cut": 0, "stderr": None}


def test_both_variants_and_raw_cider_are_kept(tmp_path: Path) -> None:
    tasks = ["TextCaps", "ImageNet", "Fin"]
    stream = make_stream(tmp_path / "stream", tasks, chunks=1, tests=4)
    labels = stream / "test" / "ImageNet.jsonl"
    write_jsonl(labels, [{**r, "references": None} for r in read_jsonl(labels)])
    skill = {"TextCaps": 1.0, "ImageNet": 1.0, "Fin": 1.0}
    lines = host_results(stream, tasks, skill, seed=0)
    for line in lines:
        line["finish_reason"] = "length" if line["response"] in "AB" else "stop"
        if "ImageNet" in line["messages"][0]["content"]:
            line["response"] = ""  # the published script takes an empty answer for right
    lines[-1]["response"], lines[-1]["error"] = None, "out of memory"
    write_jsonl(tmp_path / "answers.jsonl", lines)
    split_results(tmp_path / "answers.jsonl", stream, tmp_path / "predictions", tasks)
    scores = chunk_scores(tmp_path / "predictions", stream, 1)
    captions = scores["tasks"]["TextCaps"]
    assert captions["score"] == 1.0
    assert captions["cider"] > 100
    assert scores["published"]["tasks"]["TextCaps"] > 100
    assert scores["tasks"]["ImageNet"]["score"] == 0.0
    assert scores["published"]["tasks"]["ImageNet"] == 100.0
    assert scores["tasks"]["Fin"] | {"stderr": 0} == {
        "score": 0.75, "n": 4, "failed": 1, "cut": 4, "stderr": 0, "lenient": 0.75
    }  # fmt: skip
    assert scores["published"]["tasks"]["Fin"] is None
    assert "without a prompt" in scores["published"]["crashes"]["Fin"]
    assert scores["published"]["mean"] is None
    failed = read_jsonl(tmp_path / "predictions" / "Fin.jsonl")[-1]
    assert (failed["prediction"], failed["error"]) == (None, "out of memory")


def test_unknown_and_double_answers_raise(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    with pytest.raises(ValueError, match=r"answers.jsonl:19: a second answer"):
        _answer(stream, [*lines, lines[0]], tmp_path)
    stranger = json.loads(json.dumps(lines[0]))
    stranger["images"][0]["path"] = "images/other.png"
    with pytest.raises(ValueError, match=r"answers.jsonl:19: answers no test record"):
        _answer(stream, [*lines, stranger], tmp_path)
    with pytest.raises(ValueError, match="not a result of swift infer"):
        _answer(stream, [{"text": "x"}], tmp_path)


def test_absolute_image_paths_and_plain_strings_join(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    for line in lines:
        line["images"] = [str((stream / i["path"]).resolve()) for i in line["images"]]
    assert _answer(stream, lines, tmp_path) == dict.fromkeys(TASKS, 0)


def test_equal_questions_are_asked_once(stream: Path, tmp_path: Path) -> None:
    path = stream / "test" / "VQAv2.jsonl"
    records = read_jsonl(path)
    twin = records[0] | {"id": "VQAv2-test-twin"}
    twin["messages"] = [records[0]["messages"][0], {"role": "assistant", "content": "violet"}]
    write_jsonl(path, [*records, twin])
    assert write_combined(stream, TASKS, tmp_path / "val.jsonl") == 18
    lines = [x for x in _all_right(stream) if x["response"] != "violet"]
    assert _answer(stream, lines, tmp_path)["VQAv2"] == 0
    written = read_jsonl(tmp_path / "predictions" / "VQAv2.jsonl")
    assert (
        written[0]["prediction"]
        == written[-1]["prediction"]
        == records[0]["messages"][1]["content"]
    )
    assert (written[-1]["id"], written[-1]["gold"]) == ("VQAv2-test-twin", "violet")


def test_a_killed_evaluation_goes_on(stream: Path, tmp_path: Path) -> None:
    lines = [json.dumps(line, ensure_ascii=False) for line in _all_right(stream)]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines[:5]) + "\n" + lines[5][:40], encoding="utf-8")
    assert write_combined(stream, TASKS, tmp_path / "val.jsonl", answered=path) == 13
    assert repair_results(path) == 5
    assert len(read_jsonl(path)) == 5
    assert repair_results(tmp_path / "none.jsonl") == 0


def test_line_separators_inside_an_answer(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    lines[0]["response"] = "one\u2028two"
    _answer(stream, lines, tmp_path)
    assert read_jsonl(tmp_path / "predictions" / "VQAv2.jsonl")[0]["prediction"] == "one\u2028two"


def test_prediction_files_that_do_not_fit(stream: Path, tmp_path: Path) -> None:
    _answer(stream, _all_right(stream), tmp_path)
    folder = tmp_path / "predictions"
    lines = read_jsonl(folder / "VQAv2.jsonl")
    write_jsonl(folder / "VQAv2.jsonl", [*lines, lines[0]])
    with pytest.raises(ValueError, match=r"VQAv2.jsonl:7: id .* occurs twice"):
        read_predictions(folder, open_scored_stream(stream), "VQAv2")
    write_jsonl(folder / "VQAv2.jsonl", [lines[0] | {"id": "other"}])
    with pytest.raises(ValueError, match="is not in the test set"):
        chunk_scores(folder, stream, 1)
    write_jsonl(folder / "Stranger.jsonl", lines)
    with pytest.raises(ValueError, match="unknown tasks"):
        chunk_scores(folder, stream, 1)
    with pytest.raises(FileNotFoundError, match="no prediction files"):
        chunk_scores(tmp_path / "nothing", stream, 1)


def test_streams_that_cannot_be_used(stream: Path, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="make one"):
        open_scored_stream(tmp_path / "none")
    manifest = json.loads((stream / "stream.json").read_text("utf-8"))
    manifest["tasks"]["VQAv2"]["scorer"] = "exakt"
    (stream / "stream.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ValueError, match="did you mean 'exact'"):
        open_scored_stream(stream)
    manifest["tasks"]["VQAv2"]["scorer"] = "vqa"
    (stream / "stream.json").write_text(json.dumps(manifest), "utf-8")
    path = stream / "test" / "VQAv2.jsonl"
    lines = read_jsonl(path)
    write_jsonl(path, [])
    with pytest.raises(ValueError, match="empty test set"):
        open_scored_stream(stream).test_records("VQAv2")
    write_jsonl(path, [*lines, lines[2]])
    with pytest.raises(ValueError, match="occurs twice"):
        open_scored_stream(stream).test_records("VQAv2")
    path.write_text('{"id": 1}\n{oops\n', "utf-8")
    with pytest.raises(ValueError, match=r"VQAv2.jsonl:2: not JSON"):
        open_scored_stream(stream).test_records("VQAv2")


def test_what_swift_infer_really_wrote(tmp_path: Path) -> None:
    """Lines of ms-swift 4.6: a system turn, history, an odd line separator, no picture."""
    path = Path(__file__).resolve().parent.parent / "fixtures" / "swift_infer_results.jsonl"
    lines = read_jsonl(path)
    stream = make_stream(tmp_path / "stream", ["VQAv2"], chunks=1)
    records = [
        {
            "id": f"VQAv2-test-{n:06d}",
            "messages": [*line["messages"][:-1], {"role": "assistant", "content": line["labels"]}],
            "images": [image["path"] for image in line["images"] or []],
        }
        for n, line in enumerate(lines)
    ]
    write_jsonl(stream / "test" / "VQAv2.jsonl", records[::-1])
    assert split_results(path, stream, tmp_path / "predictions") == {"VQAv2": 0}
    written = read_jsonl(tmp_path / "predictions" / "VQAv2.jsonl")[::-1]
    assert [line["prediction"] for line in written] == [line["response"] for line in lines]
    assert [line["gold"] for line in written] == ["1", "3", "3", "1", "gold", "gold"]
    assert written[4]["prompt"] == "again é\u2028?"


def test_the_score_of_a_sample_is_written_with_it(stream: Path, tmp_path: Path) -> None:
    lines = _all_right(stream)
    lines[0]["response"], lines[1]["response"] = "wrong", None
    _answer(stream, lines, tmp_path)
    written = read_jsonl(tmp_path / "predictions" / "VQAv2.jsonl")
    assert [line["score"] for line in written] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert chunk_scores(tmp_path / "predictions", stream, 1)["tasks"]["VQAv2"]["score"] == 0.666667


def test_predictions_of_version_0_1_are_scored_when_they_are_read(tmp_path: Path) -> None:
    """They have no `score`; captions are scored with their whole test set."""
    tasks = ["VQAv2", "TextCaps"]
    folder = make_stream(tmp_path / "stream", tasks, chunks=1, tests=6)
    results = host_results(folder, tasks, dict.fromkeys(tasks, 0.6), seed=1)
    results[0]["response"] = None
    write_jsonl(tmp_path / "answers.jsonl", results)
    split_results(tmp_path / "answers.jsonl", folder, tmp_path / "predictions")
    opened = open_scored_stream(folder)
    for task in tasks:
        path = tmp_path / "predictions" / f"{task}.jsonl"
        today = read_predictions(tmp_path / "predictions", opened, task)
        write_jsonl(path, [{k: v for k, v in line.items() if k != "score"} for line in today])
        assert read_predictions(tmp_path / "predictions", opened, task) == today


@pytest.mark.parametrize("score", ["1.0", None, 1.5, float("inf"), float("nan")])
def test_a_score_that_is_none(stream: Path, tmp_path: Path, score: object) -> None:
    _answer(stream, _all_right(stream), tmp_path)
    path = tmp_path / "predictions" / "VQAv2.jsonl"
    lines = read_jsonl(path)
    lines[2]["score"] = score
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    with pytest.raises(ValueError, match=r"VQAv2.jsonl:3: score: found .*, expected a number"):
        read_predictions(path.parent, open_scored_stream(stream), "VQAv2")
