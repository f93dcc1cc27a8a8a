"""Every door, --dry-run to a served model: all that is missing is named, nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes import REPO
from recipes.cli import main
from recipes.processes import machine
from tests.recipes.run.test_preflight import cut, graphics_driver, second, sharded

SHIPPED = sorted(path.stem for path in (REPO / "recipes").glob("*.yaml"))
PARTIAL: dict[str, Callable[[Path], object]] = {  # what a stream may lack
    "a chunk": lambda s: (s / "chunks" / "002.jsonl").unlink(),
    "the end of a chunk": lambda s: cut(s / "chunks" / "002.jsonl", -9),
    "a test set": lambda s: (s / "test" / "Fin.jsonl").unlink(),
    "a picture": lambda s: next((s / "images").iterdir()).unlink(),
    "the end of its manifest": lambda s: cut(s / "stream.json", -9),
    "its manifest": lambda s: (s / "stream.json").unlink(),
    "chunks": lambda s: shrunk(s),
}


def shrunk(stream: Path) -> None:
    manifest = json.loads((stream / "stream.json").read_text(encoding="utf-8"))
    text = json.dumps({**manifest, "chunks": manifest["chunks"][:1]})
    (stream / "stream.json").write_text(text, encoding="utf-8")


@pytest.fixture
def broken(model: Path, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A shard and a package that are not there, no GPU; returns overrides of any recipe."""
    sharded(model)
    second(model).unlink()
    (tmp_path / "requirements.txt").write_text("no-such-package\n", encoding="utf-8")
    monkeypatch.setattr("recipes.run.preflight.installed.REPO", tmp_path)
    paths = [f"model.path={model}", f"data.stream={stream}", f"run_dir={tmp_path / 'run'}"]
    machine = ["launcher.cpu=false", "launcher.nproc=1", "swift.dataloader_num_workers=0"]
    return [*paths, *machine, "data.chunks=2", "data.source=folder", "model.aligner=null",
            "schedule.first.aligner_lr=null", "schedule.later.aligner_lr=null"]  # fmt: skip


def missing(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("# MISSING  ")]
    return [line.removeprefix("# MISSING  ").split(":")[0] for line in lines]


@pytest.mark.parametrize("lacks", PARTIAL)
def test_every_door_names_all_at_once(
    lacks: str, broken: list[str], stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PARTIAL[lacks](stream)
    subjects, before = ["model", "data", "packages", "GPUs"], files_of(stream.parent)
    words = ["qwen2.5-vl-7b", *broken]
    assert main([*words, "--dry-run"]) == 0
    assert missing(capsys.readouterr().out) == subjects
    main([*words, "--validate"])
    assert missing(capsys.readouterr().out) == subjects
    slurm = [*words, "launcher.kind=slurm", "--slurm"]
    assert main([*slurm, "--dry-run"]) == 0
    assert missing(capsys.readouterr().out)[:3] == subjects[:3]
    assert main(slurm) == 1
    told = capsys.readouterr().err
    assert [each for each in subjects if f"\n  {each}: " in told] == subjects[:3]
    assert files_of(stream.parent) == before
    assert main(words) == 1
    told = capsys.readouterr().err
    assert [each for each in subjects if f"\n  {each}: " in told] == subjects


def files_of(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("recipe", SHIPPED)
def test_every_shipped_recipe_names_all_at_once(
    recipe: str, broken: list[str], stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(stream / "chunks" / "002.jsonl", -9)
    before = files_of(stream.parent)
    assert main([recipe, *broken, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert missing(told) == ["model", "data", "packages", "GPUs"]
    assert "model-00002-of-00002.safetensors. Get it again: " in told
    assert "002.jsonl was changed" in told
    assert "no-such-package (not installed). Get them: " in told
    assert "asks for 1, here are 0" in told
    assert files_of(stream.parent) == before


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_gpus_that_torch_cannot_use(
    broken: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", f"{graphics_driver(tmp_path, 1)}:/usr/bin:/bin")
    machine.gpus.cache_clear()
    assert main(["tiny", *broken, "--dry-run"]) == 0
    told = capsys.readouterr().out
    machine.gpus.cache_clear()
    assert missing(told) == ["model", "packages", "CUDA"]
    assert "it is a build without CUDA; torch 2." in told
    assert "driver 535.104.05" in told
