"""`reproduce`, `--verbose` and costs: what a second laboratory and an error need."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.files import read_json, write_json
from recipes.cli import main
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import write_costs
from recipes.run_folder.state import ChunkRecord, RunState, load_state
from recipes.tools.reproduce import lacking
from tests.recipes.fake_run import finish


def test_a_run_is_reproduced_and_what_differs_is_named(
    toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    code, _, err = finish(toy_yaml())
    assert code == 0, err
    run = tmp_path / "run"
    code, out, err = finish(Path("reproduce"), str(run))
    assert code == 0, out + err
    assert "reproduced: the adapters of 2 chunks and all scores, bit for bit" in out
    assert "differs" not in out

    again = tmp_path / "run-again"
    manifest = json.loads((again / "manifest.json").read_text(encoding="utf-8"))
    manifest["versions"]["torch"] = "1.0"
    manifest["environment"]["MAX_PIXELS"] = "784"
    manifest["scorers"] = {"mine.py:score": "0" * 64}
    (again / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    matrix = (again / "matrix.csv").read_text(encoding="utf-8").splitlines()
    (again / "matrix.csv").write_text("\n".join([*matrix[:-1], "2,Fin,0.9,4"]), encoding="utf-8")
    code, out, _ = finish(Path("reproduce"), str(run), "--compare-only", "--json")
    assert code == 1
    found = json.loads(out)
    differing = [kind for kind in found if found[kind]]
    assert differing == ["versions", "scorers", "environment", "scores"]
    assert "'1.0'" in found["versions"][0]
    assert found["environment"] == ["environment.MAX_PIXELS: None, '784'"]
    assert found["scores"][0].startswith("chunk 2 Fin: ")
    code, out, _ = finish(Path("reproduce"), str(run), "--compare-only")
    assert code == 1
    assert "not reproduced" in out

    # The set that does not answer is compared, too: the next chunk trains from it.
    for folder, digest, score in ((run, "0" * 64, "0.5"), (again, "1" * 64, "0.6")):
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        hashes = {"fast/adapter_model.safetensors": digest, "fast/adapter_config.json": digest}
        state["chunks"][-1]["adapter_sha256"] |= hashes
        router = {"router/adapter_model.safetensors": digest, "router_samples.jsonl": digest}
        state["chunks"][-1]["router_sha256"] = router
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        table = f"chunk,task,score,n\n1,AD,{score},4\n"
        (folder / "matrix-fast.csv").write_text(table, encoding="utf-8")
    shutil.copyfile(run / "matrix.csv", again / "matrix.csv")
    code, out, _ = finish(Path("reproduce"), str(run), "--compare-only", "--json")
    found = json.loads(out)
    assert code == 1
    assert [line.partition(": ")[0] for line in found["adapters"]] == [
        "chunk 2 fast/adapter_model.safetensors",
        "chunk 2 router/adapter_model.safetensors",
    ]
    assert len(found["scores"]) == 1
    assert found["scores"] == ["fast weights, chunk 1 AD: '0.500000', '0.600000'"]


def test_what_was_not_compared_is_not_reproduced(
    toy_yaml: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = finish(toy_yaml())
    assert code == 0, err
    run = tmp_path / "run"

    def compared(into: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)  # where the user stands
        code = main(["reproduce", str(run), "--into", into, "--compare-only"])
        told = capsys.readouterr()
        return code, told.out + told.err

    for name, kept in (("none", 1), ("half", 2)):
        shutil.copytree(run, tmp_path / name)
        state = read_json(run / "state.json")
        state["chunks"] = state["chunks"][:kept]
        write_json(tmp_path / name / "state.json", state)
        code, told = compared(name)
        assert code == 1
        assert f"not reproduced: {tmp_path / name} lacks chunks of {run}" in told
        lacks = [f"    chunk {index}: trained, not trained\n" for index in range(kept, 3)]
        assert f"  chunks      differs\n{''.join(lacks)}  adapters    the same\n" in told
    # A score that is not there differs from one that is; more than the first run has is no harm.
    lines = (run / "matrix.csv").read_text("utf-8").splitlines()
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut/matrix.csv").write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    code, told = compared("cut")
    assert code == 1
    assert re.search(r"scores +differs\n    chunk 2 Fin: '0\.\d+', None\n", told)
    shutil.copytree(run, tmp_path / "more")
    shutil.copyfile(tmp_path / "half/state.json", run / "state.json")
    code, told = compared("more")
    assert (code, "reproduced: the adapters of 1 chunks" in told) == (0, True)

    assert compared("run") == (2, "--into run is the run itself; name the folder of another run\n")
    code, told = compared(".")
    assert code == 1
    assert told == (
        f"{tmp_path}: no manifest.json there; --into names the folder of the run to compare\n"
    )
    write_json(run / "state.json", {"format": 1, "chunks": [], "done": 0, "finished": False})
    assert compared("more") == (1, f"{run}: no chunk is done; there is nothing to reproduce\n")


def test_a_chunk_that_was_not_to_be_evaluated_is_not_missed(tmp_path: Path) -> None:
    """A run that has grown evaluated its last chunk of before; a run over the whole need not."""
    first = RunState([ChunkRecord(index, index > 0, True) for index in range(4)], 3, True)
    second = RunState([ChunkRecord(index, index > 0, index != 1) for index in range(4)], 3, True)
    assert list(lacking(first, second)) == []
    second.done = 0
    assert list(lacking(first, second)) == ["chunk 1: evaluated, not evaluated"]
    second.record(0).evaluated = False
    assert next(iter(lacking(first, second))) == "chunk 0: evaluated, not evaluated"


@pytest.mark.parametrize(
    "by_folder",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["its folder", "its recipe"],
)
def test_a_run_that_was_moved_goes_on_and_leaves_its_old_place_alone(
    by_folder: bool, toy_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = toy_yaml()
    assert finish(recipe, FAKE_FAIL_AT="2")[0] == 1
    old, new = tmp_path / "run", tmp_path / "elsewhere" / "run"
    new.parent.mkdir()
    old.rename(new)
    words = [new] if by_folder else [recipe, f"run_dir={new}"]
    code, _, err = finish(Path("run"), *map(str, words))
    assert code == 0, err
    assert load_state(RunLayout(new).state).chunks[-1].index == 2
    for command in ("status", "report"):
        code, out, err = finish(Path(command), str(new))
        assert code == 0, out + err
    assert not old.exists()


def test_a_run_that_was_never_started_cannot_be_reproduced(toy_yaml: Callable[..., Path]) -> None:
    code, _, err = finish(Path("reproduce"), str(toy_yaml()))
    assert code == 1
    assert "not started" in err


def test_verbose_shows_all_that_the_host_wrote(toy_yaml: Callable[..., Path]) -> None:
    recipe = toy_yaml()
    _, _, short = finish(recipe, FAKE_FAIL_AT="2")
    code, _, err = finish(recipe, "--verbose", FAKE_FAIL_AT="2")
    assert code == 1
    assert "Traceback" not in short
    assert "Traceback" in err
    assert "ValueError: the loss is not a number" in err


def test_the_manifest_tells_what_each_chunk_took(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    write_json(layout.manifest, {"name": "toy", "chunks": []})
    trained = ChunkRecord(1, train_seconds=8.1, eval_seconds=2.2)
    write_costs(layout, RunState([ChunkRecord(0, eval_seconds=2.0), trained]))
    manifest = read_json(layout.manifest)
    assert manifest["name"] == "toy"
    assert [chunk["wall_seconds"] for chunk in manifest["chunks"]] == [2.0, 10.3]
