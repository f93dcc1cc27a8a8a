"""Prints what an environment lacks of requirements files; exit status 0 when nothing is missing.

    python missing_requirements.py requirements.txt ...

Reads package metadata only, so it takes well under a second. Needs no package but `packaging`, and
falls back to pip's own copy of it.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ModuleNotFoundError:
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]


def lacking(path: Path) -> list[str]:
    """Returns one line for each requirement in `path` that is absent or out of range."""
    problems = []
    for line in path.read_text().splitlines():
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement} (not installed)")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement} (found {found})")
    return problems


def main() -> int:
    """Checks the files named on the command line."""
    problems = [problem for name in sys.argv[1:] for problem in lacking(Path(name))]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
