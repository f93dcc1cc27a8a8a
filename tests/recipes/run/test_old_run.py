"""A run folder of the version before: it is read, reported, and continued to the same adapter.

tests/fixtures/old_run_resumable was written by git commit a70feaa with the real host: the toy
recipe with method strlora, rank 1 and one expert, killed with SIGKILL at step 2 of 3 of chunk 2.
expected.json is what that commit made of the same run to its end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import read_json, sha256_file, write_json
from eval.compare.__main__ import main as compare
from eval.report import write_report
from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.run.chunk_data import open_recipe_stream
from recipes.run_folder.checkpoints import adapter_hashes, newest_checkpoint
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import check_same_data, check_same_run
from recipes.run_folder.migration import migrate_plugin_paths
from recipes.run_folder.state import load_state
from recipes.tools.status import verify
from strlora_tuner.saved import CONFIG, WEIGHTS
from tests.recipes.real_host import gone_on, needs_host
from tests.recipes.toy import write_stream

STORED = REPO / "tests" / "fixtures" / "old_run_resumable"


@pytest.fixture
def old(tmp_path: Path) -> RunLayout:
    """The stored run as if it had been written here, and its stream."""
    write_stream(tmp_path / "stream")
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(STORED, layout.root)
    places = {"@RUN@": layout.root, "@STREAM@": tmp_path / "stream", "@REPO@": REPO}
    for path in layout.root.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml"):
            text = path.read_text(encoding="utf-8")
            for mark, place in places.items():
                text = text.replace(mark, str(place))
            path.write_text(text, encoding="utf-8")
    state = read_json(layout.state)  # the adapter's configuration names the model's folder
    state["chunks"][1]["adapter_sha256"][CONFIG] = sha256_file(layout.adapter(1) / CONFIG)
    write_json(layout.state, state)
    return layout


def plugins(path: Path) -> list[str]:
    return [str(Path(name).relative_to(REPO)) for name in read_json(path)["external_plugins"]]


def test_it_is_the_same_run_although_a_key_was_removed_since(old: RunLayout) -> None:
    assert "sample_cache" in old.recipe.read_text(encoding="utf-8")
    recipe = load_recipe(str(old.recipe))
    check_same_run(old, recipe)
    check_same_data(old, open_recipe_stream(recipe))
    assert "gpu_joules" in old.state.read_text(encoding="utf-8")
    assert load_state(old.state).record(1).steps == 3
    assert list(verify(recipe)) == []
    checkpoint = newest_checkpoint(old.host(2))
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.finished) == (2, False)


def test_a_recipe_of_a_user_that_names_the_removed_key_is_told_why(old: RunLayout) -> None:
    own = old.root.parent / "own.yaml"
    shutil.copyfile(old.recipe, own)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(own))
    message = str(caught.value)
    assert "launcher.sample_cache: was removed" in message
    assert "own.yaml:" in message
    assert "leave it out" in message


def test_it_is_reported_and_compared(old: RunLayout, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_report(old.root).is_file()
    assert compare([str(old.root)]) == 0
    assert "StrLoRA" in capsys.readouterr().out


def test_its_adapters_name_the_plugins_where_they_are_now(old: RunLayout) -> None:
    """The host imports them when a user gives an adapter without --external_plugins."""
    before = adapter_hashes(old.adapter(1))
    everywhere = [old.adapter(1), old.host(2), old.host(2) / "checkpoint-2"]
    for folder in everywhere:
        assert "recipes/strlora_host_plugin.py" in plugins(folder / "args.json")
    migrate_plugin_paths(old)
    for folder in everywhere:
        names = plugins(folder / "args.json")
        assert len(names) == 2
        assert all((REPO / name).is_file() for name in names)
    assert adapter_hashes(old.adapter(1)) == before
    content = (old.adapter(1) / "args.json").read_bytes()
    migrate_plugin_paths(old)
    assert (old.adapter(1) / "args.json").read_bytes() == content


@pytest.mark.slow
@needs_host
@pytest.mark.parametrize("where", ["inside a chunk", "between two chunks"])
def test_it_continues_to_the_adapter_that_the_old_version_made(old: RunLayout, where: str) -> None:
    if where == "between two chunks":
        shutil.rmtree(old.chunk(2))
    out = gone_on(old.recipe, "launcher.resident=true")
    assert ("resuming at step 2 of 3" in out) == (where == "inside a chunk")
    expected = read_json(STORED / "expected.json")
    rows = old.train_metrics(2).read_text(encoding="utf-8").splitlines()
    assert losses(map(json.loads, rows)) == pytest.approx(losses(expected["steps"]), rel=1e-4)
    if runs_on_the_same(expected):
        assert sha256_file(old.adapter(2) / WEIGHTS) == expected[WEIGHTS]
        assert old.matrix.read_text(encoding="utf-8").splitlines() == expected["matrix"]


@pytest.mark.slow
@needs_host
def test_the_host_loads_its_adapter_by_itself(old: RunLayout) -> None:
    migrate_plugin_paths(old)
    code = (
        "import sys; from swift.arguments import InferArguments; "
        "print(InferArguments(adapters=[sys.argv[1]]).external_plugins)"
    )
    words = [sys.executable, "-c", code, str(old.adapter(1))]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "strlora_tuner/swift_plugins/routed_tuners.py" in done.stdout


def losses(rows: Any) -> list[float]:
    """Loss and norm of the gradient, step after step."""
    return [row[key] for row in rows for key in ("loss", "grad_norm")]


def runs_on_the_same(expected: dict[str, Any]) -> bool:
    """Whether software and kind of processor are those that the adapter was made with."""
    import torch

    same = {name: version(name) for name in expected["versions"]} == expected["versions"]
    # Of the same instructions the libraries choose other kernels on another maker's processor.
    vendor = f"vendor_id\t: {expected['vendor']}\n" in Path("/proc/cpuinfo").read_text()
    return same and vendor and torch.backends.cpu.get_cpu_capability() == expected["cpu"]
