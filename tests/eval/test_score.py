"""`python -m eval.score` on files of answers, good and bad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.score import main

ROOT = Path(__file__).resolve().parent.parent.parent
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
        assert code == 0
        assert len(lines) == len(records)
        assert all(0 <= line["score"] <= 1 for line in lines)


def test_messages_for_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path / "x.jsonl", [])
    assert _run(capsys, "--task", "VQA", path)[0] == 2
    code, _, err = _run(capsys, "--task", "AD", str(tmp_path / "none.jsonl"))
    assert code == 2
    assert "none.jsonl" in err
    code, lines, err = _run(capsys, "--task", "AD", path)
    assert (code, lines) == (0, [])
    assert "no samples" in err
    (tmp_path / "x.jsonl").write_text(
        '{"question_id": 1, "gold": "a", "prediction": "a"}\n\n', "utf-8"
    )
    assert len(_run(capsys, "--task", "AD", path)[1]) == 1


def test_eval_needs_no_torch() -> None:
    """A laptop without a GPU stack can score: torch and our other packages stay out."""
    modules = "score scores matrix routing report published tasks"
    heavy = {"torch", "transformers", "swift", "recipes", "data_prep", "strlora_tuner"}
    code = (
        f"import sys, {', '.join('eval.' + name for name in modules.split())}\n"
        f"assert not {heavy} & {{name.split('.')[0] for name in sys.modules}}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
