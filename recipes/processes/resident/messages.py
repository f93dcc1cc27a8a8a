"""The messages between the orchestrator and the resident worker: JSON lines through pipes."""

from __future__ import annotations

from typing import TypedDict


class Request(TypedDict):
    """A host command to run; `processes` is None where torchrun would not be used."""

    kind: str
    arguments: list[str]
    environment: dict[str, str]
    log: str
    processes: int | None


class Reply(TypedDict, total=False):
    """`pid` when a job starts, `code` when it ends; empty when the worker is gone."""

    pid: int
    code: int


class Missing(TypedDict):
    """What a job had to import and load itself: names of modules, keys of base models."""

    modules: list[str]
    models: list[str]
