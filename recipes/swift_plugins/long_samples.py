"""What the host does with a training sample of more than `--max_length` tokens.

By itself it would stop, naming no sample, or (not `--strict`) take another at random. With this the
environment says what: `skip` takes the next sample of the data in its place, whichever process asks
for it; `cut` leaves out the end, or skips where nothing of the answer would be left; `stop` stops.
Each such sample is written down.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from swift.template.base import MaxLengthError

from strlora_tuner import host_api
from strlora_tuner.options import TOO_LONG, TOO_LONG_FILE

_IGNORED = -100  # the label of a token that is not learnt


def take(dataset: Any, index: int | str) -> Any:
    """Takes the place of `LazyLLMDataset.__getitem__`; returns an encoded sample."""
    policy = os.environ.get(TOO_LONG)
    # A text is the name of a column, which the host reads whole.
    if policy is None or isinstance(index, str):
        return host_take(dataset, index)
    count = len(dataset.dataset)
    for further in range(count):
        row = (index + further) % count
        try:
            return dataset.encode_func(dataset.dataset[row], return_length=True)
        except MaxLengthError as error:
            left = _cut(dataset, row) if policy == "cut" else None
            _note(row, count, str(error), policy if policy != "cut" or left else "skip")
            if policy == "stop":
                raise
            if left is not None:
                return left
    raise ValueError(f"all {count} samples have more tokens than max_length: make it larger")


def _cut(dataset: Any, row: int) -> dict[str, Any] | None:
    """The sample without its end; None where no token of the answer is left to learn."""
    # For this sample alone: the others must go on raising, so that each is noted.
    template = dataset.encode_func.__self__
    before, template.truncation_strategy = template.truncation_strategy, "right"
    try:
        sample: dict[str, Any] = dataset.encode_func(dataset.dataset[row], return_length=True)
    finally:
        template.truncation_strategy = before
    learnt = any(label != _IGNORED for label in sample["labels"])
    return sample if learnt and len(sample["input_ids"]) <= template.max_length else None


def _note(row: int, count: int, text: str, done: str) -> None:
    """Appends one line, in one write: several processes do so. `of` tells the data apart."""
    tokens = re.search(r"\d+", text)
    entry = {"row": row, "of": count, "tokens": int(tokens[0]) if tokens else None, "done": done}
    path = os.environ[TOO_LONG_FILE]
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(handle)


host_take = host_api.replace("swift.dataset.utils:LazyLLMDataset.__getitem__", take)
