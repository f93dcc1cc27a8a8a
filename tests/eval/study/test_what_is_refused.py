"""CSVs that are of no one run or not of one stream, and documents that would not follow them."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.study import tables
from eval.study.__main__ import main
from eval.study.groups import read_study
from eval.study.run_csv import read_run
from tests.eval.study.test_study import keep, three_runs

SCORES = [(0, 0), (80, 0), (60, 40), (70, 50)]
PAGE = "<!-- study: scores docs/results/tiny -->\n<!-- study ends -->\n"


def changed(path: Path, line: int, column: int, text: str) -> Path:
    """Writes one cell of a CSV anew; line 1 is the first below the heads."""
    lines = path.read_text("utf-8").splitlines()
    cells = lines[line].split(",")
    lines[line] = ",".join([*cells[:column], text, *cells[column + 1 :]])
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "column", "text", "told"),
    [
        (3, 0, "z", "line 4: method is 'z', before 'x'"),
        (3, 1, "7", "line 4: seed is '7', before '0'"),
        (3, 7, "-1", "line 4: found chunk -1"),
        (3, 7, "1000000000", "line 4: found chunk 1000000000"),
        (3, 10, "80", "line 4: found chunk 1, score 80"),
        (3, 10, "inf", "line 4: found chunk 1, score inf"),
        (3, 11, "0", "line 4: found chunk 1, score 0.8, n 0"),
        (3, 11, "2", "n of a task is not the same in all rows"),
        (3, 9, "2", "first of a task is not the same in all rows"),
        (4, 8, "A", "line 5: chunk 1 has two rows of A"),
    ],
)
def test_rows_of_no_one_run(tmp_path: Path, line: int, column: int, text: str, told: str) -> None:
    path = keep(tmp_path, "x", 0, SCORES)
    read_run(path)
    with pytest.raises(ValueError, match=told) as refused:
        read_run(changed(path, line, column, text))
    assert str(path) in str(refused.value)


def test_a_run_of_the_base_model_alone_and_a_file_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chunk but 0, the base model, has scores"):
        read_run(keep(tmp_path, "x", 0, SCORES[:1], chunks=(0,)))
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.csv: expected rows of method"):
        read_run(path)


def test_runs_that_were_not_asked_the_same(tmp_path: Path) -> None:
    keep(tmp_path, "x", 0, SCORES)
    other = keep(tmp_path, "y", 0, [SCORES[0], *SCORES[2:]], chunks=(0, 2, 3))
    with pytest.raises(ValueError, match=r"the evaluated chunks are \(1, 2, 3\) and \(2, 3\)"):
        read_study(tmp_path)
    other.unlink()
    keep(tmp_path, "y", 0, SCORES, first=(1, 1))
    with pytest.raises(ValueError, match=r"the tasks' first chunks are .* cannot be compared"):
        read_study(tmp_path)
    keep(tmp_path, "y", 0, SCORES)
    for line in (1, 3, 5, 7):
        changed(tmp_path / "y-seed0-stream00.csv", line, 11, "5")
    with pytest.raises(ValueError, match=r"the tasks' tests are \{'A': 80, 'B': 80\} and \{'A': 5"):
        read_study(tmp_path)


def test_one_method_with_a_stream_more_does_not_lead_alone(tmp_path: Path) -> None:
    three_runs(tmp_path)
    keep(tmp_path, "y", 9, SCORES)
    assert tables.winner(read_study(tmp_path)).startswith(
        f"{tmp_path.name}: x has the highest Avg of the 2 methods without data that ran on 3 "
        "streams or more, 52.0, and Last 62.0; "
    )


def test_tests_and_means_of_fewer_than_all_streams_are_told(tmp_path: Path) -> None:
    three_runs(tmp_path)
    # Of method z one stream has a task that came before its first chunk was evaluated.
    for seed, first in ((0, (1, 2)), (1, (1, 1)), (2, (1, 1))):
        for method in "xyz":
            keep(tmp_path / "forward", method, seed, SCORES, first=first)
    keep(tmp_path / "forward", "w", 0, SCORES)
    study = read_study(tmp_path / "forward")
    assert "0.0 (n = 1)" in tables.scores(study, whole=True)
    text = tables.lead_table(study)
    assert "p corrected over 2 methods (Holm)" in text, "one pair gives no p"
    assert "| w | 1 |" in text


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three runs of two methods, and a page with a table and a figure of them."""
    three_runs(tmp_path / "docs" / "results" / "tiny")
    (tmp_path / "README.md").write_text(PAGE, "utf-8")
    figure = "<!-- study: figure docs/results/tiny docs/why.svg -->\n<!-- study ends -->\n"
    (tmp_path / "docs" / "study.md").write_text(figure, "utf-8")
    assert main(["--root", str(tmp_path)]) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("marker", "instead"),
    [
        ("<!-- study: scores docs/results/tiny -->\n", ""),
        ("<!-- study: scores", "<!-- study:scores"),
        ("<!-- study: scores", "<!-- Study: scores"),
        ("<!-- study: scores", "<!--  study: scores"),
        ("<!-- study ends -->\n", ""),
    ],
)
def test_a_marker_alone_or_misspelt(
    repository: Path, capsys: pytest.CaptureFixture[str], marker: str, instead: str
) -> None:
    page = repository / "README.md"
    page.write_text(page.read_text("utf-8").replace(marker, instead), "utf-8")
    assert main(["--check", "--root", str(repository)]) == 2
    assert "README.md: a marker stands alone or is misspelt" in capsys.readouterr().err


def test_the_figure_follows_the_middle_of_a_curve(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, figure = ["--root", str(repository)], repository / "docs" / "why.svg"
    before = figure.read_bytes()
    changed(repository / "docs" / "results" / "tiny" / "x-seed0-stream00.csv", 5, 10, "0.9")
    assert main(asked) == 0
    assert figure.read_bytes() != before
    figure.write_bytes(before)
    assert main([*asked, "--check"]) == 1
    assert "why.svg: was not drawn from the CSVs" in capsys.readouterr().err
