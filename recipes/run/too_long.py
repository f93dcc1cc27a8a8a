"""Training samples of more than `model.max_length` tokens: which they are, by file, line and id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.check.lengths import LongSample
from data_prep.files import numbered_jsonl, read_jsonl, write_jsonl


def name_samples(path: Path, files: Sequence[Path], max_length: int) -> list[LongSample]:
    """Turns what the host's processes noted into named samples, each once, and returns them.

    Done again it changes nothing: lines that are named already stay.
    """
    if not path.is_file():
        return []
    noted = read_jsonl(path, torn_tail=True)
    named = {(row["file"], row["line"]): row for row in noted if "file" in row}
    places = [
        (str(file), line, record.get("id"))
        for file in files
        for line, record in numbered_jsonl(file)
    ]
    for row in noted:
        if "file" in row or row["of"] != len(places):  # EWC reads the chunk's own samples once more
            continue
        file, line, name = places[row["row"]]
        named[file, line] = {"file": file, "line": line, "id": name, "tokens": row["tokens"],
                             "max_length": max_length, "done": row["done"]}  # fmt: skip
    samples = [LongSample(**named[place]) for place in sorted(named)]  # type: ignore[typeddict-item]
    write_jsonl(path, samples)
    return samples


def text_of(sample: LongSample) -> str:
    """The sample in words."""
    return (
        f"{sample['file']}:{sample['line']} (id {sample['id']}) has {sample['tokens']} tokens, "
        f"model.max_length is {sample['max_length']}"
    )
