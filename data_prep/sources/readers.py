"""Data files -> raw samples: JSON Lines, one JSON array, CSV, Parquet or Arrow; plain or gzip.

JSON and CSV are read here line by line and not with `datasets`, for three reasons: an error must
name its line; a JSON array must not be held in memory; and a CSV cell "NA" or "007" is text.
Parquet and Arrow are read with pyarrow (tables.py).
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_prep.errors import DataError, shown
from data_prep.sources.tables import (
    MOST_BYTES,
    class_folders,
    read_arrow,
    read_class_folders,
    read_parquet,
    table_rows,
)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# What `datasets` writes beside the samples of a folder.
_BESIDE = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
_BLOCK = 1 << 20
_JSON_CELLS = ("messages", "conversations", "images", "image", "size", "references", "answer_bbox")
_TOO_LONG = "a number of more than 4,300 digits; write it as text"  # Python's own limit
_BROKEN = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8
Item = tuple[int, Any]  # number of the line or sample; JSON text as bytes, an object, or DataError


def _constant(name: str) -> DataError:
    text = f"found {name}, which is not JSON; write null or leave it out"
    return DataError("json-constant", text)


def _refuse_constant(name: str) -> Any:
    raise _constant(name)


# Python takes NaN and Infinity for numbers, though JSON has neither.
DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def data_files(sources: list[Path]) -> list[Path]:
    """Return the data files among `sources`, folders searched (one level), in the order of names.

    Raises:
        DataError: a source that does not exist, or a folder without data files.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            _check_saved(source)
            inside = (p for p in source.iterdir() if p.is_file() and p.name not in _BESIDE)
            if data := sorted(p for p in inside if kind_of_name(p.name)):
                files += data
            elif class_folders(source):
                files.append(source)
            else:
                hint = f"expected {', '.join(SUFFIXES)}, or folders of pictures named by class"
                if deep := sorted(p for p in source.glob("*/*") if kind_of_name(p.name)):
                    hint = f"but there is {deep[0]}: give that folder, {deep[0].parent}"
                raise DataError("no-data", f"{source}: no data file; {hint}")
        elif not source.exists():
            raise DataError("no-data", f"{source}: no such file; check the path")
        else:
            files.append(source)
    return files


def _check_saved(folder: Path) -> None:
    """Raise DataError for what `save_to_disk` wrote: several splits, or not all of its files."""
    if (folder / "dataset_dict.json").is_file():
        names = sorted(p.parent.name for p in folder.glob("*/state.json"))
        raise DataError(
            "splits",
            f"{folder}: a folder of several splits ({', '.join(names)}) by save_to_disk: give the "
            f"folder of one, such as --source {folder / (names or ['train'])[0]}",
        )

    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no such folder
    if gone := [name for name in names if not (folder / name).is_file()]:
        raise DataError(
            "no-data",
            f"{folder}: {len(gone)} of {len(names)} files that its state.json names are missing, "
            f"{gone[0]} first: copy the whole folder",
        )


def kind_of_name(name: str) -> str | None:
    """Return the suffix of a data file's name (".jsonl", ...), None for any other file."""
    plain = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), None)


def place(path: Path | str, number: int) -> str:
    """Return the place of sample `number` of a file: "f.jsonl:12" or "f.json: sample 12"."""
    lines = kind_of_name(str(path)) in (None, ".jsonl", ".ndjson", ".csv", ".tsv")
    return f"{path}:{number}" if lines else f"{path}: sample {number}"


def read_items(path: Path) -> Iterator[Item]:
    """Yield (number, raw) of every sample; what cannot be read comes as a `DataError` in its place.

    JSON Lines come as the bytes of the line (see `parse`), everything else as objects. Blank lines
    are skipped; a byte order mark and CRLF are taken off.

    Raises:
        DataError: the whole file cannot be read (missing, empty, compressed otherwise, UTF-16).
    """
    if path.is_dir() and class_folders(path):
        yield from read_class_folders(path)
        return
    readers = {"parquet": read_parquet, "arrow": read_arrow, "csv": _csv, "array": _array}
    try:
        yield from readers.get(_kind(path), _lines)(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "gzip-damaged", f"{path}: damaged gzip file ({error}); fetch or compress it again"
        ) from error


def read_all(path: Path) -> Iterator[tuple[int, Any]]:
    """Like `read_items`, with JSON Lines parsed too."""
    for number, raw in read_items(path):
        yield number, parse(raw)


def parse(raw: Any) -> Any:
    """Return the object of one item of `read_items`, or a `DataError` that says what is wrong."""
    if not isinstance(raw, bytes):
        return raw
    try:
        return DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = raw[error.start : error.start + 1]
        return DataError(
            "encoding",
            f"not UTF-8: byte {byte!r} at position {error.start + 1} of the line; "
            "save the file as UTF-8",
        )
    except json.JSONDecodeError as error:
        return DataError("json", _json_text(error, raw.decode("utf-8")))
    except DataError as refused:
        return refused
    except RecursionError:
        return DataError("json-depth", "nested too deep; expected a flat JSON object")
    except ValueError:
        return DataError("json", _TOO_LONG)


def _json_text(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Extra data" and text.lstrip()[:1] == "{":
        hint = "one line must hold one sample: put a line end between the objects"
    elif text.lstrip()[:1] == "{" and not text.rstrip().endswith("}"):
        hint = "the line ends inside the sample: a sample must not be spread over several lines"
    else:
        hint = 'expected a sample such as {"messages": [...], "images": [...]}'
    around = shown(text[max(0, error.pos - 10) : error.pos + 30])
    return f"not JSON: {error.msg} at column {error.colno}, near {around}; {hint}"


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb", buffering=_BLOCK)  # type: ignore[return-value]


def _kind(path: Path) -> str:
    """Return parquet, csv, array or lines, by the first bytes. Raises DataError."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError("no-data", f"{path}: {what}; expected a data file")
    if path.suffix.lower() in (".xlsx", ".xlsm", ".xls", ".ods"):
        raise DataError("spreadsheet", f"{path}: a spreadsheet; save it as CSV, in UTF-8")
    with path.open("rb") as raw:
        magic = raw.read(8)
    if magic[:4] == b"PAR1":
        return "parquet"
    if magic[:6] == b"ARROW1" or magic[:4] == b"\xff" * 4:  # a file, or a stream of batches
        return "arrow"
    if magic[:4] in (b"PK\x03\x04", b"\x28\xb5\x2f\xfd") or magic[:3] in (b"BZh", b"\xfd7z"):
        raise DataError("compressed", f"{path}: an archive; unpack it (only gzip is read directly)")
    with _open(path) as file:
        head = file.read(_BLOCK)
    if head[:4] == b"FEA1":
        raise DataError("compressed", f"{path}: Feather of version 1; write it as Parquet")
    if head[:4] in (b"PAR1", b"ARRO", b"\xff" * 4):
        raise DataError("compressed", f"{path}: Parquet or Arrow inside gzip; unpack it")
    # UTF-16 without its mark: of Latin text every second byte is zero.
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:200].count(0) > 20:
        raise DataError("encoding", f"{path}: UTF-16 or binary; save the file as UTF-8 text")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not start or b"".join(start[:99].split()) == b"[]":
        raise DataError("empty-file", f"{path}: no samples in it; expected at least one")
    if kind_of_name(path.name) == ".parquet":
        raise DataError("parquet", f"{path}: not a Parquet file, it begins with {shown(head[:12])}")
    if kind_of_name(path.name) in (".csv", ".tsv"):
        return "csv"
    _refuse_one_object(path, start)
    return "array" if start[:1] == b"[" else "lines"


def _refuse_one_object(path: Path, start: bytes) -> None:
    """Raise DataError for a file that is one JSON object over many lines: one error, not many."""
    first = start.split(b"\n", 1)[0].strip()
    if path.name in _BESIDE:
        raise DataError(
            "metadata", f"{path}: describes a dataset and holds no samples: give its folder"
        )
    if first == b"{" or re.fullmatch(rb'\{\s*"(?:data|train|rows|annotations)":\s*\[', first):
        raise DataError(
            "json",
            f"{path}: one JSON object over several lines; expected a sample a line, or one array: "
            "write the list of samples alone",
        )


def _lines(path: Path) -> Iterator[Item]:
    number = 0
    with _open(path) as file:
        # Bounded, so that a file without line ends is not read into memory whole.
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > MOST_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_BLOCK)
                text = f"a line of more than {MOST_BYTES >> 20} MiB; split it"
                yield number, DataError("line-too-long", text)
            elif line := line.strip():
                yield number, line


def _array(path: Path) -> Iterator[Item]:
    """Yield the elements of one JSON array, a block of the file at a time."""
    with _open(path) as file:
        window = _Window(_text(file))
        window.peek()
        window.at += 1  # the bracket
        yield from _elements(window)


def _text(file: IO[bytes]) -> IO[str]:
    """Return the file as text; bytes that are not UTF-8 are found later, where they stand."""
    # newline="" as csv asks for: line ends inside its cells stay what they are.
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _not_utf8(text: str) -> DataError | None:
    broken = _BROKEN.search(text)
    if broken is None:
        return None
    byte = broken.group().encode(errors="surrogateescape")
    return DataError("encoding", f"not UTF-8: byte {byte!r}; save the file as UTF-8")


class _Window:
    """The part of a text file that is being read."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.text, self.at, self.line = file, "", 0, 1

    def more(self) -> bool:
        """Drop what was read, read another block; return False at the end of the file."""
        # As much again as is left: a long sample is not parsed anew for every block of it.
        block = self.file.read(max(_BLOCK, len(self.text) - self.at))
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def peek(self) -> str:
        """Return the next character that is not a blank, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def line_of(self, position: int) -> int:
        return self.line + self.text.count("\n", 0, position)


def _elements(window: _Window) -> Iterator[Item]:
    number = 0
    while (mark := window.peek()) != "]":
        number += 1
        if number > 1:
            if mark != ",":
                text = f"the file ends after sample {number - 1} without ']'; it is incomplete"
                if mark:
                    rest = shown(window.text[window.at : window.at + 20])
                    line = window.line_of(window.at)
                    text = f"expected ',' or ']' before line {line}, found {rest}"
                yield number, DataError("json", text)
                return
            window.at += 1
            if window.peek() == "]":
                yield number, DataError("json", "a comma before the closing bracket; remove it")
                return
        value = _next_value(window)
        yield number, value
        # After broken JSON nobody can say where the next sample begins.
        if isinstance(value, DataError) and value.code not in ("json-constant", "encoding"):
            return
    window.at += 1
    if rest := window.peek():
        yield number + 1, DataError("json", f"text after the array: {rest!r}; expected its end")


def _next_value(window: _Window) -> Any:
    window.peek()
    # NaN and Infinity make one element bad, and not the file: they are read, and then refused.
    constants: list[str] = []
    decoder = json.JSONDecoder(parse_constant=constants.append)
    while True:
        constants.clear()
        try:
            value, end = decoder.raw_decode(window.text, window.at)
            start, window.at = window.at, end
            if constants:
                return _constant(constants[0])
            return _not_utf8(window.text[start:end]) or value
        except json.JSONDecodeError as error:
            # The block may end inside this value: then the error is a cut number, literal or
            # escape, or a string without its end.
            near_end = error.pos > len(window.text) - 12 or error.msg.startswith("Unterminated")
            if not near_end or len(window.text) - window.at > MOST_BYTES or not window.more():
                line = window.line_of(error.pos)
                around = shown(window.text[max(0, error.pos - 10) : error.pos + 30])
                return DataError("json", f"not JSON: {error.msg} in line {line}, near {around}")
        except RecursionError:
            return DataError("json-depth", "nested too deep; expected a flat JSON object")
        except ValueError:
            return DataError("json", _TOO_LONG)


def _csv(path: Path) -> Iterator[Item]:
    """Yield the rows; JSON in the cells of known columns is read."""
    tabs = kind_of_name(path.name) == ".tsv"
    for number, row in table_rows(lambda: _text(_open(path)), tabs):
        if isinstance(row, DataError):
            yield number, row
            continue
        yield number, _not_utf8("".join(row.values())) or _row(row)


def _row(sample: dict[str, Any]) -> Any:
    # Not in every column: a question or an answer may begin with a bracket.
    for key in _JSON_CELLS:
        if sample.get(key, "").lstrip()[:1] in ("[", "{"):
            value = parse(sample[key].encode())
            if isinstance(value, DataError):
                return DataError("csv-json", f"column {key!r}: {value}")
            sample[key] = value
    return sample
