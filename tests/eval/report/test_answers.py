"""answers.html: what is answered wrong now, by task and since when, and what stands for what."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from data_prep.files import read_jsonl, write_jsonl
from eval.report import write_report
from eval.report.answers.wrong_answers import OTHER, confusion
from eval.run_files import PredictionLine
from tests.eval.make_run import make_run
from tests.eval.report.browser import BINARY, Browser

CHUNKS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    run, _ = make_run(folder, chunks=CHUNKS, done=CHUNKS, tests=12, tasks=["VQAv2", "Fin"])
    write_report(run)
    return run


def scores(run: Path, task: str) -> list[list[float]]:
    """Scores by chunk and sample, from the prediction files."""
    paths = [run / f"chunks/{chunk:03d}/predictions/{task}.jsonl" for chunk in range(CHUNKS + 1)]
    return [[line["score"] for line in read_jsonl(path)] for path in paths]


def test_every_wrong_answer_is_there_with_the_chunks_that_knew_better(run: Path) -> None:
    page = (run / "answers.html").read_text("utf-8")
    assert 'href="answers.html"' in (run / "report.html").read_text("utf-8")
    for task in ("VQAv2", "Fin"):
        table = scores(run, task)
        wrong = [i for i, score in enumerate(table[CHUNKS]) if score < 0.5]
        section = page.split(f'data-task="{task}"')[1].split("</section>")[0]
        assert f"{len(wrong)} of 12 questions are answered wrong" in section
        expected = sorted(
            " ".join(str(c) for c in range(CHUNKS + 1) if table[c][i] >= 0.5) for i in wrong
        )
        found = sorted(part.split('"')[0] for part in section.split('data-right="')[1:])
        assert found == expected
        once = [bool(part.split('"')[0]) for part in section.split('data-right="')[1:]]
        assert once == sorted(once, reverse=True)  # those that were right once come first


def test_a_caption_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    """A sample's score is CIDEr-D / 10: 0.195 is CIDEr 195, a good caption."""
    run, _ = make_run(tmp_path, chunks=1, done=1, tests=3, tasks=["TextCaps"], routed=False)
    for chunk in (0, 1):
        path = run / f"chunks/{chunk:03d}/predictions/TextCaps.jsonl"
        lines = read_jsonl(path)
        for line, score in zip(lines, (0.195, 0.051, 0.7), strict=True):
            line |= {"score": score * chunk}
        write_jsonl(path, lines)
    report = write_report(run).read_text("utf-8")
    page = (run / "answers.html").read_text("utf-8")
    assert (
        "3 captions after chunk 1, which are neither right nor wrong; lowest CIDEr first." in page
    )
    assert "answered wrong after" not in page
    assert "never right" not in page
    found = [part.split("<")[0] for part in page.split('<p class="task">')[1:]]
    assert found == ["CIDEr 51", "CIDEr 195", "CIDEr 700"]
    verdicts = [part.split("<")[0] for part in report.split('<span class="verdict">')[1:]]
    assert verdicts == ["CIDEr 0", "CIDEr 700"], "the caption that learned most"


def line(gold: str, said: str | None) -> PredictionLine:
    return cast(PredictionLine, {"gold": gold, "prediction": said})


def test_confusion_by_hand() -> None:
    lines = [line("red", "Red."), line("red", "blue"), line("red", None), line("Blue", "blue")]
    lines += [line("blue", "<think>red</think>green"), line("blue", "red")]
    found = confusion(lines)
    assert found is not None
    assert found.head == ["", "red", "blue", OTHER]
    assert found.rows == [["red", "1", "1", "1"], ["blue", "1", "1", "1"]]


def test_no_confusion_of_long_or_many_or_one_answer() -> None:
    assert confusion([line("a" * 31, "b"), line("b", "b")]) is None
    assert confusion([line(str(n), "1") for n in range(13)]) is None
    assert confusion([line("yes", "no"), line("yes", "yes")]) is None


@pytest.mark.slow
@pytest.mark.skipif(not BINARY, reason="needs Chromium (Debian package chromium)")
def test_the_filters_in_a_browser(run: Path, tmp_path: Path) -> None:
    shown = "[...document.querySelectorAll('article')].filter(a => a.checkVisibility()).length"
    chosen = (
        "(id, value) => { const s = document.getElementById(id); s.value = value;"
        " s.dispatchEvent(new Event('change')); }"
    )
    table = scores(run, "Fin")
    wrong = [i for i, score in enumerate(table[CHUNKS]) if score < 0.5]
    with Browser(tmp_path / "profile") as browser:
        for width in (360, 1100):
            browser.open(run / "answers.html", width)
            assert browser.messages == []
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            everything = browser.evaluate(shown)
            browser.evaluate(f"({chosen})('task', 'Fin')")
            assert browser.evaluate(shown) == len(wrong) <= everything
            browser.evaluate(f"({chosen})('since', '1')")
            lost = sum(table[1][i] >= 0.5 for i in wrong)
            assert browser.evaluate(shown) == lost
            text = browser.evaluate("document.getElementById('count').textContent")
            assert text.startswith(f"{lost} answer")
