"""A sweep that runs, with the stand-in host: failures, going on, its table, the choice."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from eval.study.run_csv import read_run
from recipes.arguments import parse
from recipes.cli import main
from recipes.run_folder.state import ChunkRecord, RunState, save_state
from recipes.sweep import parallel_runs
from recipes.sweep.axes import FIRST, LATER
from recipes.sweep.cells import Cell, plan_sweep
from recipes.sweep.kept_results import keep_results
from recipes.sweep.progress import as_table, follow, read_rows
from recipes.sweep.results import Result, as_csv, as_markdown, choose, read_result, rows
from recipes.sweep.sweep_command import keep_best
from strlora_tuner.saved import WEIGHTS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_runs, "RUNNER", "tests.recipes.fake_run")
    monkeypatch.setattr("recipes.cli.stop_on_signals", lambda: None)  # pytest has its own
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    usage = SimpleNamespace(free=10**15)
    monkeypatch.setattr("recipes.run.preflight.free_space.shutil.disk_usage", lambda path: usage)


def text_of(folder: Path) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(as_table(read_rows(folder)))
    return console.export_text()


def test_a_failed_run_stops_no_other_and_is_tried_again(
    toy_yaml: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "sweep"
    words = ["sweep", str(toy_yaml()), "--into", str(folder), "--methods", "lora,zero_shot"]
    monkeypatch.setenv("FAKE_FAIL_AT", "2")
    assert main([*words, "--jobs", "2"]) == 1
    out = capsys.readouterr().out
    assert "[sweep] lora-seed0: failed: " in out
    assert "[sweep] zero_shot-seed0: done in" in out, "it trains nothing that could fail"
    shown = text_of(folder)
    assert "2 runs: 1 failed, 1 finished" in shown
    assert "FAILED lora-seed0: training chunk 1 " in shown
    assert main(["status", str(folder)]) == 0
    assert "FAILED lora-seed0" in capsys.readouterr().out

    monkeypatch.delenv("FAKE_FAIL_AT")
    finished = (folder / "zero_shot-seed0" / "state.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "1 runs to do, 1 ready" in capsys.readouterr().out
    assert (folder / "zero_shot-seed0" / "state.json").stat().st_mtime_ns == finished
    assert not (folder / "lora-seed0" / "failure.txt").exists()
    log = (folder / "lora-seed0" / "sweep.log").read_text(encoding="utf-8")
    assert log.count("starting: ") == 2
    assert main(["status", str(folder), "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["lora-seed0"]["life"] == "finished"
    assert found["lora-seed0"]["done"] == 2
    assert found["lora-seed0"]["seconds_left"] == 0
    follow(folder, Console(file=open("/dev/null", "w")))  # noqa: SIM115 -- it ends by itself


def cell(folder: Path, method: str = "lora", seed: int = 0, rate: float = 1e-3) -> Cell:
    data = SimpleNamespace(seed=0)
    recipe = SimpleNamespace(method=method, seed=seed, folder=str(folder), data=data)
    settings = ((FIRST, str(rate)), (LATER, str(rate)))
    return Cell("name", recipe, settings, ())  # type: ignore[arg-type]


def result(
    last: float, average: float = 0.5, rate: float = 1e-3, state: str = "done", seed: int = 0
) -> Result:
    return Result(cell(Path("run"), seed=seed, rate=rate), state, last, average)


def chosen_rate(results: list[Result]) -> str:
    return choose(results)["lora"].settings[0][1]


def test_the_best_mean_of_last_is_chosen_and_ties_are_broken() -> None:
    lost = result(math.nan, state="diverged", rate=1)
    assert chosen_rate([result(0.4, rate=1e-3), result(0.6, rate=2e-3), lost]) == "0.002"
    assert chosen_rate([result(0.6, 0.5, 1e-3), result(0.6, 0.7, 2e-3)]) == "0.002"
    equal = [result(0.6, rate=4e-3), result(0.6 + 1e-12, rate=1e-3), result(0.6, rate=2e-3)]
    assert chosen_rate(equal) == "0.001", "the smallest rate of three equals"
    assert choose([lost]) == {}
    unanswered = result(math.nan, rate=4e-3)
    assert chosen_rate([unanswered, result(0.4, rate=2e-3)]) == "0.002"
    assert choose([unanswered]) == {}
    seeds = [result(s, rate=r, seed=i) for r, both in ((1e-3, (0.9, 0.1)), (2e-3, (0.6, 0.6)))
             for i, s in enumerate(both)]  # fmt: skip
    assert chosen_rate(seeds) == "0.002", "a mean over seeds, not the luckiest one"
    open_ = [*seeds[:3], result(math.nan, rate=2e-3, seed=1, state="not run")]
    assert chosen_rate(open_) == "0.001", "a setting counts once all its seeds are finished"


def test_a_loss_that_is_no_number_loses_the_run_and_is_named(tmp_path: Path) -> None:
    record = ChunkRecord(1, trained=True, evaluated=True, loss=math.nan)
    save_state(tmp_path / "state.json", RunState([record], 1, finished=True))
    found = read_result(cell(tmp_path, rate=0.5))
    assert (found.state, found.why) == ("diverged", "a chunk ended with the loss nan")
    table = as_markdown([found, result(0.5)], choose([result(0.5)]))
    assert "| diverged |" in table.splitlines()[2]
    assert table.splitlines()[3].startswith("| **lora** | **0** | **0** |")
    assert "nan" in as_csv(rows([found], {}))


def test_weights_that_diverged_lose_the_run_and_other_failures_do_not(tmp_path: Path) -> None:
    failure = tmp_path / "failure.txt"
    assert read_result(cell(tmp_path)).state == "not run"
    failure.write_text("chunk 1: lm.A holds NaN: the training diverged. Look", encoding="utf-8")
    assert read_result(cell(tmp_path)).state == "diverged"
    failure.write_text("no space left on device", encoding="utf-8")
    assert read_result(cell(tmp_path)).state == "failed"


def test_only_the_best_setting_keeps_its_adapters(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    words = [str(toy_yaml()), "--into", str(tmp_path / "sweep"), "--grid", "tuner.alpha=8,16,32"]
    sweep = plan_sweep(toy_yaml(), parse(["sweep", *words, "--seeds", "0-1"]))
    for cell, score in zip(sweep.cells, (0.9, 0.1, 0.6, 0.6, 0.3, 0.3), strict=True):
        finish(cell, score)
    lines = list(keep_best(sweep))
    assert lines[0] == "best of lora: tuner.alpha=16, Last 60.0", "its mean over seeds, not 90"
    assert lines[-1].endswith("of the other settings' adapters removed; their scores stay")
    left = {str(path.relative_to(tmp_path / "sweep")) for path in tmp_path.rglob("adapter_model*")}
    assert {name.split("/")[0] for name in left} == {"lora-seed0-alpha=16", "lora-seed1-alpha=16"}
    assert all(read_result(cell).state == "done" for cell in sweep.cells)

    finish(sweep.cells[0], 0.9)
    save_state(sweep.cells[5].layout.state, RunState())
    assert "best of lora" in next(keep_best(sweep))
    assert (sweep.cells[0].layout.adapter(1) / WEIGHTS).is_file(), "one run is still to come"


def finish(cell: Cell, score: float) -> None:
    """Writes what a run of one chunk leaves."""
    adapter = cell.layout.adapter(1)
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / WEIGHTS).write_bytes(b"weights")
    text = f"chunk,task,score,n\n0,Fin,0,4\n1,Fin,{score},4\n"
    cell.layout.matrix.write_text(text, encoding="utf-8")
    took = {"train_seconds": 9.0, "eval_seconds": 3.0}
    records = [ChunkRecord(1, trained=True, evaluated=True, loss=1.0, **took)]
    save_state(cell.layout.state, RunState(records, 1, finished=True))


def recorded(first: float) -> dict[str, object]:
    """A routing.json of two layers and experts; one layer's kept set follows `first`."""
    group = {
        "name": "Fin",
        "rows": 4.0,
        "use": [[first, 1 - first]] * 2,
        "selected": [[1.0, 1.0]] * 2,
        "task_entropy": [0.0, 0.0],
        "token_entropy": [0.0, 0.0],
        "sets": [{"3": 1.0}] * 2,
    }
    kept = [3, 1 if first < 0.5 else 2]
    question = {"text": "Up or down?", "group": "Fin", "rows": 4, "vector": [0.0], "kept": kept}
    return {
        "format": 2, "layers": ["a", "b"], "num_experts": 2, "top_k": 1, "rows": 4.0,
        "groups": [group], "cka": [[], []], "instructions": [question],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=smolora", "tuner.sentence=task"], "tuner.sentence=task"),
        (["method=smolora"], ""),
        (["method=oracle"], ""),  # its name says it
    ],
)
def test_a_label_that_the_recipe_itself_gives_is_a_setting(
    toy_yaml: Callable[..., Path], tmp_path: Path, words: list[str], expected: str
) -> None:
    """The study ranks no method that is given the task of a question."""
    results = tmp_path / "results"
    given = ["sweep", str(toy_yaml()), *words, "--into", str(tmp_path / "s")]
    sweep = plan_sweep(toy_yaml(), parse([*given, "--results", str(results)]))
    (cell,) = sweep.cells
    finish(cell, 0.25)
    hardware = {"cores": 2, "processor": "EPYC", "gpus": []}
    manifest = {"git": {"sha": "1"}, "hardware": hardware, "threads": 1, "environment": {}}
    cell.layout.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    keep_results(sweep)
    assert cell.kept is not None
    run = read_run(cell.kept)
    assert run.settings == expected
    assert run.given_task == (expected != "" or "method=oracle" in words)


def test_a_run_whose_csv_is_kept_is_not_run_again(
    toy_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a study commits; the run folders may be lost with their machine."""
    folder, results = tmp_path / "sweep", tmp_path / "results"
    words = ["sweep", str(toy_yaml()), "--into", str(folder), "--results", str(results)]
    words += [
        "--grid",
        "tuner.alpha=8",
        "--seeds",
        "0-1",
        "data.chunks=1",
        "launcher.omp_threads=1",
    ]
    sweep = plan_sweep(toy_yaml(), parse(words))
    for cell in sweep.cells:
        finish(cell, 0.25)
        hardware = {"cores": 2, "processor": "EPYC", "gpus": ["A", "A"]}
        hardware["instruction_set"] = "AVX2"
        manifest = {"git": {"sha": "1234", "dirty": True}, "hardware": hardware}
        manifest |= {"threads": 1, "environment": {"ATEN_CPU_CAPABILITY": "avx2"}}
        cell.layout.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    routed = sweep.cells[1].layout.routing
    for chunk, first in ((0, 0.25), (1, 0.75)):
        routed(chunk).parent.mkdir(parents=True, exist_ok=True)
        routed(chunk).write_text(json.dumps(recorded(first)), encoding="utf-8")
    keep_results(sweep)
    kept = (results / "lora-seed1-alpha=8.csv").read_text(encoding="utf-8").splitlines()
    assert kept[0] == "method,seed,stream_seed,settings,keeps,trained,stored,chunk,task,first," + (
        "score,n,train_seconds,eval_seconds,git,machine,nmi,kept_sets_changed,drift,overlap"
    )
    where = '1234+,"2 cores EPYC with AVX2, 2 x A, threads 1, ATEN_CPU_CAPABILITY=avx2"'
    scored = f"lora,1,0,data.chunks=1 tuner.alpha=8,,,,1,Fin,1,0.250000,4,9.0,3.0,{where}"
    assert kept[2] == f"{scored},,0.500000,0.500000,", "one task: no mutual information, no overlap"
    assert kept[1].endswith(f"{where},,,,"), "nothing was before the first"
    plain = (results / "lora-seed0-alpha=8.csv").read_text(encoding="utf-8").splitlines()
    assert plain[2].endswith(f",4,9.0,3.0,{where},,,,"), "no routing, no values"

    shutil.rmtree(folder)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "0 runs to do, 2 ready" in out
    assert "2 runs: 2 kept" in out
    assert not (folder / "lora-seed1-alpha=8").exists()
    found = read_result(sweep.cells[1])
    assert (found.state, found.last, found.seconds) == ("done", 0.25, 12.0)
    (results / "lora-seed0-alpha=8.csv").write_text("chunk,task\n1,Fin\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"alpha=8\.csv: expected rows of method, seed"):
        read_result(sweep.cells[0])

    # Another run under that name is refused, not taken for this one.
    whole = [*kept[:1], *(line.replace("lora,1,0,", "lora,0,0,") for line in kept[1:])]
    named = results / "lora-seed0-alpha=8.csv"
    named.write_text("\n".join(kept) + "\n", encoding="utf-8")
    assert main(words) == 2
    assert "holds another run: seed 1, asked for: 0" in capsys.readouterr().err
    named.write_text("\n".join(whole) + "\n", encoding="utf-8")
    assert main([*words, "--dry-run"]) == 0
    capsys.readouterr()
    assert main([*words, "tuner.rank=4"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "asked for: {'data.chunks': '1', 'tuner.alpha': '8', 'tuner.rank': '4'}" in told
    assert main([word.replace("chunks=1", "chunks=2") for word in words]) == 2
    assert "chunks 1, asked for: 2" in " ".join(capsys.readouterr().err.split())
