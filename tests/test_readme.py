"""What README tells a reader to run or open is there."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest

from recipes.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", ROOT / "CONTRIBUTING.md"]
COMMANDS = [
    (page.name if page.parent == ROOT else f"{page.parent.name}/{page.name}", line.strip())
    for page in PAGES
    for line in re.findall(r"^\s*(?:bash|python) .*$", page.read_text(), flags=re.M)
]
PACKAGES = [
    path.parent
    for room in ("data_prep", "eval", "recipes")
    for path in (ROOT / room).glob("**/__main__.py")
]
DOORS = sorted(
    ["eval.score", "recipes.ablate", *(".".join(p.relative_to(ROOT).parts) for p in PACKAGES)]
)
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.fixture
def run_recipe(monkeypatch, capsys):
    """Returns a function: exit code, output and errors of `run_stream.sh ARGUMENTS`."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        return main(list(arguments)), *capsys.readouterr()

    return run


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_exists(page, command, run_recipe):
    words = command.split("#")[0].split()
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), f"{page}: {command}"
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"{page}: {command}"
    else:
        assert (ROOT / words[1]).is_file(), f"{page}: {command}"
    if words[1] == "recipes/run_stream.sh" and words[2] in RECIPES:
        values = [word for word in words[3:] if "=" in word]
        code, out, err = run_recipe(words[2], *values, "--validate")
        misspelt = any(value.startswith("tuner.rnak") for value in values)
        assert (code == 0) != misspelt, out + err


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_file_named_exists(page):
    named = re.findall(
        r"(?:recipes|strlora_tuner|data_prep|eval|tests|benchmarks|docs|assets)/"
        r"[A-Za-z0-9_./-]+\.(?:sh|py|yaml|md|png)",
        page.read_text(),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page}: {missing}"


def test_every_shipped_recipe_is_in_the_table():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in RECIPES)
    assert {"gemma3-4b", "internvl3.5-4b", "internvl3.5-8b", "tiny"} <= set(RECIPES)


def test_hours_and_memory_come_from_plan_alone():
    """Figures that nobody measured contradicted `plan`, and each other."""
    pages = [*(ROOT / "recipes").glob("*.yaml"), ROOT / "recipes/README.md", ROOT / "README.md"]
    guessed = r".*(?:\bestimate|\d ?h(?:ours?)?\b|GB a GPU|A100|H100|H200).*"
    measured = r"(?s)<!-- study: .*?<!-- study ends -->"  # tables of runs that took place
    found = {page: re.findall(guessed, re.sub(measured, "", page.read_text())) for page in pages}
    size = [line for lines in found.values() for line in lines]
    assert [line.split(":")[0].strip() for line in size] == ["gpu_gib"], size  # a size of the card


def test_the_dry_run_prints_a_chunk_and_says_what_is_missing(run_recipe):
    code, out, err = run_recipe("internvl3.5-8b", "--dry-run")
    assert code == 0, err
    assert out.count("swift sft") == 1
    assert "MISSING  model" in out


def test_a_misspelt_key_gets_one_message_with_the_right_one(tmp_path, run_recipe):
    text = (ROOT / "recipes" / "internvl3.5-8b.yaml").read_text()
    copy = tmp_path / "copy.yaml"
    copy.write_text(text.replace("num_experts:", "num_expert:"))
    code, _, err = run_recipe(str(copy), "--validate")
    assert code == 2
    assert err.count("did you mean 'num_experts'") == 1
    assert "1 problem in the recipe" in err


def test_the_evidence_for_what_is_as_published_is_there():
    page = (ROOT / "docs" / "faithfulness.md").read_text()
    named = re.findall(r"`(test_[a-z_]+\.py)::(\w+)`", page)
    assert len(named) > 25
    for file, name in named:
        files = list((ROOT / "tests").rglob(file))
        assert any(f"def {name}(" in path.read_text() for path in files), f"{file}::{name}"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", DOORS)
def test_every_door_has_help(module, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
