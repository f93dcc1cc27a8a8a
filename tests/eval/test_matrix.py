"""matrix.csv: the same rows whatever was written twice, and no row that is no result."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.files import write_json
from eval.matrix import append_scores, load_matrix, read_cells, read_scores


def _scores(**tasks: float | None) -> dict:
    return {"tasks": {task: {"score": score, "n": 100} for task, score in tasks.items()}}


def test_append_is_idempotent(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    append_scores(path, 1, _scores(Fin=0.5, VQAv2=1 / 3))
    append_scores(path, 0, _scores(Fin=0.0, VQAv2=0.25))
    once = path.read_bytes()
    append_scores(path, 1, _scores(Fin=0.5, VQAv2=1 / 3))
    assert path.read_bytes() == once
    assert once.decode().splitlines() == [
        "chunk,task,score,n",
        "0,Fin,0.000000,100",
        "0,VQAv2,0.250000,100",
        "1,Fin,0.500000,100",
        "1,VQAv2,0.333333,100",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.csv"]


def test_a_new_evaluation_replaces_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    append_scores(path, 0, _scores(Fin=0.1, VQAv2=0.2))
    append_scores(path, 0, _scores(Fin=0.3))
    assert read_cells(path) == {(0, "Fin"): (0.3, 100)}


def test_what_was_not_measured_is_nan(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    append_scores(path, 0, _scores(Fin=0.1))
    append_scores(path, 2, _scores(Fin=None, VQAv2=0.7))
    matrix = load_matrix(path)
    assert matrix.tasks == ["Fin", "VQAv2"]
    expected = [[0.1, np.nan], [np.nan, np.nan], [np.nan, 0.7]]
    np.testing.assert_array_equal(matrix.values, np.array(expected))
    np.testing.assert_array_equal(matrix.samples, [[100, 0], [0, 0], [100, 100]])


def test_columns_in_the_order_wanted(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    append_scores(path, 0, _scores(Fin=0.1, VQAv2=0.7))
    assert load_matrix(path, ["VQAv2", "Fin", "GQA"]).values[0][:2].tolist() == [0.7, 0.1]
    with pytest.raises(ValueError, match=r"unknown tasks \['Fin'\]"):
        load_matrix(path, ["VQAv2"])


def test_an_absent_file_has_no_rows(tmp_path: Path) -> None:
    assert load_matrix(tmp_path / "matrix.csv").values.shape == (0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "1: found the columns"),
        ("chunk,task,score,n\n0,Fin,x,1\n", "2: found"),
        ("chunk,task,score,n\n0,Fin,1.5,1\n", "score 0..1"),
        ("chunk,task,score,n\n0,Fin,0.5,1\n0,Fin,0.5,1\n", "3: chunk 0, task 'Fin' occurs twice"),
    ],
)
def test_damaged_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_cells(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"tasks": {}, "published": None}, "no tasks or no published; evaluate again"),
        ({"tasks": {"A": {}}, "published": {"tasks": {}, "crashes": {}, "mean": None}},
         "no tasks.A.score; evaluate again"),
        ({"tasks": {}, "published": {"tasks": {}}}, "no published.crashes, no published.mean;"),
    ],
)  # fmt: skip
def test_scores_that_lack_a_part_name_it(tmp_path: Path, content: object, told: str) -> None:
    write_json(tmp_path / "scores.json", content)
    with pytest.raises(ValueError, match=re.escape(told)):
        read_scores(tmp_path / "scores.json")
