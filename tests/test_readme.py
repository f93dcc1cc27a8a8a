"""What README tells a reader to run or open is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", ROOT / "CONTRIBUTING.md"]
COMMANDS = [
    (page.name if page.parent == ROOT else f"{page.parent.name}/{page.name}", line.strip())
    for page in PAGES
    for line in re.findall(r"^\s*(?:bash|python) .*$", page.read_text(), flags=re.M)
]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def run_recipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recipes.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_exists(page, command):
    words = command.split("#")[0].split()
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), f"{page}: {command}"
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"{page}: {command}"
    else:
        assert (ROOT / words[1]).is_file(), f"{page}: {command}"
    if words[1] == "recipes/run_stream.sh" and words[2] in RECIPES:
        values = [word for word in words[3:] if "=" in word]
        done = run_recipe(words[2], *values, "--validate")
        misspelt = any(value.startswith("tuner.rnak") for value in values)
        assert (done.returncode == 0) != misspelt, done.stdout + done.stderr


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


def test_the_dry_run_prints_every_chunk_and_says_what_is_missing():
    done = run_recipe("internvl3.5-8b", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("swift sft") == 25
    assert "MISSING  model" in done.stdout


def test_a_misspelt_key_gets_one_message_with_the_right_one(tmp_path):
    text = (ROOT / "recipes" / "internvl3.5-8b.yaml").read_text()
    copy = tmp_path / "copy.yaml"
    copy.write_text(text.replace("num_experts:", "num_expert:"))
    done = run_recipe(str(copy), "--validate")
    assert done.returncode == 2
    assert done.stderr.count("did you mean 'num_experts'") == 1
    assert "1 problem in the recipe" in done.stderr


def test_the_evidence_for_what_is_as_published_is_there():
    page = (ROOT / "docs" / "faithfulness.md").read_text()
    named = re.findall(r"`(test_[a-z_]+\.py)::(\w+)`", page)
    assert len(named) > 25
    for file, name in named:
        files = list((ROOT / "tests").rglob(file))
        assert any(f"def {name}(" in path.read_text() for path in files), f"{file}::{name}"
