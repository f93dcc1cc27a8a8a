"""What an environment lacks, by names, versions and markers alone: nothing is fetched here."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from functools import reduce
from operator import and_
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

# Requirements of ms-swift (av: of qwen-vl-utils) that neither `swift sft` nor `swift infer` imports
# on the way of our recipes
# (read off sys.modules after a training and an evaluation, November 2026).
LEFT_OUT = {
    "av": "videos, which no stream here has (qwen-vl-utils; 33 MB)",
    "attrdict": "templates of models that no recipe uses",
    "cpm-kernels": "models that no recipe uses",
    "fastapi": "swift deploy and swift rollout",
    "nltk": "the host's own BLEU",
    "openai": "swift sample",
    "oss2": "Alibaba's object store",
    "rouge": "the host's own ROUGE",
    "tiktoken": "tokenizers of models that no recipe uses",
    "transformers-stream-generator": "models that no recipe uses",
    "uvicorn": "swift deploy and swift rollout",
}
SOURCE = "requirements.txt"  # who asks for the roots
_UPPER = {"<", "<=", "==", "===", "~="}


@dataclass(frozen=True)
class Wheel:
    """A wheel in a folder: what its metadata says."""

    name: str
    version: str
    file: str
    requires: tuple[str, ...]


@dataclass
class Demand:
    """All that is asked of one package, and by whom."""

    extras: set[str] = field(default_factory=set)
    asked: dict[str, SpecifierSet] = field(default_factory=dict)  # who -> range

    @property
    def specifier(self) -> SpecifierSet:
        """The ranges of all who ask, together."""
        return reduce(and_, self.asked.values(), SpecifierSet())

    def refusing(self, version: str) -> dict[str, SpecifierSet]:
        """Returns who refuses `version`, with the range that each asks for."""
        asked = self.asked.items()
        return {who: each for who, each in asked if not each.contains(version, prereleases=True)}

    def bounded_above(self) -> bool:
        """Whether anybody but requirements.txt limits the version from above."""
        others = (each for who, each in self.asked.items() if not who.endswith(".txt"))
        return any(part.operator in _UPPER for each in others for part in each)


Demands = dict[str, Demand]


def read_requirements(path: Path) -> list[Requirement]:
    """Returns the requirements in a pip requirements file; comments and options are skipped."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def read_wheel(path: Path) -> Wheel:
    """Returns name, version and requirements of a wheel.

    Raises:
        ValueError: it is cut short, or holds no METADATA file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            if not names:
                raise ValueError(f"{path}: no METADATA in it, so it is no wheel; fetch it again")
            text = archive.read(names[0]).decode("utf-8")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: no whole wheel ({error}); remove it and try again") from error
    message = HeaderParser().parsestr(text)
    requires = tuple(message.get_all("Requires-Dist") or ())
    return Wheel(canonicalize_name(message["Name"]), message["Version"], path.name, requires)


def environment_of(python: str) -> dict[str, str]:
    """Returns the markers of Linux on x86-64 with CPython `python`, such as 3.12."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def applicable(
    requires: Iterable[str | Requirement], extras: set[str], environment: Mapping[str, str]
) -> list[Requirement]:
    """Returns the requirements whose markers hold, with the extras that are asked for."""
    wanted = [{**environment, "extra": extra} for extra in ("", *sorted(extras))]
    every = [line if isinstance(line, Requirement) else Requirement(line) for line in requires]
    return [r for r in every if r.marker is None or any(map(r.marker.evaluate, wanted))]


def close(
    roots: Iterable[Requirement],
    present: Mapping[str, str | None],
    environment: Mapping[str, str],
    fetch: Callable[[Mapping[str, Demand]], Mapping[str, Wheel]],
) -> tuple[dict[str, Wheel], Demands]:
    """Walks from the requirements to all that is missing, level by level.

    Args:
        present: what the environment has, with the version where it is known. A known version that
            somebody refuses counts as missing.
        fetch: gets wheels by name, of versions that their demands allow.

    Returns:
        The wheels, and what is asked of every package, present ones included.
    """
    demands: Demands = {}
    wheels: dict[str, Wheel] = {}
    level = [(SOURCE, requirement) for requirement in applicable(roots, set(), environment)]
    while level:
        grown = set()
        for who, requirement in level:
            name = canonicalize_name(requirement.name)
            demand = demands.setdefault(name, Demand())
            if not requirement.extras <= demand.extras and name in wheels:
                grown.add(name)  # its extras bring requirements of their own
            demand.extras |= requirement.extras
            # By who asks, so that what a wheel asked can be withdrawn when another version takes
            # its place.
            demand.asked[who] = demand.asked.get(who, SpecifierSet()) & requirement.specifier
        lacking = {
            name: demands[name]
            for name in dict.fromkeys(str(canonicalize_name(r.name)) for _, r in level)
            if _lacks(name, demands[name], present, wheels)
        }
        fetched = fetch(lacking) if lacking else {}
        for again in fetched.keys() & wheels.keys():  # what the old one asked is void
            for demand in demands.values():
                demand.asked.pop(f"{again} {wheels[again].version}", None)
        wheels |= fetched
        level = [
            (f"{name} {wheels[name].version}", requirement)
            for name in [*fetched, *(grown - fetched.keys())]
            for requirement in applicable(wheels[name].requires, demands[name].extras, environment)
        ]
    return wheels, demands


def _lacks(
    name: str, demand: Demand, present: Mapping[str, str | None], wheels: Mapping[str, Wheel]
) -> bool:
    if name in LEFT_OUT:
        return False
    if name in wheels:
        return bool(demand.refusing(wheels[name].version))
    version = present.get(name)
    return name not in present or (version is not None and bool(demand.refusing(version)))


def asked_of(
    wheels: Iterable[Wheel],
    roots: Iterable[Requirement],
    environment: Mapping[str, str],
) -> Demands:
    """Returns what the requirements and a set of wheels ask of every package."""
    known = {wheel.name: wheel for wheel in wheels}

    def fetch(lacking: Mapping[str, Demand]) -> dict[str, Wheel]:
        return {name: known.pop(name) for name in lacking if name in known}

    return close(roots, {}, environment, fetch)[1]


def runs_on(file: str, tags: Iterable[object]) -> bool:
    """Whether a wheel of this file name can be installed under one of the tags."""
    return not parse_wheel_filename(file)[3].isdisjoint(set(tags))  # type: ignore[arg-type]
