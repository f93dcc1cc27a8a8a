"""What the commands that write a stream have in common: options, messages, exit codes."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, expect_utf8, listing, shown
from data_prep.files import sha256_file, sha256_folder
from data_prep.progress_bar import Progress
from data_prep.published.benchmarks import SCORERS
from data_prep.published.download import download
from data_prep.sources.converting import Limit
from data_prep.stream import MANIFEST, StreamError, read_manifest
from data_prep.stream_writer import LEFT_OUT, BadSamples, Plan, Report, WrittenFile, write_stream

# Writes a plan into a folder, with so many processes; returns what was made, None: it was there.
Write = Callable[[Path, Plan, int | None, Report | None], list[WrittenFile] | None]
OK, FAILED, UNUSABLE = 0, 1, 2  # unusable: options or sources that no run can start with


def add_append(parser: argparse.ArgumentParser) -> None:
    """Add --append; only for commands that hand it to `data_prep.append`."""
    text = "add the source to this stream, after what is there; see data_prep/README.md"
    parser.add_argument("--append", type=Path, metavar="STREAM", help=text)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add --out, --seed, --skip-bad and --workers."""
    parser.add_argument("--out", type=Path, help="stream folder to write")
    parser.add_argument("--seed", type=seed, default=0, help="of everything random; below 2**32")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad samples out and list them; else refuse"
    )
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")


def add_limit(parser: argparse.ArgumentParser, of: str) -> None:
    """Add --limit; `of` says what has at most so many samples."""
    text = f"a quick subset: at most N samples {of}, tasks and answers in their shares"
    parser.add_argument("--limit", type=int, metavar="N", help=text)


def limit_of(args: argparse.Namespace) -> Limit | None:
    """Return what --limit and --seed ask for."""
    return None if args.limit is None else Limit(args.limit, args.seed)


def limit_setting(args: argparse.Namespace) -> dict[str, int]:
    """Return the entry for --limit in the settings of a stream: none where nothing is limited."""
    return {} if args.limit is None else {"limit": args.limit}


def seed(text: str) -> int:
    """The option --seed: a number that every generator takes. ValueError for another."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**32 - 1")
    return number


def source_facts(path: Path) -> dict[str, Any]:
    """Return name, size and hash of an input, by which a rerun knows it again. Raises DataError.

    A folder of pictures has the names and bytes of all.
    """
    expect_utf8(path)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        for file in files:
            expect_utf8(file)
        size = sum(file.stat().st_size for file in files)
        return {"name": path.name, "bytes": size, "sha256": sha256_folder(path)}
    if not path.is_file():
        raise DataError("no-data", f"{path}: no such file; check the path")
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def expect_folder(path: Path, what: str, how: str) -> None:
    """Raise DataError unless `path` is a folder; `how` is the advice in the message."""
    if not path.is_dir():
        raise DataError("no-data", f"{what} {shown(str(path))}: no such folder. {how}")


def fetch(repository: str, folder: Path, note: str) -> int:
    """Download the JSON of a published benchmark into `folder`; return the exit code.

    `note` is added to the message of success.
    """
    try:
        download(repository, folder)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    print(f"{folder}: the JSON of {repository} is there{note}")
    return OK


def run_plan(
    args: argparse.Namespace,
    plan: Callable[[], Plan],
    report: Callable[[list[WrittenFile]], None] | None = None,
    write: Write = write_stream,
    left_out: str = LEFT_OUT,
) -> int:
    """Write the stream that `plan` returns and print what was made; return the exit code.

    Args:
        args: with the options of `add_common`.
        plan: makes the plan; DataError and StreamError that it raises become messages.
        report: prints more about what was made.
        write: writes the stream, or appends to one.
        left_out: the file in it that lists the samples which this call leaves out.
    """
    started = time.monotonic()
    try:
        # Each command has some of these options; one check serves all of them.
        for key in ("size", "chunks", "limit"):
            value = getattr(args, key, None)
            if value is not None and value < 1:
                raise StreamError(f"--{key} {value}: expected at least 1")
        expect_utf8(args.out.resolve())
        planned = plan()
        made = write(args.out, planned, args.workers, Progress("writing", "files"))
    except BadSamples as error:
        count = len(error.problems)
        print(
            f"{listing(error.problems, of_a_kind=5)}{error.note}\n"
            f"error: {count} bad sample{'s' * (count > 1)}, nothing was written. Correct the "
            "source, or leave them out with --skip-bad.",
            file=sys.stderr,
        )
        return FAILED
    except (DataError, StreamError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    seconds = time.monotonic() - started
    if made is None:
        print(f"{args.out}: complete, nothing to do ({seconds:.1f} s)")
        return OK
    if report:
        report(made)
    _print_made(args.out, made, seconds, "" if write is write_stream else "added ", left_out)
    return OK


def _print_made(
    folder: Path, made: list[WrittenFile], seconds: float, added: str, left_out: str
) -> None:
    chunks = [item for item in made if item.file.startswith("chunks/")]
    tests = [item for item in made if not item.file.startswith("chunks/")]
    trained, tested = (sum(item.samples for item in part) for part in (chunks, tests))
    print(
        f"{folder}: {added}{len(chunks)} chunks with {trained} samples, {len(tests)} test sets "
        f"with {tested} ({seconds:.1f} s)"
    )
    if (folder / left_out).exists():
        count = sum(1 for _ in (folder / left_out).open("rb"))
        print(f"{folder / left_out}: {count} bad samples were left out; the file says why")
    if not read_manifest(folder / MANIFEST)["tasks"]:
        print("no test set: evaluation needs one, see the options for test sets in --help")
    print(f"next: python -m data_prep.check {shlex.quote(str(folder))}")


def pairs(values: list[str], option: str) -> dict[str, str]:
    """Return the NAME=FILE values of an option. Raises StreamError for anything else."""
    values_by_name: dict[str, str] = {}
    for value in values:
        key, mark, rest = value.partition("=")
        if not mark or not key or not rest:
            raise StreamError(f"{option} {value}: expected NAME=FILE")
        if key in values_by_name:
            raise StreamError(f"{option} {key}: given twice")
        values_by_name[key] = rest
    return values_by_name


def scorers_of(values: list[str], known: dict[str, str] | None = None) -> dict[str, str]:
    """Return scorer by task from [NAME=]SCORER values; "" is for all tasks without their own.

    Raises StreamError for an unknown scorer.
    """
    scorers = {"": "exact", **(known or {})}
    for value in values:
        # Without "=" rpartition leaves the task empty, and "" is the key for all other tasks.
        task, _, name = value.rpartition("=")
        if name not in SCORERS:
            raise StreamError(f"--scorer {value}: expected one of {', '.join(SCORERS)}")
        scorers[task] = name
    return scorers
