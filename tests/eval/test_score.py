"""`python -m eval.score` on files of answers, good and bad."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.score import main
from eval.scorers.registry import FIXED, find_task

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


def _file(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return str(path)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict], str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_published_cases_through_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = json.loads((FIXTURES / "released_scores.json").read_text("utf-8"))["cases"]
    for task, records in cases.items():
        path = _file(tmp_path / f"{task}.jsonl", records)
        code, lines, err = _run(capsys, "--task", task, "--variant", "released", path)
        assert code == 0
        assert [line["question_id"] for line in lines] == [r["question_id"] for r in records]
        assert f"over {len(records)} samples, 0 failed" in err
        if task != "TextCaps":
            assert [line["score"] for line in lines] == [
                float(r["released_correct"]) for r in records
            ]


def test_captions_are_shown_on_both_scales(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = json.loads((FIXTURES / "cider_corpus.json").read_text("utf-8"))["corpora"]
    corpus = next(c for c in corpora if c["name"] == "main")
    path = _file(tmp_path / "c.jsonl", corpus["images"])
    _, lines, err = _run(capsys, "--task", "TextCaps", "--variant", "released", path)
    expected = [image["released_cider"] for image in corpus["images"]]
    assert [line["cider"] for line in lines] == pytest.approx(expected, abs=1e-12)
    assert all(0 <= line["score"] <= 1 for line in lines)
    assert corpus["released_printed"].rstrip("%") in err


def test_gaps_are_marked_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"question_id": 1, "gold": "", "prediction": None},
        {"question_id": 2, "gold": "dog", "prediction": "dog"},
        {"question_id": 3, "gold": "dog"},
        {"question_id": 4, "gold": "dog", "prediction": "dog", "error": "out of memory"},
        {"question_id": 5, "gold": 14, "prediction": "14"},
    ]
    path = _file(tmp_path / "x.jsonl", records)
    code, lines, err = _run(capsys, "--task", "VQAv2", path)
    assert code == 0
    assert [line["score"] for line in lines] == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert ["error" in line for line in lines] == [True, False, True, True, False]
    assert "40.00 over 5 samples, 3 failed" in err
    for number, why in ((1, "no answer"), (3, "missing keys"), (4, "no answer: out of memory")):
        assert f"{path}:{number}: question_id {number}: {why}" in err
    _, lines, _ = _run(capsys, "--task", "VQAv2", "--variant", "released", path)
    assert "crashes on a gold of type int" in lines[4]["error"]


@pytest.mark.parametrize("variant", ["released", "fixed"])
def test_what_crashes_the_published_scripts_does_not_crash_ours(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashes = json.loads((FIXTURES / "released_scores.json").read_text("utf-8"))["crashes"]
    for case in crashes:
        golds = {str(a["question_id"]): a for a in case["annotations"]}
        records = []
        for line in case["results"]:
            gold = golds.get(str(line["question_id"]), {})
            value = gold.get("answer", {k: v for k, v in gold.items() if k != "question_id"})
            entry = {"question_id": line["question_id"], "prediction": line["text"]}
            records.append(entry | ({"gold": value} if gold else {}))
        path = _file(tmp_path / "x.jsonl", records)
        code, lines, _ = _run(capsys, "--task", case["task"], "--variant", variant, path)
        assert code == (0 if records else 2)
        assert len(lines) == len(records)
        assert all(0 <= line["score"] <= 1 for line in lines)


def test_messages_for_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path / "x.jsonl", [])
    assert _run(capsys, "--task", "VQA", path)[0] == 2
    code, _, err = _run(capsys, "--task", "AD", str(tmp_path / "none.jsonl"))
    assert code == 2
    assert "none.jsonl" in err
    code, lines, err = _run(capsys, "--task", "AD", path)
    assert (code, lines) == (2, [])
    assert "x.jsonl:1: no samples" in err
    (tmp_path / "x.jsonl").write_text(
        '{"question_id": 1, "gold": "a", "prediction": "a"}\n\n', "utf-8"
    )
    assert len(_run(capsys, "--task", "AD", path)[1]) == 1


HOSTILE_TASKS = ["AD", "Fin", "ImageNet", "ChartQA", "VQAv2", "Grounding", "TextCaps"]
HOSTILE_TASKS += ["MLLM-CL/Sci", "MLLM-CL/OCR", "MLLM-CL/Math"]
HOSTILE = [
    # (lines of the file, exit code, samples printed, what standard error says)
    ('{"question_id": 1, "gold": "a", "prediction": NaN}', 0, 1, "0.00 over 1 samples"),
    ('{"question_id": 1, "gold": NaN, "prediction": "a"}', 0, 1, ":1: question_id 1: gold"),
    ('{"question_id": 1, "gold": null, "prediction": "a"}', 0, 1, ":1: question_id 1: gold"),
    ('{"question_id": 1, "prediction": "a"}', 0, 1, ":1: question_id 1: missing keys ['gold']"),
    ('{"question_id": 1, "gold": "a", "prediction": ["a"]}', 0, 1, "expected text"),
    ('{"question_id": 1, "gold": {"x": 1}, "prediction": "a"}', 0, 1, "samples"),
    ('{"question_id": 1, "gold": [], "prediction": "a"}', 0, 1, "samples"),
    ('{"question_id": "\\ud800", "gold": "a", "prediction": "a"}', 0, 1, "over 1 samples"),
    ("\n\n{oops", 2, 0, ":3: not JSON"),
    ("[1, 2]", 2, 0, ":1: expected a JSON object"),
    ("\n \n", 2, 0, ":1: no samples"),
    ("", 2, 0, ":1: no samples"),
]


@pytest.mark.parametrize("task", HOSTILE_TASKS)
@pytest.mark.parametrize(("text", "code", "samples", "words"), HOSTILE)
def test_hostile_files(
    task: str, text: str, code: int, samples: int, words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "x.jsonl"
    path.write_text(text + "\n", "utf-8")
    for variant in ("fixed", "released"):
        if variant == "released" and find_task(task).released is None:
            continue
        found, lines, err = _run(capsys, "--task", task, "--variant", variant, str(path))
        assert (found, len(lines)) == (code, samples)
        assert all(0.0 <= line["score"] <= 1.0 for line in lines)
        assert words in err or (samples and "error" in lines[0])


def test_questions_that_stand_there_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"question_id": q, "gold": "a", "prediction": "a"} for q in (7, "7", 8, 7, 7)]
    path = _file(tmp_path / "x.jsonl", records)
    code, lines, err = _run(capsys, "--task", "OCRVQA", path)
    assert code == 2
    assert len(lines) == 5
    assert f"{path}:4: question_id 7 occurs twice, first in 1" in err
    assert "2 lines repeat a question: no summary" in err
    assert "over 5" not in err


def test_a_file_that_is_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"question_id": 1, "gold": "a", "prediction": "a"}\n{"\xff": 1}\n')
    code, lines, err = _run(capsys, "--task", "OCRVQA", str(path))
    assert (code, lines) == (2, [])
    assert f"{path}:2: not UTF-8" in err


def test_a_file_with_a_byte_order_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question_id": 1, "gold": "a", "prediction": "a"}\r\n', "utf-8-sig")
    code, lines, _ = _run(capsys, "--task", "OCRVQA", str(path))
    assert (code, lines) == (0, [{"question_id": 1, "score": 1.0}])


def test_what_is_no_file_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file or directory")):
        code, _, err = _run(capsys, "--task", "OCRVQA", str(path))
        assert (code, err) == (2, f"eval.score: {path}: {why}; give a JSON Lines file\n")


def test_many_failures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"question_id": n, "gold": "a", "prediction": None} for n in range(50)]
    _, _, err = _run(capsys, "--task", "OCRVQA", _file(tmp_path / "x.jsonl", records))
    assert "... and 30 more" in err
    assert "no score, all 50 samples failed" in err


def test_eval_needs_no_torch() -> None:
    """A laptop without a GPU stack can score: torch and the orchestrator stay out."""
    modules = "score predictions matrix routing.record report compare significance"
    heavy = {"torch", "transformers", "swift", "recipes", "datasets"}
    code = (
        f"import sys, {', '.join('eval.' + name for name in modules.split())}\n"
        f"assert not {heavy} & {{name.split('.')[0] for name in sys.modules}}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


OWN = """
def score(answer, record):
    return len(answer) if answer == "boom" else answer.lower() == record["gold"]
"""


def test_a_scorer_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One function in one file; its hash stands with the result, a wrong number with its line."""
    own, answers = tmp_path / "mine.py", tmp_path / "answers.jsonl"
    own.write_text(OWN, "utf-8")
    said = ["MUG", "<think>a cup?</think>mug", "cup", "boom"]
    rows = [{"question_id": i, "gold": "mug", "prediction": text} for i, text in enumerate(said)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert main(["--scorer", f"{own}:score", str(answers)]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["score"] for line in out.splitlines()] == [1.0, 1.0, 0.0, 0.0]
    assert "question_id 3: cannot be scored" in err
    assert "returned 4, expected a number from 0 to 1" in err
    assert f"mine.py: sha256 {hashlib.sha256(OWN.encode()).hexdigest()}" in err
    for name, words in (
        (f"{own}:none", "has no function 'none'"),
        (f"{tmp_path}/no.py:score", "no file"),
        ("exakt", "did you mean 'exact'?"),
    ):
        assert main(["--scorer", name, str(answers)]) == 2
        assert words in capsys.readouterr().err
    assert main(["--scorer", "exact", str(answers)]) == 0


def test_the_scorers_are_listed_with_what_they_accept(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FIXED)
    assert all(len(line.split()) > 4 for line in lines)
