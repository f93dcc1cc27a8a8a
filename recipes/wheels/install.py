"""Installs collected wheels beside an environment, into a folder of its own."""

from __future__ import annotations

import hashlib
import json
import platform
import site
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from recipes import REPO
from recipes.wheels.closure import (
    LEFT_OUT,
    SOURCE,
    Demands,
    asked_of,
    environment_of,
    read_requirements,
    read_wheel,
)
from recipes.wheels.collect import FORMAT, MANIFEST, WheelError, pip, say

SHOWN = ("torch", "torchvision", "transformers", "peft", "accelerate", "triton", "numpy")


class Row(TypedDict):
    """A wheel of the manifest; a spare one is for what is refused there, and only then."""

    file: str
    name: str
    version: str
    spare: bool
    sha256: str


class Collected(TypedDict):
    """wheels.json."""

    format: str
    python: str
    machine: str
    beside: dict[str, str | None]
    left_out: dict[str, str]
    wheels: list[Row]


def read_manifest(folder: Path) -> Collected:
    """Reads wheels.json and checks every wheel against it.

    Raises:
        WheelError: it is missing or of another format, or a wheel is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise WheelError(f"{path} is missing; make it with: setup.sh --wheels FOLDER")
    try:
        manifest: Collected = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise WheelError(f"{path} is damaged ({error}); copy the whole folder again") from error
    if manifest.get("format") != FORMAT:
        raise WheelError(f"{path}: format {manifest.get('format')!r}, expected {FORMAT!r}")
    for row in manifest["wheels"]:
        wheel = folder / row["file"]
        if not wheel.is_file():
            raise WheelError(f"{wheel} is missing; copy the whole folder again")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != row["sha256"]:
            raise WheelError(f"{wheel} is damaged; copy the whole folder again")
    return manifest


def installed(name: str) -> str | None:
    """Returns the version of a package in this interpreter, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def chosen(
    rows: list[Row], demands: Demands, version: Callable[[str], str | None] = installed
) -> list[Row]:
    """Returns the wheels to install: a spare one only where what is there is missing or refused."""

    def needed(row: Row) -> bool:
        found = version(row["name"])
        return not row["spare"] or found is None or bool(demands[row["name"]].refusing(found))

    return [row for row in rows if needed(row)]


def refusals(demands: Demands, versions: Mapping[str, str | None]) -> list[str]:
    """Returns one line for each package that is missing or that somebody's range refuses."""
    lines = []
    for name, demand in sorted(demands.items()):
        found = versions[name]
        if name in LEFT_OUT:
            continue
        if found is None:
            asked = ", ".join(demand.asked)
            lines.append(f"{name}{demand.specifier} is needed by {asked}, and not there")
            continue
        for who, wanted in demand.refusing(found).items():
            lines.append(f"{name} {found} is there, but {who} needs {name}{wanted}")
    return lines


def install(folder: Path, into: Path) -> None:
    """Makes the virtual environment `into` beside this interpreter and installs the wheels there.

    The interpreter's own packages stay as they are and are seen from `into`, behind the wheels.

    Raises:
        WheelError: the wheels are for another Python, or what is there is refused.
    """
    manifest = read_manifest(folder)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if (here, platform.machine()) != (manifest["python"], manifest["machine"]):
        raise WheelError(
            f"{folder} was collected for Python {manifest['python']} on {manifest['machine']}; "
            f"this is Python {here} on {platform.machine()}. Collect with --python {here}, or set "
            "PYTHON to another interpreter"
        )
    say("found here: " + ", ".join(f"{name} {installed(name) or '-'}" for name in SHOWN))
    wheels = [read_wheel(folder / row["file"]) for row in manifest["wheels"]]
    roots = read_requirements(REPO / SOURCE)
    demands = asked_of(wheels, roots, environment_of(here))
    rows = chosen(manifest["wheels"], demands)
    python = make_environment(into)
    packages = into / "lib" / f"python{here}" / "site-packages"
    say(f"installing {len(rows)} wheels into {into}")
    files = [str(folder / row["file"]) for row in rows]
    options = ["--quiet", "--no-index", "--no-deps", "--upgrade", "--no-compile"]
    problem = pip("install", *options, "--target", str(packages), *files)
    if problem:
        raise WheelError(f"pip could not install the wheels:\n{problem}")
    # Asked of the new environment's own Python: only there do the wheels lie before the packages
    # beneath. Reversed, so that of two with one name the first on the path counts.
    names = json.dumps(sorted(demands))
    code = (
        "import json, sys; from importlib import metadata as m\n"
        "d = {x.metadata['Name'].replace('_', '-').replace('.', '-').lower(): x.version"
        " for x in reversed(list(m.distributions()))}\n"
        "print(json.dumps({n: d.get(n) for n in json.loads(sys.argv[1])}))"
    )
    output = subprocess.run(
        [str(python), "-c", code, names], capture_output=True, text=True, check=True
    ).stdout
    lines = refusals(demands, json.loads(output))
    if lines:
        raise WheelError(
            "what is there does not fit:\n  " + "\n  ".join(lines) + "\nCollect again with these "
            "packages left out of --beside, or with their versions (NAME==VERSION)."
        )
    say("every range of requirements.txt and of the wheels is met; left out: "
        + ", ".join(manifest["left_out"]))  # fmt: skip


def make_environment(into: Path) -> Path:
    """Makes a virtual environment that sees this interpreter's packages; returns its Python.

    `--system-site-packages` would show the packages of the interpreter's base only, and not those
    of a virtual environment; a .pth file shows either, behind the new environment's own.
    """
    command = [sys.executable, "-m", "venv", "--without-pip", str(into)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WheelError(f"could not make {into}:\n{done.stdout}{done.stderr}")
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE
               else [])]  # fmt: skip
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = into / "lib" / version / "site-packages"
    (packages / "_beside.pth").write_text("".join(lines), encoding="utf-8")
    return into / "bin" / "python"
