"""Fetches the JSON of a published data set from the Hugging Face hub; goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import DataError


def download(repository: str, folder: Path) -> None:
    """Fetch the JSON files of a data set repository into `folder`.

    Files that are there already and complete are not fetched again.

    Raises:
        DataError: the hub cannot be reached, or the data set is not open to this account.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    command = f"hf download {repository} --repo-type dataset --local-dir {folder}"
    try:
        # The JSON alone: images come from other sites, or (MLLM-CL) in large archives.
        snapshot_download(
            repository, repo_type="dataset", local_dir=folder, allow_patterns="*.json"
        )
    # Before OSError, which it is, too: here the hub did answer.
    except HfHubHTTPError as error:
        raise DataError(
            "download", f"{repository}: the hub refuses ({error}); log in? {command}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            "offline",
            f"{repository}: the hub cannot be reached ({reason}). On a machine with a network run "
            f"`{command}`, and copy the folder here; a started download goes on.",
        ) from error
