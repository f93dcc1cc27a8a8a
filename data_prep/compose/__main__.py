"""Compose a stream from files of single tasks.

    python -m data_prep.compose --source DIR --mixture strcvit --size 2000 --out data/mine
    python -m data_prep.compose --task a=a.jsonl --task b=b.json --dirichlet 0.3 --chunks 10 \\
        --size 500 --test a=a_test.jsonl --out data/mine

DIR holds <task>.jsonl to train on and test/<task>.jsonl to evaluate with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.append import Before, write_or_append
from data_prep.command_line import add_append, add_common, pairs, scorers_of, source_facts
from data_prep.compose import GENERATOR, VERSION
from data_prep.compose.chunk_counts import (
    check_enough,
    drawn,
    from_file,
    from_strcvit,
    without_return,
)
from data_prep.compose.pools import Counts, chunk_files, make, make_pools
from data_prep.errors import DataError, expect_utf8
from data_prep.parallel import cores
from data_prep.published.benchmarks import CHUNK_SAMPLES, STRCVIT
from data_prep.sources.image_paths import EMBEDDED, ImageResolver
from data_prep.sources.readers import data_files
from data_prep.sources.test_sets import planned_tests
from data_prep.stream import StreamError
from data_prep.stream_writer import PARTIAL, Contents, Plan

# What a stream was made with and a batch is made with, too, where no option says otherwise.
_TAKEN_OVER = ("dirichlet", "size", "only_present", "repeat")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(prog="python -m data_prep.compose", description=__doc__)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("--source", type=Path, help="folder with <task>.jsonl and test/<task>.jsonl")
    out.add_argument("--task", action="append", default=[], metavar="NAME=FILE")
    out.add_argument("--test", action="append", default=[], metavar="NAME=FILE")
    out.add_argument("--scorer", action="append", default=[], metavar="[NAME=]SCORER")
    out.add_argument("--images", type=Path, help="folder of the images (default: of the source)")
    how = out.add_mutually_exclusive_group()
    how.add_argument("--mixture", help='a JSON file, or "strcvit" for the published mixture')
    how.add_argument("--dirichlet", type=float, metavar="ALPHA", help="draw the shares")
    out.add_argument("--chunks", type=int, help="with --dirichlet: how many")
    out.add_argument("--size", type=int, help="samples of a chunk")
    out.add_argument("--no-recurrence", action="store_true", help="a task never comes back")
    out.add_argument("--only-present", action="store_true", help="leave out tasks without a file")
    out.add_argument("--repeat", action="store_true", help="use samples again when they run out")
    add_common(out)
    add_append(out)
    return out


def main(argv: list[str] | None = None) -> int:
    """Write the stream; return the exit code."""
    return write_or_append(parser(), argv, GENERATOR, _TAKEN_OVER, _plan)


def _plan(args: argparse.Namespace, before: Before) -> Plan:
    _check_options(args)
    train, tests = _files(args)
    scorers = scorers_of(args.scorer, {name: task.scorer for name, task in STRCVIT.items()})
    first = next(iter(train.values()))
    root = (args.images or args.source or first.parent).resolve()
    expect_utf8(root)
    # Pictures inside samples go to the staging folder: a refused source leaves nothing behind.
    resolver = ImageResolver(root, embed=before.place / PARTIAL / EMBEDDED, link=before.link(root))
    mixture = args.mixture
    if mixture not in (None, "strcvit"):
        mixture = source_facts(Path(mixture))
    settings = {
        "train": {task: source_facts(path) for task, path in train.items()},
        "test": {task: source_facts(path) for task, path in tests.items()},
        "images": str(root),
        "scorers": args.scorer,
        "mixture": mixture,
        **{key: getattr(args, key) for key in ("dirichlet", "chunks", "size", "no_recurrence")},
        **{key: getattr(args, key) for key in ("only_present", "repeat", "skip_bad")},
    }

    def contents(staging: Path) -> Contents:
        everywhere = dict.fromkeys(train, resolver)
        workers = args.workers or cores()
        folder, prefix = staging / "pools", before.id_prefix
        pools = make_pools(folder, train, everywhere, args.skip_bad, workers, prefix)
        counts = plan_counts(args, {task: pool.samples for task, pool in pools.items()})
        chunks = chunk_files(pools, counts, args.seed, before.chunks)
        problems = tuple(problem for pool in pools.values() for problem in pool.problems)
        first = before.chunks + 1
        test, chosen = planned_tests(tests, resolver, scorers, before.test_name, first)
        links = {resolver.link: str(root)}
        return Contents(chunks + test, chosen, links, (EMBEDDED,), problems=problems)

    generator = {"name": GENERATOR, "version": VERSION, "settings": settings}
    return Plan(before.name, generator, args.seed, contents, make, args.skip_bad)


def _check_options(args: argparse.Namespace) -> None:
    """Raise StreamError for options that do not go together."""
    if args.mixture is None and args.dirichlet is None:
        raise StreamError(
            "give --mixture or --dirichlet: how many samples of each task a chunk has"
        )
    if args.dirichlet is not None and not 0 < args.dirichlet < 1e6:
        raise StreamError(f"--dirichlet {args.dirichlet}: expected a number above 0")
    if args.dirichlet is not None and not args.chunks:
        raise StreamError("--dirichlet needs --chunks")
    if args.mixture and (args.chunks or args.no_recurrence):
        raise StreamError("--chunks and --no-recurrence go with --dirichlet: a mixture states both")


def _files(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return training and test file by task. Raises DataError or StreamError."""
    train = {task: Path(file) for task, file in pairs(args.task, "--task").items()}
    tests = {task: Path(file) for task, file in pairs(args.test, "--test").items()}
    if args.source is not None:
        for path in data_files([args.source]):
            # Not Path.stem, which leaves "ad.jsonl" of "ad.jsonl.gz".
            train.setdefault(path.name.split(".")[0], path)
        if (args.source / "test").is_dir():
            for path in data_files([args.source / "test"]):
                tests.setdefault(path.name.split(".")[0], path)
    if not train:
        raise DataError("no-data", "no task: give --source DIR or --task NAME=FILE")
    return dict(sorted(train.items())), dict(sorted(tests.items()))


def plan_counts(args: argparse.Namespace, have: dict[str, int]) -> Counts:
    """Return samples by task of every chunk, checked against what is there. Raises StreamError."""
    if args.dirichlet is not None:
        chunks, size = args.chunks, args.size or sum(have.values()) // args.chunks
        if size < 1 or (chunks * size > sum(have.values()) and not args.repeat):
            raise StreamError(
                f"{chunks} chunks of {size} need {chunks * size} samples, there are "
                f"{sum(have.values())}: lower --chunks or --size, or use --repeat"
            )
        draw = without_return if args.no_recurrence else drawn
        return draw(have, chunks, size, args.dirichlet, args.seed, args.repeat)
    counts = _stated(args, list(have))
    missing = sorted({task for chunk in counts for task in chunk} - set(have))
    if missing:
        raise StreamError(
            f"the mixture names {', '.join(missing)}, but there is no file for it; give --task "
            f"{missing[0]}=FILE, or --only-present to leave out what is not there"
        )
    if not args.repeat:
        check_enough(counts, have)
    return counts


def _stated(args: argparse.Namespace, tasks: list[str]) -> Counts:
    if args.mixture == "strcvit":
        wanted = tasks if args.only_present else list(STRCVIT)
        return from_strcvit(args.size or CHUNK_SAMPLES, args.seed, wanted)
    counts = from_file(Path(args.mixture), args.size)
    if args.only_present:
        counts = [{t: n for t, n in chunk.items() if t in tasks} for chunk in counts]
    return [chunk for chunk in counts if chunk]


if __name__ == "__main__":
    sys.exit(main())
