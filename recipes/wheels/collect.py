"""Collects wheels of all that a machine without a network lacks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name

from recipes import REPO
from recipes.wheels.closure import (
    LEFT_OUT,
    SOURCE,
    Demand,
    Wheel,
    applicable,
    close,
    environment_of,
    read_requirements,
    read_wheel,
    runs_on,
)

MANIFEST = "wheels.json"
FORMAT = "strlora-wheels/1"
# Of glibc 2.28 and older: every Linux of the last years has it.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
SPARE_BYTES = 1 << 20
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


class WheelError(Exception):
    """Wheels cannot be collected or installed; the message says what to do."""


def say(text: str) -> None:
    """Prints progress to stderr."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def pip(*arguments: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Runs pip of this interpreter; returns None, or the end of its output when it failed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return "\n".join(line for line in lines if not line.startswith("WARNING"))[-1500:]


def read_beside(text: str) -> dict[str, str | None]:
    """Returns name -> version (None: unknown) of `torch==2.11.0,peft` or of a file of `pip freeze`.

    Raises:
        WheelError: no such file, an entry is no package, or gives a range instead of a version.
    """
    path = Path(text)
    if not path.is_file() and "@" not in text and (os.sep in text or text.endswith(".txt")):
        raise WheelError(f"--beside {text}: no such file; give one, or NAME or NAME==VERSION")
    entries = path.read_text("utf-8").splitlines() if path.is_file() else text.split(",")
    found: dict[str, str | None] = {}
    for entry in (each.split("#", 1)[0].strip() for each in entries):
        if not entry or entry.startswith("-"):
            continue
        try:
            requirement = Requirement(entry)
        except InvalidRequirement as error:
            raise WheelError(f"--beside: {entry!r} is no package ({error})") from error
        exact = [part.version for part in requirement.specifier if part.operator == "=="]
        if requirement.specifier and (len(requirement.specifier) > 1 or not exact):
            raise WheelError(f"--beside: {entry!r} gives a range; write NAME or NAME==VERSION")
        found[canonicalize_name(requirement.name)] = exact[0] if exact else None
    return found


class Fetcher:
    """Gets wheels into a folder, of the tested version where the demands allow it."""

    def __init__(self, folder: Path, python: str, pins: Mapping[str, str]) -> None:
        self.folder, self.python, self.pins = folder, python, pins
        version = tuple(int(part) for part in python.split("."))
        self.tags = {
            *cpython_tags(version, platforms=PLATFORMS),
            *compatible_tags(version, interpreter=f"cp{python.replace('.', '')}",
                             platforms=PLATFORMS),
        }  # fmt: skip

    def __call__(self, demands: Mapping[str, Demand]) -> dict[str, Wheel]:
        """Returns a wheel of every package.

        Raises:
            WheelError: one cannot be had, or only with compiled parts for another Python.
        """
        say("fetching " + ", ".join(sorted(demands)))
        lines = {name: self._line(name, demand) for name, demand in demands.items()}
        with tempfile.TemporaryDirectory() as temporary:
            into = Path(temporary)
            if self._download(into, list(lines.values())):  # one failed: one by one
                for package, line in lines.items():
                    if self._download(into, [line]):
                        self._build(into, package, demands[package])
            for path in into.glob("*.whl"):
                name = read_wheel(path).name
                for other in self.folder.glob("*.whl"):
                    if read_wheel(other).name == name:
                        other.unlink()
                shutil.move(path, self.folder / path.name)
        wheels = map(read_wheel, sorted(self.folder.glob("*.whl")))
        found = {wheel.name: wheel for wheel in wheels if wheel.name in demands}
        missing = demands.keys() - found.keys()
        if missing:
            raise WheelError(f"pip brought no wheel of {', '.join(sorted(missing))}")
        return found

    def spares(self, demands: Mapping[str, Demand]) -> dict[str, Wheel]:
        """Returns small pure-Python wheels of the packages that have one."""
        found = {}
        for name, demand in demands.items():
            with tempfile.TemporaryDirectory() as folder:
                if self._download(Path(folder), [self._line(name, demand)], ["any"]):
                    continue
                path = next(Path(folder).glob("*.whl"))
                if path.stat().st_size <= SPARE_BYTES:
                    found[name] = read_wheel(Path(shutil.move(path, self.folder / path.name)))
        return found

    def _line(self, name: str, demand: Demand) -> str:
        pin = self.pins.get(name)
        if pin and not demand.refusing(pin):
            return f"{name}=={pin}"
        return f"{name}{demand.specifier}"

    def _download(
        self, into: Path, lines: Iterable[str], platforms: Iterable[str] = PLATFORMS
    ) -> str | None:
        target = ["--python-version", self.python, "--implementation", "cp"]
        target += [f"--platform={platform}" for platform in platforms]
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(into)]
        return pip("download", *options, *target, *lines)

    def _build(self, into: Path, name: str, demand: Demand) -> None:
        say(f"building {name} from source")
        # DeepSpeed without compiled operators: they would fit one torch and one CUDA only.
        quiet = {"DS_BUILD_OPS": "0", "DS_BUILD_STRING": ""}
        options = ["--quiet", "--no-deps", "--wheel-dir", str(into)]
        problem = pip("wheel", *options, self._line(name, demand), environment=quiet)
        if problem:
            raise WheelError(f"no wheel of {name} for Python {self.python}:\n{problem}")
        path = next(p for p in into.glob("*.whl") if read_wheel(p).name == name)
        if not runs_on(path.name, self.tags):
            raise WheelError(
                f"{path.name} was built for this Python; run setup.sh with PYTHON=python"
                f"{self.python} to build it for {self.python}"
            )


def implied(beside: Mapping[str, str | None], python: str) -> dict[str, None]:
    """Returns what the packages of an environment bring with them, by their metadata.

    Read from this interpreter's own packages where it has them, else asked of the index.
    """
    environment = environment_of(python)
    found: dict[str, None] = {}
    level = list(beside)
    while level:
        requires = {name: _requires(name, beside.get(name)) for name in level}
        level = []
        for name, lines in requires.items():
            found[name] = None
            for requirement in applicable(lines, set(), environment):
                needed = canonicalize_name(requirement.name)
                if needed not in found and needed not in requires and needed not in level:
                    level.append(needed)
    return {name: None for name in found if name not in beside}


def _requires(name: str, version: str | None) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        line = f"{name}=={version}" if version else name
        options = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report"]
        if pip("install", *options, str(report), line):
            say(f"note: no metadata of {line}: what it requires counts as missing")
            return []
        install = json.loads(report.read_text("utf-8"))["install"]
    return install[0]["metadata"].get("requires_dist", []) if install else []


def collect(folder: Path, python: str, beside: Mapping[str, str | None], whole: bool) -> None:
    """Fills `folder` with wheels and the manifest that the closed machine reads.

    Args:
        whole: `beside` names everything that is there, as `pip freeze` does; otherwise what its
            packages require counts as present, too.

    Raises:
        WheelError: a wheel cannot be had, or `python` is no version that the pack runs on.
    """
    if python not in PYTHONS:
        raise WheelError(f"--python {python}: expected one of {', '.join(PYTHONS)}")
    folder.mkdir(parents=True, exist_ok=True)
    present = {**({} if whole else implied(beside, python)), **beside}
    roots = read_requirements(REPO / SOURCE)
    pins = {str(canonicalize_name(r.name)): str(r.specifier).removeprefix("==")
            for r in read_requirements(REPO / "requirements.lock")}  # fmt: skip
    fetch = Fetcher(folder, python, pins)
    environment = environment_of(python)
    wheels, demands = close(roots, present, environment, fetch)
    say("fetching spares for what may be too new there")
    unknown = {n: d for n, d in demands.items() if present.get(n, "") is None}
    spares = fetch.spares({n: d for n, d in unknown.items() if d.bounded_above()})
    kept = {wheel.file for wheel in (*wheels.values(), *spares.values())}
    for path in folder.glob("*.whl"):
        if path.name not in kept:
            path.unlink()
    collected = {**wheels, **spares}
    rows = [
        {"file": wheel.file, "name": name, "version": wheel.version, "spare": name in spares,
         "sha256": hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()}
        for name, wheel in sorted(collected.items())
    ]  # fmt: skip
    left_out = {name: why for name, why in LEFT_OUT.items() if name in demands}
    manifest = {
        "format": FORMAT, "python": python, "machine": "x86_64", "beside": dict(beside),
        "left_out": left_out,
        "wheels": rows,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    size = sum((folder / wheel.file).stat().st_size for wheel in collected.values()) / 2**20
    say(f"{len(rows)} wheels ({len(spares)} of them spare), {size:.1f} MiB, in {folder}")
    say("left out, as nothing here imports them: " + ", ".join(left_out))
