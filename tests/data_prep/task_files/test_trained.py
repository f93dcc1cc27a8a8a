"""Three chunks of UCIT's and CoIN's trees, trained and scored by the real host."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.coin.__main__ import main as coin
from data_prep.files import read_json, read_jsonl, write_json
from data_prep.published.benchmarks import COIN, UCIT
from data_prep.stream import open_stream
from data_prep.ucit.__main__ import main as ucit
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import load_state
from tests.data_prep import trees
from tests.recipes.real_host import gone_on, needs_host

pytestmark = [pytest.mark.slow, needs_host]
COMMANDS = {"ucit": (UCIT, ucit), "coin": (COIN, coin)}
# Options of the command; and the samples of each task in each of the three chunks.
CASES: dict[str, tuple[list[str], list[dict[str, int]]]] = {
    "ucit": ([], [{"VizWiz": 12}, {"Flickr30k": 12}, {"ArxivQA": 12}]),
    "coin": ([], [{"Grounding": 12}, {"ImageNet": 12}, {"ScienceQA": 12}]),
    "ucit-mixed": ([], [{"CLEVR": 4, "VizWiz": 8}, {"CLEVR": 8, "IconQA": 4}, {"ArxivQA": 12}]),
    "coin-limit": (["--limit", "8"], [{"TextVQA": 8}, {"OCRVQA": 8}, {"ScienceQA": 8}]),
}


@pytest.mark.parametrize("case", CASES)
def test_three_chunks_are_trained_and_scored(case: str, tmp_path: Path) -> None:
    name, _, kind = case.partition("-")
    (benchmark, command), (words, chunks) = COMMANDS[name], CASES[case]
    source = trees.task_files(tmp_path / "source", benchmark)
    order = list(dict.fromkeys(task for chunk in chunks for task in chunk))
    words = [*words, "--order", ",".join(order), "--workers", "1"]
    if kind == "mixed":
        write_json(tmp_path / "mixture.json", chunks)
        words += ["--mixture", str(tmp_path / "mixture.json")]
    stream = tmp_path / "stream"
    assert command(["--source", str(source), "--out", str(stream), *words]) == 0
    assert [dict(chunk.tasks) for chunk in open_stream(stream).chunks] == chunks

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"extends: tiny\nname: mine\nrun_dir: {tmp_path / 'run'}\n"
        f"data: {{source: folder, stream: {stream}}}\n"
        "schedule: {epochs: 20}\neval: {every: 3}\n"
    )
    gone_on(recipe)
    layout = RunLayout(tmp_path / "run")
    records = [record for record in load_state(layout.state).chunks if record.index]
    samples = [sum(chunk.values()) for chunk in chunks]
    assert [record.steps for record in records] == [20 * n // 4 for n in samples]

    # The last chunk holds one task of two answers, each the gold of half the questions.
    task = order[-1]
    lines = read_jsonl(layout.predictions(3) / f"{task}.jsonl")
    assert {line["prediction"] for line in lines} <= set(trees.ASKED[task][1])
    right = sum(line["prediction"] == line["gold"] for line in lines) / len(lines)
    scores = read_json(layout.scores(3))
    assert scores["tasks"][task]["score"] == right
    assert scores["published"]["tasks"][task] == 100 * right
    assert set(scores["tasks"]) == set(order)
