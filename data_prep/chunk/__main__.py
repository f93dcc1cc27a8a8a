"""Cut any data into a stream: `python -m data_prep.chunk --source data.jsonl --out data/mine`.

Reads JSON Lines, JSON arrays, CSV and Parquet (also gzip) in the host's, LLaVA's or ShareGPT's
form, or with columns such as question and answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.append import Before, append_stream, parsed, write_or_append
from data_prep.chunk import GENERATOR, VERSION
from data_prep.chunk.batches import Options
from data_prep.chunk.boundaries import ChunkBoundaries, contents, make
from data_prep.chunk.columns import ColumnNames
from data_prep.chunk.first_pass import FirstPass
from data_prep.chunk.periods import Period
from data_prep.chunk.times import EPOCHS
from data_prep.command_line import add_append, add_common, pairs, scorers_of, source_facts
from data_prep.errors import expect_utf8
from data_prep.parallel import cores
from data_prep.progress_bar import Progress
from data_prep.published.benchmarks import SCORERS
from data_prep.sources.image_paths import EMBEDDED, ImageResolver
from data_prep.sources.readers import data_files
from data_prep.sources.test_sets import check_task_name
from data_prep.stream import StreamError
from data_prep.stream_writer import PARTIAL, Contents, Plan, WrittenFile

# Options that came later: a stream made without them does not name them.
_IF_GIVEN = ("epoch", "image_column", "question_column", "answer_column", "question")
_ALWAYS = ("by", "size", "column", "every", "task", "task_column", "holdout", "no_shuffle")
_TAKEN_OVER = _ALWAYS + _IF_GIVEN  # by a batch from what the stream was made with


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(prog="python -m data_prep.chunk", description=__doc__)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("--source", type=Path, nargs="+", required=True, help="data files or folders")
    out.add_argument("--images", type=Path, help="folder of the images (default: of the source)")
    out.add_argument("--by", choices=("count", "time", "column"), default="count")
    out.add_argument("--size", type=int, help="most samples in a chunk (by count: 2000)")
    out.add_argument("--column", help='by time or column: its name, also "meta.date"')
    out.add_argument("--every", help="by time: a chunk's length: 12h, 7d, 4w; 1mo, 1q, 1y")
    out.add_argument("--epoch", choices=EPOCHS, help="by time: numbers are these since 1970")
    out.add_argument("--no-shuffle", action="store_true", help="keep the order inside chunks")
    out.add_argument("--image-column", help="column of the picture's path (default: found)")
    out.add_argument("--question-column", help="column of the question (default: found)")
    out.add_argument("--answer-column", help="column of the answer (default: found)")
    out.add_argument("--question", metavar="TEXT", help="one question, asked of every picture")
    out.add_argument("--task", help="task of samples that name none (default: name of --out)")
    out.add_argument("--task-column", help='column that names the task (default: "task")')
    out.add_argument(
        "--holdout",
        type=float,
        default=0.0,
        help="share kept for testing, by image; with --by time a test set for each period",
    )
    out.add_argument("--test", action="append", default=[], metavar="TASK=FILE", help="a test set")
    out.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="[TASK=]NAME",
        help=f"scorer of the test sets (default: exact): {', '.join(SCORERS)}",
    )
    add_common(out)
    add_append(out)
    return out


def main(argv: list[str] | None = None) -> int:
    """Write the stream; return the exit code."""
    return write_or_append(parser(), argv, GENERATOR, _TAKEN_OVER, _plan)


def append_source(
    stream: Path,
    source: Path,
    images: Path | None,
    facts: dict[str, Any],
    unchanged: Callable[[], None],
    skip_bad: bool = False,
    workers: int | None = None,
) -> list[WrittenFile] | None:
    """Append a file or folder to a stream, checked, with the options that the stream was made with.

    Args:
        stream: the stream's folder.
        source: what to append.
        images: folder of its pictures; None: where those of the stream are.
        facts: what else the batch's settings in the manifest record.
        unchanged: raises DataError where the source changed while it was read.
        skip_bad: leave samples out that cannot be read; else the source is refused.
        workers: processes; None takes all cores.

    Returns:
        What was made; None where the source was appended before.

    Raises:
        BadSamples, DataError, StreamError: the source is refused; the stream is as it was.
    """
    words = ["--append", str(stream), "--source", str(source)]
    words += ["--images", str(images)] if images else []
    words += ["--skip-bad"] if skip_bad else []
    words += ["--workers", str(workers)] if workers else []
    args, before = parsed(parser(), words, GENERATOR, _TAKEN_OVER)
    plan = _plan(args, before)
    plan.generator["settings"].update(facts)
    plan = replace(plan, review=lambda made: unchanged())
    return append_stream(stream, plan, workers, Progress("writing", "files"), checked=True)


def _one_file(path: Path) -> Path:
    """Return the data file that `path` is, or the only one of a folder."""
    if not path.is_dir():
        return path
    files = data_files([path])
    if len(files) > 1:
        text = f"--test {path}: {len(files)} data files ({files[0].name}, ...); write them as one"
        raise StreamError(text)
    return files[0]


def _plan(args: argparse.Namespace, before: Before) -> Plan:
    if args.question and args.question_column:
        raise StreamError("--question and --question-column: give one of them")
    boundaries = _boundaries(args)
    sources = data_files(args.source)
    tests = {task: _one_file(Path(path)) for task, path in pairs(args.test, "--test").items()}
    scorers = scorers_of(args.scorer)
    for task in tests:
        check_task_name(task)
    if not 0 <= args.holdout < 1:
        raise StreamError(f"--holdout {args.holdout}: expected a share from 0 to below 1")
    first = sources[0]
    root = args.images or Path(before.settings.get("images", ""))
    if args.images is None and not before.settings:
        root = first if first.is_dir() else first.parent
    root = root.resolve()
    if not root.is_dir():
        raise StreamError(f"--images {root}: no such folder")
    expect_utf8(root)
    settings = {
        "sources": [source_facts(path) for path in sources],
        "tests": {task: source_facts(path) for task, path in tests.items()},
        "images": str(root),
        "scorers": scorers,
        **{k: getattr(args, k) for k in ("by", "size", "column", "every", "task", "task_column")},
        **{k: getattr(args, k) for k in ("holdout", "skip_bad", "no_shuffle")},
    }
    settings |= {key: value for key in _IF_GIVEN if (value := getattr(args, key)) is not None}
    if args.by == "time" and args.holdout:
        settings["tests"] = "by period"
    options = Options(
        args.by,
        args.column,
        args.task or before.name,
        args.task_column,
        args.holdout,
        args.seed,
        before.id_prefix,
        ImageResolver(root, embed=before.place / PARTIAL / EMBEDDED, link=before.link(root)),
        args.epoch,
        ColumnNames(args.image_column, args.question_column, args.answer_column, args.question),
        args.images is not None,
    )
    workers = args.workers or cores()

    def all_of(staging: Path) -> Contents:
        first_pass = FirstPass(staging / "first_pass", sources, options, args.skip_bad)
        first_pass.run(workers, Progress("reading"))
        return contents(first_pass, boundaries, tests, scorers, before)

    generator = {"name": GENERATOR, "version": VERSION, "settings": settings}
    return Plan(before.name, generator, args.seed, all_of, make, args.skip_bad)


def _boundaries(args: argparse.Namespace) -> ChunkBoundaries:
    """Return where chunks end. Raises StreamError for options that do not go together."""
    if args.by == "count":
        if args.column or args.every:
            raise StreamError("--column and --every go with --by time or --by column")
        return ChunkBoundaries(args.size or 2000, None, not args.no_shuffle)
    if not args.column:
        raise StreamError(f"--by {args.by} needs --column NAME")
    if args.by == "time" and not (args.every or args.size):
        raise StreamError("--by time needs --every (such as 7d) or --size")
    if args.epoch and args.by != "time":
        raise StreamError("--epoch goes with --by time")
    if args.by == "column" and args.every:
        raise StreamError("--every goes with --by time")
    period = Period.read(args.every) if args.every else None
    return ChunkBoundaries(args.size, period, not args.no_shuffle)


if __name__ == "__main__":
    sys.exit(main())
