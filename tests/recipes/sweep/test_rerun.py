"""A run of a study made again gives its CSV again, to the last answer.

Where: the same libraries, processor, kernels and threads, which `machine` in the CSV names. There
the tolerance is 0. On other kernels scores move, by how much the tables of two configurations in
docs/study.md say: such a run is no failure of the CSV, so none is compared.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.study.run_csv import KeptRun, read_run
from recipes import REPO
from recipes.cli import main
from recipes.processes.machine import instruction_set, processor
from tests.recipes.real_host import needs_host

pytestmark = [pytest.mark.slow, needs_host]
# Of the runs without settings.
RECIPES = {"tiny": "readme.yaml", "tiny_avx2": "readme.yaml", "tiny-study": "main.yaml"}


def swept(recipe: Path, folder: Path, *words: str) -> KeptRun:
    """The CSV of a sweep's one run, made in a new folder."""
    into = ["--into", str(folder / "runs"), "--results", str(folder / "results")]
    assert main(["sweep", str(recipe), *into, *words]) == 0
    (file,) = (folder / "results").glob("*.csv")
    return read_run(file)


def assert_same(first: KeptRun, again: KeptRun) -> None:
    """Everything but the seconds."""
    for name in ("method", "seed", "stream_seed", "settings", "keeps", "trained", "stored"):
        assert getattr(first, name) == getattr(again, name), name
    assert (first.tasks, first.first) == (again.tasks, again.first)
    np.testing.assert_array_equal(first.values, again.values)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The first chunk of `tiny`, which teaches two tasks."""
    path = tmp_path / "short.yaml"
    values: dict[str, object] = {"extends": "tiny", "name": "short", "method": "lora"}
    values |= {"data": {"chunks": 1, "stream": str(tmp_path / "stream")}}
    values |= {"eval": {"tasks": ["VQAv2", "Places365"]}}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.cli.stop_on_signals", lambda: None)  # pytest has its own


def test_a_run_made_again_reproduces_its_rows(recipe: Path, tmp_path: Path) -> None:
    first = swept(recipe, tmp_path / "first")
    assert first.values[1].min() > 0.25, "it learned: equal rows are no rows of zeros"
    assert first.first == [1, 1]
    assert (first.trained, first.keeps) == (pytest.approx(0.2867), "")
    again = swept(recipe, tmp_path / "again")
    assert_same(first, again)


def runs_of_this_machine() -> list[KeptRun]:
    """Committed runs of the main streams that used instructions which this processor has.

    Processors of one name differ in the widest they have, so that a run counts which names them or
    was limited by variables.
    """
    files = [file for name in RECIPES for file in (REPO / "docs/results" / name).glob("*.csv")]
    name = f"{os.cpu_count()} cores {processor()}"
    named = f"{name} with {instruction_set()}"
    runs = [run for run in map(read_run, files) if not run.settings]
    return [
        run
        for run in runs
        if (first := run.machine.split(", ")[0]) == named or (first == name and limits(run))
    ]


def limits(run: KeptRun) -> dict[str, str]:
    """The variables that kept a run to fewer instructions than its processor had."""
    return dict(word.split("=", 1) for word in run.machine.split(", ") if "=" in word)


def unnamed(machine: str) -> str:
    """A machine as CSVs named it before they named the instructions."""
    return re.sub(r" with [^,]*", "", machine, count=1)


@pytest.mark.skipif(os.environ.get("FULL_STUDY") != "1", reason="FULL_STUDY=1: a whole run")
def test_a_committed_run_reproduces_its_rows(
    tmp_path: Path, record_property: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_of_this_machine()
    if not runs:
        here = f"{os.cpu_count()} cores {processor()} with {instruction_set()}"
        pytest.skip(f"no committed run is of {here}, or of one limited to fewer instructions")
    kept = random.choice(runs)
    for variable, value in limits(kept).items():
        monkeypatch.setenv(variable, value)
    folder = kept.path.parent.name
    record_property("csv", f"{folder}/{kept.path.name}")
    words = ["--methods", kept.method, "--stream-seeds", str(kept.stream_seed)]
    words += ["--seeds", str(kept.seed)]
    again = swept(REPO / "recipes" / "study" / RECIPES[folder], tmp_path, *words)
    shutil.rmtree(tmp_path / "runs")
    if kept.machine not in (again.machine, unnamed(again.machine)):
        pytest.skip(f"{kept.path.name} is of {kept.machine}, this run of {again.machine}")
    assert_same(kept, again)
