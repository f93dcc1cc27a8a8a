"""The published StrCVIT as a stream.

python -m data_prep.strcvit --source DIR --download                    # its JSON, from the hub
python -m data_prep.strcvit --images ROOT --checklist                  # which images are there
python -m data_prep.strcvit --images ROOT --stitch v1_1_train_nus.json --views NUSCENES  # AD's
python -m data_prep.strcvit --source DIR --images ROOT --out data/strcvit
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from data_prep.command_line import (
    FAILED,
    OK,
    add_common,
    add_limit,
    expect_folder,
    fetch,
    limit_of,
    limit_setting,
    run_plan,
    source_facts,
)
from data_prep.errors import ERROR, DataError, listing
from data_prep.parallel import cores
from data_prep.published import checklist
from data_prep.published.benchmarks import STRCVIT
from data_prep.published.gold_files import GQA
from data_prep.published.gold_test_sets import published_test
from data_prep.sources.image_paths import LINK, ImageResolver
from data_prep.strcvit import GENERATOR, MARKER, REPOSITORY, VERSION
from data_prep.strcvit.published_counts import against_manifest, against_mixture
from data_prep.strcvit.source import TrainSource, chunk_files, make, test_files
from data_prep.stream import StreamError
from data_prep.stream_writer import Contents, Plan, PlannedFile, WrittenFile


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(prog="python -m data_prep.strcvit", description=__doc__)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("--source", type=Path, help="the published folder: train/, test/")
    out.add_argument("--images", type=Path, help="root of the image sets")
    out.add_argument("--download", action="store_true", help="fetch the JSON into --source first")
    out.add_argument("--checklist", action="store_true", help="list the image sets and stop")
    out.add_argument(
        "--stitch", type=Path, metavar="JSON", help="DriveLM's file: make AD's pictures and stop"
    )
    out.add_argument("--views", type=Path, help="nuScenes' folder, with samples/, for --stitch")
    out.add_argument(
        "--eval",
        choices=("proxy", "test"),
        default="proxy",
        help="test sets: the small proxies of the published runs, or all",
    )
    out.add_argument("--no-image-check", action="store_true", help="images are somewhere else")
    add_limit(out, "of each chunk and each test set")
    add_common(out)
    return out


def main(argv: list[str] | None = None) -> int:
    """Do what is asked; return the exit code."""
    options = parser()
    args = options.parse_args(argv)
    if args.checklist:
        if args.images is None:
            options.error("--checklist needs --images ROOT")
        return OK if checklist.show(args.images, STRCVIT.values()) else FAILED
    if args.stitch is not None:
        if args.images is None or args.views is None:
            options.error("--stitch needs --images ROOT and --views NUSCENES")
        return _stitch(args)
    if args.source is None or not (args.download or args.out):
        options.error("--source DIR is needed, with --images ROOT and --out DIR, or --download")
    code = fetch(REPOSITORY, args.source, " (CC BY-NC 4.0)") if args.download else OK
    if code or args.out is None:
        return code
    if args.images is None:
        options.error("--images ROOT is needed")
    return run_plan(args, partial(_plan, args), partial(_report, args))


def _stitch(args: argparse.Namespace) -> int:
    """Make AD's pictures of six views each; return the exit code."""
    from data_prep.strcvit.six_views import FOLDER, read_frames, stitch

    try:
        frames = read_frames(args.stitch, args.views)
        made = sum(1 for _ in stitch(frames, args.images, args.workers or cores()))
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    print(f"{args.images / FOLDER}: {made} pictures of six views")
    return OK


def _plan(args: argparse.Namespace) -> Plan:
    chunks = chunk_files(args.source)
    root = args.images.resolve()
    expect_folder(root, "--images", "See --checklist for the sites of the image sets")
    resolver = ImageResolver(root, marker=MARKER, must_exist=not args.no_image_check)
    # GQA's own questions hold its answers; here they may lie.
    official = GQA.find(args.source / "test/GQA", root / "GQA", root / "GQA/questions")
    tests, limit = test_files(args.source, args.eval == "proxy"), limit_of(args)
    planned = [
        PlannedFile(f"chunks/{n:03d}.jsonl", TrainSource(path, resolver, n, limit))
        for n, path in chunks.items()
    ]
    for task, path in tests.items():
        source = published_test(STRCVIT[task], path, resolver, official, limit)
        planned.append(PlannedFile(f"test/{task}.jsonl", source, task))
    files = [*chunks.values(), *tests.values()]
    names = [path.relative_to(args.source).as_posix() for path in files]
    hashes = (source_facts(path)["sha256"] for path in files)
    settings = {
        "files": dict(zip(names, hashes, strict=True)),
        "images": str(root),
        **{key: getattr(args, key) for key in ("eval", "no_image_check", "skip_bad")},
        **limit_setting(args),
    }
    scorers = {task: STRCVIT[task].scorer for task in tests}
    contents = Contents(planned, scorers, {LINK: str(root)})
    generator = {"name": GENERATOR, "version": VERSION, "settings": settings}
    return Plan(
        "strcvit",
        generator,
        args.seed,
        lambda staging: contents,
        make,
        args.skip_bad,
        partial(_check_counts, args.source, names) if limit is None else None,
    )


def _check_counts(source: Path, names: list[str], made: list[WrittenFile]) -> None:
    """Raise StreamError when the source's manifest.json and its files differ in their counts."""
    counts = [item.samples + len(item.problems) for item in made]
    if problems := against_manifest(source, dict(zip(names, counts, strict=True))):
        raise StreamError(listing(problems))


def _report(args: argparse.Namespace, made: list[WrittenFile]) -> None:
    """Print what the chunks hold, how they differ from the published mixture, what is missing."""
    chunks = [item for item in made if item.file.startswith("chunks/")]
    for number, chunk in enumerate(chunks, start=1):
        tasks = ", ".join(f"{task} {count}" for task, count in sorted(chunk.tasks.items()))
        print(f"chunk {number:3}: {chunk.samples:5} samples: {tasks}")
    for item in made[len(chunks) :]:
        print(f"{item.file}: {item.samples} samples")
    differences = against_mixture(chunks) if args.limit is None else []
    problems = [problem for item in made for problem in item.problems] + differences
    if differences:
        print(f"{len(differences)} differences from the published mixture (strcvit_mixture.json):")
    print(listing(sorted(problems, key=lambda problem: problem.severity != ERROR)))
    lacking = [task for task in STRCVIT if task not in test_files(args.source, True)]
    if lacking:
        print(f"no test set in {args.source}/test: {', '.join(lacking)}: they are not evaluated")
    if not checklist.all_present(args.images, STRCVIT.values()):
        print("\n".join(checklist.lines(args.images, STRCVIT.values())))


if __name__ == "__main__":
    sys.exit(main())
