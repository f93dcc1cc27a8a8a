"""Both sets of weights evaluated: the other scores as in a run where it answers."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.report.data import load_run
from eval.report.tables import weights_table
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.tools.clean import clean
from recipes.tools.plan import make_plan
from recipes.tools.preview import preview
from recipes.tools.status import as_text, read_status
from strlora_tuner.saved import WEIGHTS
from tests.recipes.fake_run import finish
from tests.recipes.run.test_runner import kill_at_random_moments
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream

BOTH = {"batch_size": 4, "both_weights": True}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Writes a recipe of three chunks with slow weights; returns it and its run folder."""
    folder = tmp_path_factory.mktemp("both")
    stream = write_stream(folder / "stream", chunks=3, samples=10, tests=12)
    write_model(folder / "model")

    def write(name: str, **changes: Any) -> tuple[Path, Path]:
        values = recipe_values(stream, folder / name, folder / "model", method="lora")
        values["data"]["chunks"] = 3
        values["slow_weights"] = {}
        return write_recipe(folder / f"{name}.yaml", {**values, **changes}), folder / name

    return write


@pytest.fixture(scope="module")
def both(written: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path, str]:
    path, run = written("both", eval=BOTH)
    code, out, err = finish(path, FAKE_REPORT="1")
    assert code == 0, err
    return path, run, out


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file))


def results(run: Path) -> dict[str, bytes]:
    files = [*run.glob("matrix*.csv"), *run.glob("chunks/*/*/predictions/*.jsonl")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_other_set_scores_as_where_it_answers(
    written: Callable[..., tuple[Path, Path]], both: tuple[Path, Path, str]
) -> None:
    _, run, out = both
    path, fast = written("fast", slow_weights={"answer": "fast"})
    assert finish(path)[0] == 0
    # The base model has one set: it is not asked twice.
    expected = [row for row in rows(fast / "matrix.csv") if row[0] != "0"]
    assert rows(run / "matrix-fast.csv") == expected
    assert rows(run / "matrix.csv") != rows(fast / "matrix.csv")
    for chunk in (1, 2, 3):
        answers = run / f"chunks/00{chunk}/fast/predictions/Fin.jsonl"
        assert (
            answers.read_bytes() == (fast / f"chunks/00{chunk}/predictions/Fin.jsonl").read_bytes()
        )
        assert f"chunk {chunk}/3 scores of the fast weights: VQAv2" in out
    assert not list(run.glob("chunks/*/*/answers.jsonl"))


@pytest.mark.slow
def test_status_and_report_name_both(both: tuple[Path, Path, str]) -> None:
    path, run, _ = both
    (chunk,) = (
        line for line in as_text(read_status(load_recipe(str(path)))) if "chunk   3" in line
    )
    slow, fast = chunk.split("; fast weights: ")
    assert ("VQAv2" in slow, "VQAv2" in fast) == (True, True)
    table = weights_table(load_run(run))
    assert table is not None
    assert table.head == ["after", "weights", "VQAv2", "Fin", "mean"]
    names = ["slow weights (the adapter)", "fast weights"]
    assert [row[1] for row in table.rows] == names * 4
    scores = {(row[0], row[1]): float(row[2]) for row in rows(run / "matrix-fast.csv")[1:]}
    for chunk_index in (1, 2, 3):
        row = table.rows[2 * chunk_index - 1]
        a, b = scores[str(chunk_index), "VQAv2"], scores[str(chunk_index), "Fin"]
        assert row[2:] == [f"{100 * value:.1f}" for value in (a, b, (a + b) / 2)]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Both sets of weights" in page
    assert "mean of these" in page
    assert table.rows[-1][-1] == f"{100 * sum(scores.values()) / 6:.1f}"
    # Three chunks with two evaluations each, and the base model.
    assert "\n".join(preview(load_recipe(str(path)), every=True)).count("swift infer") == 7
    plan = make_plan(load_recipe(str(path)))
    assert plan.measured is not None
    assert plan.evaluations == plan.measured.evaluations == 7


@pytest.mark.slow
def test_a_finished_run_is_asked_later(
    written: Callable[..., tuple[Path, Path]], both: tuple[Path, Path, str]
) -> None:
    path, run = written("later")
    assert finish(path)[0] == 0
    assert not (run / "matrix-fast.csv").exists()
    code, out, err = finish(path, "eval.both_weights=true")
    assert code == 0, err
    assert "trained" not in out
    assert results(run) == results(both[1])
    assert "is finished; nothing to do" in finish(path, "eval.both_weights=true")[1]


@pytest.mark.slow
def test_weights_that_were_removed_are_told(written: Callable[..., tuple[Path, Path]]) -> None:
    path, run = written("cleaned")
    assert finish(path)[0] == 0
    list(clean(load_recipe(str(path)), old_adapters=True, remove=True))
    code, out, err = finish(path, "eval.both_weights=true")
    assert code == 0, err
    missing = run / "chunks/001/adapter/fast" / WEIGHTS
    assert f"chunk 1/3 scores of the fast weights: none, {missing} was removed" in out
    assert {row[0] for row in rows(run / "matrix-fast.csv")[1:]} == {"3"}
    assert "is finished; nothing to do" in finish(path, "eval.both_weights=true")[1]


@pytest.mark.slow
def test_killed_at_random_moments_both_end_the_same(
    written: Callable[..., tuple[Path, Path]], both: tuple[Path, Path, str]
) -> None:
    path, run = written("killed", eval=BOTH)
    kill_at_random_moments(path, 5, random.Random(5))
    assert finish(path)[0] == 0
    assert results(run) == results(both[1])


def test_there_must_be_a_second_set(written: Callable[..., tuple[Path, Path]]) -> None:
    path, _ = written("none", eval=BOTH, slow_weights=None)
    with pytest.raises(RecipeError, match=r"both_weights = True .* slow_weights is null"):
        load_recipe(str(path))
