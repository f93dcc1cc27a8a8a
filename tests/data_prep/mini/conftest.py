"""Fixtures: loaded tasks and a small stream, made once a session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.mini.assets import Assets
from data_prep.mini.mini_stream import write_mini_stream
from data_prep.mini.tasks import TASKS, Task, load_task


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    """Return every task with its data read."""
    assets = Assets()
    return {name: load_task(name, assets) for name in TASKS}


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished `smoke` stream (read only: copy it before changing it)."""
    folder = tmp_path_factory.mktemp("stream") / "smoke"
    assert write_mini_stream(folder, "smoke", seed=0, workers=1)
    return folder


@pytest.fixture(scope="session")
def manifest(smoke: Path) -> dict:
    """Return the content of the smoke stream's stream.json."""
    return json.loads((smoke / "stream.json").read_text())
