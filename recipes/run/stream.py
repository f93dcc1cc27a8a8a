"""The stream that a recipe trains on: is it there, is it whole, and how to get it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.blocks import Data
from recipes.config.schema import Recipe
from recipes.run.layout import RunLayout

MANIFEST = "stream.json"
FORMAT = "strlora-stream/1"


class StreamError(Exception):
    """The stream cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Stream:
    """A stream folder and its manifest."""

    root: Path
    manifest: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        return list(self.manifest["tasks"])

    @property
    def chunk_count(self) -> int:
        return len(self.manifest["chunks"])

    @property
    def sha256(self) -> str:
        """Of the manifest, which holds the hash of every file."""
        return file_sha256(self.root / MANIFEST)

    def chunk(self, index: int) -> dict[str, Any]:
        """The manifest's entry of chunk `index` (from 1)."""
        return self.manifest["chunks"][index - 1]

    def chunk_file(self, index: int) -> Path:
        return _inside(self.root, self.chunk(index)["file"])

    def verify_chunk(self, index: int) -> None:
        """Raises StreamError when the chunk's file is not the one that the manifest describes.

        Also when a sample names an image outside the stream's folder.
        """
        _verify(self.chunk_file(index), self.chunk(index)["sha256"])
        _check_images(self.chunk_file(index))

    def verify_tests(self, tasks: list[str]) -> None:
        """Raises StreamError when a test file is not the one that the manifest describes."""
        for task in tasks:
            entry = self.manifest["tasks"][task]
            _verify(_inside(self.root, entry["test"]), entry["sha256"])
            _check_images(_inside(self.root, entry["test"]))


def planned_chunk_file(data: Data, index: int) -> Path:
    """Where chunk `index` will lie, for commands printed before the stream exists."""
    return Path(data.stream) / "chunks" / f"{index:03d}.jsonl"


def training_files(
    recipe: Recipe, layout: RunLayout, chunk: int, stream: Stream | None = None
) -> list[Path]:
    """What the host reads at `chunk`: chunk files, or the file into which past samples are mixed.

    Without a stream, where they will lie.
    """
    if recipe.replays(chunk):
        return [layout.mixed(chunk)]
    chunks = recipe.data_chunks(chunk)
    return [stream.chunk_file(i) if stream else planned_chunk_file(recipe.data, i) for i in chunks]


def own_samples(recipe: Recipe, chunk: int, stream: Stream | None = None) -> Path | None:
    """The chunk's own file where the host reads one with replayed samples; else None."""
    if not recipe.replays(chunk):
        return None
    return stream.chunk_file(chunk) if stream else planned_chunk_file(recipe.data, chunk)


def open_stream(recipe: Recipe) -> Stream:
    """Reads the manifest and checks it against the recipe.

    Raises:
        StreamError: no manifest, another format, too few chunks, or a task that is not there.
    """
    root = Path(recipe.data.stream)
    path = root / MANIFEST
    if not path.is_file():
        raise StreamError(missing_text(recipe.data))
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StreamError(f"{path} is no JSON ({error}): prepare the stream again") from error
    if manifest.get("format") != FORMAT:
        raise StreamError(f"{path}: format {manifest.get('format')!r}, expected {FORMAT!r}")
    stream = Stream(root, manifest)
    _check_entries(stream)
    if stream.chunk_count < recipe.data.chunks:
        raise StreamError(
            f"{path} holds {stream.chunk_count} chunks, but the recipe's data.chunks is "
            f"{recipe.data.chunks}: use data.chunks={stream.chunk_count} or another data.stream"
        )
    unknown = [task for task in recipe.eval.tasks or [] if task not in stream.tasks]
    if unknown:
        known = ", ".join(stream.tasks)
        raise StreamError(f"eval.tasks: {', '.join(unknown)} is not in {path}; it has: {known}")
    return stream


def _check_entries(stream: Stream) -> None:
    """Raises StreamError when the manifest lacks a key or names a file outside the stream."""
    path = stream.root / MANIFEST
    try:
        for entry in stream.manifest["chunks"]:
            _inside(stream.root, entry["file"])
            int(entry["samples"]), str(entry["sha256"])
        for name, entry in stream.manifest["tasks"].items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise StreamError(
                    f"{path}: {name!r} is no name of a task, which also names a file: use letters, "
                    "digits, dots, dashes and underscores"
                )
            _inside(stream.root, entry["test"])
            str(entry["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StreamError(f"{path} is no stream manifest ({error!r}): prepare it again") from error


def missing_text(data: Data) -> str:
    """How to get a stream that is not there."""
    text = f"the stream {data.stream} is missing ({Path(data.stream) / MANIFEST} is not there)"
    how = data.prepare or "set data.stream to a folder with stream.json, chunks/ and test/"
    if data.source == "mini":
        how = f"it is made by: {' '.join(['python', *_mini_arguments(data)])}"
    return f"{text}: {how}"


def ensure_stream(recipe: Recipe) -> None:
    """Makes the miniature stream when it is asked for and absent; its progress goes to our output.

    Raises:
        StreamError: the preparation failed.
    """
    data = recipe.data
    if data.source != "mini" or (Path(data.stream) / MANIFEST).is_file():
        return
    done = subprocess.run([sys.executable, *_mini_arguments(data)])
    if done.returncode:
        raise StreamError(
            f"preparing {data.stream} failed with exit code {done.returncode}, see above"
        )


def _mini_arguments(data: Data) -> list[str]:
    where = ["--out", data.stream, "--size", data.size, "--seed", str(data.seed)]
    return ["-m", "data_prep.mini", *where]


def _inside(root: Path, name: str) -> Path:
    """`root`/`name`, refusing names that leave the stream's folder."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise StreamError(f"{root / MANIFEST} names {name!r}, which lies outside the stream")
    return path


def _check_images(file: Path) -> None:
    """Raises StreamError naming the first sample whose image lies outside the stream's folder.

    Names are judged as they are written: an images/ folder may itself be a link to a large disk.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                images = json.loads(line).get("images") or []
            except (ValueError, AttributeError):
                continue  # the host names a line that is no sample
            for image in images:
                name = os.path.normpath(str(image))
                if name.startswith(("/", "..", "~")) or "://" in str(image):
                    raise StreamError(
                        f"{file}:{number}: the image {image!r} lies outside the stream's folder; "
                        "image names are relative to it"
                    )


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise StreamError(f"{path} is missing: prepare the stream again")
    found = file_sha256(path)
    if found != expected:
        raise StreamError(
            f"{path} was changed after the stream was made: sha256 {found[:12]}..., but "
            f"{MANIFEST} says {expected[:12]}...: prepare the stream again"
        )


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
