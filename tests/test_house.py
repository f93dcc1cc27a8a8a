"""The layout that docs/architecture.md describes; pyproject.toml holds directions of imports."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "data_prep",
    "eval",
    "recipes",
    "strlora_tuner",
    "assets",
    "benchmarks",
    "docs",
    "tests",
)
PRODUCT = ("data_prep", "eval", "recipes", "strlora_tuner")
MOST_FILES, MOST_LINES = 12, 400
# One file a task of the embedded stream.
LISTS = {"data_prep/mini/tasks"}
# Names of a role: the same thing of another method, page or package.
ROLES = {
    "__init__.py",
    "__main__.py",
    "config.py",
    "layer.py",
    "model.py",
    "options.py",
    "page.py",
    "swift_plugin.py",
    "tables.py",
}


def python_files(*packages: str) -> list[Path]:
    """Every Python file of some folders, relative to the root."""
    found = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)


def test_no_folder_is_full() -> None:
    folders: dict[str, int] = defaultdict(int)
    for path in python_files(*PACKAGES):
        folders[str(path.parent)] += 1
    full = {f: n for f, n in folders.items() if n > MOST_FILES and f not in LISTS}
    assert not full


def test_no_file_is_long() -> None:
    lines = {
        str(p): len((ROOT / p).read_text("utf-8").splitlines()) for p in python_files(*PRODUCT)
    }
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}


def test_a_name_means_one_thing() -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for path in python_files(*PRODUCT):
        if path.name not in ROLES and str(path.parent) not in LISTS:
            names[path.name].append(str(path))
    assert not {name: paths for name, paths in names.items() if len(paths) > 1}


def test_only_the_door_changes_the_import_path() -> None:
    changed = [
        str(p) for p in python_files(*PRODUCT) if "sys.path.insert" in (ROOT / p).read_text()
    ]
    assert not changed
