"""`push`: an export sent to the Hugging Face hub, or, dry, what would be sent."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from data_prep.files import sha256_file
from recipes.use.export import export
from recipes.use.finished_adapter import FinishedAdapter, UseError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def push(
    adapter: FinishedAdapter,
    repository: str,
    dry_run: bool = False,
    base_name: str | None = None,
    licence: str | None = None,
) -> list[str]:
    """Sends what `export` writes; returns lines that say what went, or would go.

    Args:
        adapter: a chunk's.
        repository: OWNER/NAME; a new one is private.
        dry_run: send nothing.
        base_name: how others get the base model.
        licence: of the base model.

    Raises:
        UseError: the name is wrong, the adapter cannot be exported, or the hub refused it.
    """
    if not _NAME.fullmatch(repository):
        raise UseError(f"push: found {repository!r}, expected OWNER/NAME")
    with tempfile.TemporaryDirectory(prefix="strlora-") as temporary:
        folder = Path(temporary) / "export"
        # Without its first line, which names the temporary folder.
        summary = export(adapter, folder, base_name=base_name, licence=licence)[1:]
        files = [
            f"  {file.name}  {file.stat().st_size:,} bytes  sha256 {sha256_file(file)}"
            for file in sorted(folder.iterdir())
        ]
        if dry_run:
            ending = "this was a dry run: nothing was sent"
            return [f"to {repository} would go:", *files, *summary, ending]
        address = _send(folder, repository, f"Chunk {adapter.chunk} of {adapter.recipe.name}")
    return [f"to {address} went:", *files, *summary]


def _send(folder: Path, repository: str, message: str) -> str:
    """Uploads a folder with the user's own login (`hf auth login`); returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, OSError) as error:
        text = f"the hub did not take {repository}: {error}; see `hf auth login`"
        raise UseError(text) from error
    return str(done)
