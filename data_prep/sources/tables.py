"""Tables -> rows: CSV, TSV, Parquet and Arrow, and folders of pictures named by their class."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from data_prep.errors import DataError
from data_prep.images import EXTENSIONS

MOST_BYTES = 64 << 20  # of one sample
_AT_ONCE = 64  # rows of a Parquet or Arrow file in memory; they may hold pictures
_SEPARATORS = ",;\t|"
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


def table_rows(
    open_text: Callable[[], IO[str]], tabs: bool
) -> Iterator[tuple[int, dict[str, str] | DataError]]:
    """Yield (line, row by column, empty cells left out) of a CSV or TSV file.

    A TSV file is read with quotes as in CSV; if that does not work out (a cell that only starts
    with a quote), all its quotes are text.

    Args:
        open_text: opens the file from its start.
        tabs: TSV.
    """
    # By default csv stops at cells of more than 128 KiB, such as pictures in base64.
    csv.field_size_limit(MOST_BYTES)
    if not tabs:
        yield from _rows(open_text, separator(open_text), csv.QUOTE_MINIMAL)
        return
    quoted = not any(isinstance(row, DataError) for _, row in _rows(open_text, "\t", 0))
    yield from _rows(open_text, "\t", csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def separator(open_text: Callable[[], IO[str]]) -> str:
    """Return what parts the cells of a CSV file: what gives most rows as many as its head.

    A comma counts first, and where none of them parts the head.
    """
    fitting = {mark: _fitting(open_text, mark) for mark in _SEPARATORS}
    return max(_SEPARATORS, key=fitting.__getitem__)


def _fitting(open_text: Callable[[], IO[str]], mark: str) -> int:
    """Return how many of the first rows have as many cells as the head; 0: it has only one."""
    widths: list[int] = []
    with open_text() as file, suppress(csv.Error):
        for row in islice(filter(None, csv.reader(file, delimiter=mark, strict=True)), 20):
            widths.append(len(row))
    return widths.count(widths[0]) if widths and widths[0] > 1 else 0


def _rows(
    open_text: Callable[[], IO[str]], delimiter: str, quoting: Any
) -> Iterator[tuple[int, dict[str, str] | DataError]]:
    with open_text() as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True, quoting=quoting)
        header: list[str] = []
        # Not a for loop: an error in the middle is told with the line at which its row begins.
        while True:
            number = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, DataError("csv", f"not CSV: {error}")
                return
            if not header:
                named = (name.strip() for name in row)
                header = [name or f"column_{i}" for i, name in enumerate(named, start=1)]
                if twice := sorted({name for name in header if header.count(name) > 1}):
                    text = f"the header names {twice[0]!r} twice: rename or remove one"
                    yield number, DataError("csv-header", text)
                    return
            elif any(row):  # spreadsheets end a table with rows of empty cells
                yield number, _row(header, row, delimiter)


def _row(header: list[str], row: list[str], mark: str) -> dict[str, str] | DataError:
    if len(row) != len(header):
        return DataError(
            "csv-columns",
            f"found {len(row)} cells, the header names {len(header)}: quote cells that hold "
            f"{mark!r}",
        )
    return {key: cell for key, cell in zip(header, row, strict=True) if cell != ""}


def class_folders(folder: Path) -> list[Path]:
    """Return the folders inside `folder` that hold pictures, each named by their class.

    Raises:
        DataError: their names are those of splits.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    classes = [path for path in inside if any(_pictures(path))]
    splits = [path for path in inside if path.name.lower() in _SPLITS]
    if not classes and any(map(class_folders, splits)):
        classes = splits
    if classes and all(path.name.lower() in _SPLITS for path in classes):
        names = ", ".join(path.name for path in classes)
        raise DataError(
            "splits",
            f"{folder}: holds splits ({names}), not classes: give the folder of one, such as "
            f"--source {classes[0]}, and the other as --test TASK=FOLDER",
        )
    return classes


def _pictures(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")


def read_class_folders(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, {"image", "label"}) of the pictures in folders that are named by class."""
    number = 0
    for of_class in class_folders(folder):
        for path in sorted(_pictures(of_class)):
            number += 1
            yield number, {"image": str(path.absolute()), "label": of_class.name}


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a Parquet file. Raises DataError for a damaged one."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _table(file.iter_batches(_AT_ONCE), file.schema_arrow)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError("parquet", f"{path}: damaged Parquet file ({error})") from error


def read_arrow(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a file that `save_to_disk` wrote. Raises DataError."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            # `datasets` saves a stream of batches; Feather is a file, which begins with this.
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
                yield from _table(batches, file.schema)
            else:
                source.seek(0)
                stream = pa.ipc.open_stream(source)
                yield from _table(stream, stream.schema)
    except (OSError, ValueError) as error:
        raise DataError("arrow", f"{path}: damaged Arrow file ({error})") from error


def _table(batches: Iterable[Any], schema: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of Arrow batches: without nulls, labels of `datasets` as their names."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})
    names = {key: kind["names"] for key, kind in features.items() if "names" in kind}
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _AT_ONCE):
            for row in batch.slice(start, _AT_ONCE).to_pylist():
                number += 1
                row = {key: value for key, value in row.items() if value is not None}
                # `datasets` writes -1 for a label that is not known: it stays a number.
                for key in names.keys() & row.keys():
                    row[key] = names[key][row[key]] if 0 <= row[key] < len(names[key]) else row[key]
                yield number, row
