"""No row of a training file is lost on its way through the host's preprocessor.

A row that the host would leave out without a word (no turns, say) stops the run, and so does one
that it cannot read; both are named by their ids, which its own messages do not hold.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from swift.dataset.preprocessor.core import RowPreprocessor

from strlora_tuner import host_api

preprocess_by_host = RowPreprocessor.batched_preprocess


@wraps(preprocess_by_host)
def preprocess_all(self: Any, batched_row: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Takes the place of the host's function that turns a batch of rows into its form.

    Raises:
        ValueError: rows were left out, or one cannot be read.
    """
    ids, count = batched_row.get("id"), _length(batched_row)
    error: Exception | None = None
    try:
        made = preprocess_by_host(self, batched_row, **options)
        if not options.get("strict") or _length(made) == count:
            return made
    except Exception as found:
        if not options.get("strict"):
            raise
        error = found
    # One by one only now, when something is wrong: the host hands over a thousand rows at a time.
    lost = [at for at in range(count) if not _is_kept(self, batched_row, at, options)]
    named = ", ".join(str(ids[at] if ids else f"row {at + 1} of its batch") for at in lost[:10])
    why = f"cannot be read: {error}" if error else "would be left out: it has no turns"
    raise ValueError(
        f"{len(lost)} training samples (id {named}): the first {why}; look at them with "
        "python -m data_prep.check, or leave them out with its --fix"
    ) from error


def _length(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))


def _is_kept(self: Any, batch: dict[str, Any], at: int, options: dict[str, Any]) -> bool:
    try:
        row = {key: values[at : at + 1] for key, values in batch.items()}
        return _length(preprocess_by_host(self, row, **options)) == 1
    except Exception:  # noqa: BLE001 - whatever it is, the first of them was caught above
        return False


host_api.replace(
    "swift.dataset.preprocessor.core:RowPreprocessor.batched_preprocess", preprocess_all
)
