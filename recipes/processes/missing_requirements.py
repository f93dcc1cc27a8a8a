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
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    for requirement in map(Requirement, filter(None, lines)):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement} (not installed)")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement} (found {version})")
    return problems


def main() -> int:
    """Checks the files named on the command line."""
    problems = [problem for name in sys.argv[1:] for problem in lacking(Path(name))]
    print(*problems, sep="\n", end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
