"""A published benchmark with a training and a test file a task -> a stream of its tasks.

One task a chunk in the published order, cut by --size, reordered by --order, or mixed: by Dirichlet
shares (--mixed) or as a file states (--mixture).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
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
from data_prep.compose.chunk_counts import check_enough, drawn, from_file
from data_prep.compose.pools import Counts, chunk_files, make, make_pools
from data_prep.errors import DataError
from data_prep.parallel import cores
from data_prep.published import checklist
from data_prep.published.benchmarks import Benchmark, Task
from data_prep.published.gold_test_sets import published_test
from data_prep.sources.image_paths import LINK, ImageResolver
from data_prep.stream import StreamError
from data_prep.stream_writer import Contents, Plan, PlannedFile, WrittenFile
from data_prep.task_files.router import FOLDER, write_router


def parser(benchmarks: Mapping[str, Benchmark], text: str) -> argparse.ArgumentParser:
    """Return the command line; `text` describes the benchmark."""
    command = next(iter(benchmarks.values())).generator
    out = argparse.ArgumentParser(prog=f"python -m {command}", description=text)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("--source", type=Path, required=True, help="the published folder")
    out.add_argument("--images", type=Path, help="root of the images (default: in --source)")
    if len(benchmarks) > 1:
        out.add_argument("--benchmark", choices=sorted(benchmarks), default=next(iter(benchmarks)))
    out.add_argument("--order", help="tasks in their order, such as B,A (default: published)")
    out.add_argument("--download", action="store_true", help="fetch the JSON into --source first")
    out.add_argument("--checklist", action="store_true", help="list the image sets and stop")
    out.add_argument("--size", type=int, help="most samples of a chunk (default: a task a chunk)")
    mixed = out.add_mutually_exclusive_group()
    mixed.add_argument("--mixed", type=float, metavar="ALPHA", help="mix tasks: Dirichlet shares")
    mixed.add_argument("--mixture", type=Path, metavar="FILE", help="mix tasks as a file states")
    out.add_argument("--router-samples", type=int, default=20, help="of each task, for MR-LoRA")
    out.add_argument("--no-image-check", action="store_true", help="images are somewhere else")
    add_limit(out, "of each task to train on and of each test set")
    add_common(out)
    return out


def run(
    benchmarks: Mapping[str, Benchmark], text: str | None, argv: list[str] | None = None
) -> int:
    """The command of a benchmark: does what is asked; returns the exit code."""
    options = parser(benchmarks, text or "")
    args = options.parse_args(argv)
    chosen = benchmarks[getattr(args, "benchmark", next(iter(benchmarks)))]
    if args.checklist:
        return OK if checklist.show(_image_root(args, chosen), chosen.tasks) else FAILED
    if args.out is None and not args.download:
        options.error("--out DIR is needed, or --download, or --checklist")
    note = "; images are not in it"
    code = fetch(chosen.repository, args.source, note) if args.download else OK
    if code or args.out is None:
        return code
    read: dict[str, int] = {}
    plan = partial(_plan, args, chosen, read)
    code = run_plan(args, plan, partial(_print_differences, args, chosen, read))
    if code == FAILED:
        _name_missing_pictures(args, chosen)
    return code


def _name_missing_pictures(args: argparse.Namespace, chosen: Benchmark) -> None:
    root = _image_root(args, chosen)
    missing = [
        name for task in _tasks(args, chosen) for name in checklist.missing_folders(root, task)
    ]
    if missing and not args.no_image_check:
        names = ", ".join(dict.fromkeys(missing))
        text = "empty or not there; --checklist says where their pictures are had"
        print(f"below {root}: {names}: {text}", file=sys.stderr)


def _plan(args: argparse.Namespace, chosen: Benchmark, read: dict[str, int]) -> Plan:
    """Return the plan; `read` gets the samples of each task's training file when it is read."""
    if args.mixed is not None and (not args.size or not 0 < args.mixed < 1e6):
        raise StreamError("--mixed ALPHA: expected a number above 0, and --size with it")
    tasks, limit = _tasks(args, chosen), limit_of(args)
    expect_folder(args.source, "--source", f"Get it: --download, or {chosen.repository} on the hub")
    root = _image_root(args, chosen).resolve()
    first = chosen.tasks[0].folders[0]
    expect_folder(root, "--images", f"Give the folder that holds {first} and the others")
    train = {task.name: _file(args.source, chosen, task, task.train) for task in tasks}
    tests = {task.name: _file(args.source, chosen, task, task.test) for task in tasks}
    golds = {task.name: _gold(args.source, root, task, tests[task.name]) for task in tasks}
    keys = ["size", "mixed", "router_samples", "no_image_check", "skip_bad"]
    settings = {
        "train": {name: source_facts(path) for name, path in train.items()},
        "test": {name: source_facts(path) for name, path in tests.items()},
        "images": str(root),
        "tasks": list(train),
        **{key: getattr(args, key) for key in ["benchmark", *keys] if hasattr(args, key)},
        **limit_setting(args),
    }
    if facts := {name: source_facts(path) for name, path in golds.items() if path is not None}:
        settings["golds"] = facts
    if args.mixture is not None:
        settings["mixture"] = source_facts(args.mixture)

    def contents(staging: Path) -> Contents:
        resolvers = {task.name: _resolver(args, root, task, "") for task in tasks}
        workers = args.workers or cores()
        folder, numbered = staging / "pools", chosen.numbered
        pools = make_pools(
            folder, train, resolvers, args.skip_bad, workers, limit=limit, numbered=numbered
        )
        read.update({name: pool.samples + len(pool.problems) for name, pool in pools.items()})
        counts = _counts(args, {name: pool.samples for name, pool in pools.items()})
        if args.router_samples > 0:
            write_router(staging, pools, args.router_samples, args.seed)
        files = chunk_files(pools, counts, args.seed)
        for task in tasks:
            where = _resolver(args, root, task, "_test")
            source = published_test(task, tests[task.name], where, golds[task.name], limit)
            files.append(PlannedFile(f"test/{task.name}.jsonl", source, task.name))
        problems = tuple(problem for pool in pools.values() for problem in pool.problems)
        scorers = {task.name: task.scorer for task in tasks}
        return Contents(files, scorers, {LINK: str(root)}, (FOLDER,), problems=problems)

    generator = {"name": chosen.generator, "version": chosen.version, "settings": settings}
    return Plan(chosen.name, generator, args.seed, contents, make, args.skip_bad)


def _tasks(args: argparse.Namespace, chosen: Benchmark) -> list[Task]:
    known = {task.name: task for task in chosen.tasks}
    names = args.order.split(",") if args.order else list(known)
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise StreamError(f"--order {args.order}: expected some of {','.join(known)}, each once")
    return [known[name] for name in names]


def _image_root(args: argparse.Namespace, chosen: Benchmark) -> Path:
    """Return --images, or the folder of the source in which the published layout has them."""
    if args.images is not None:
        return Path(args.images)
    places = [Path(args.source) / place for place in chosen.pictures]
    return next((place for place in places if place.is_dir()), places[-1])


def _file(source: Path, chosen: Benchmark, task: Task, names: tuple[str, ...]) -> Path:
    """Return the file of a task's split. Raises DataError with the places that were looked at."""
    ends = (".json", ".jsonl")
    paths = [
        source / place / f"{name}{end}" for place in chosen.places for name in names for end in ends
    ]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        there = [place for place in chosen.places if (source / place).is_dir()][:1]
        places = dict.fromkeys([*(there or chosen.places[:1]), ""])
        where = " or ".join(str(Path(place) / f"{name}.json") for place in places for name in names)
        others = ",".join(each.name for each in chosen.tasks if each is not task)
        raise DataError(
            "no-data",
            f"{source}: no {where}. Get it: --download; or leave {task.name} out: --order {others}",
        )
    return path


def _gold(source: Path, root: Path, task: Task, test: Path) -> Path | None:
    """Return the file with the answers of a test set. Raises DataError where it is needed."""
    if task.gold is None:
        return None
    own = root / task.name
    unpacked = (own / name for name in ("questions", "questions1.2", "eval"))  # GQA's archive
    path = task.gold.find(test.parent, test.parent.parent, source, own, *unpacked)
    if path is None and task.gold.by_picture:
        raise DataError(
            "no-data",
            f"{test.parent}: no {task.gold.name}, which holds the reference captions of "
            f"{test.name}: --download fetches both, or leave {task.name} out by --order",
        )
    return path


def _resolver(args: argparse.Namespace, root: Path, task: Task, ending: str) -> ImageResolver:
    """Paths in the published files begin at the root, at the task's folder or at its images."""
    own = f"{task.name}{ending}"
    folder = own if ending and (root / own).is_dir() else task.name
    starts = ("", folder, f"{folder}/images")
    return ImageResolver(root, starts, must_exist=not args.no_image_check)


def _counts(args: argparse.Namespace, have: dict[str, int]) -> Counts:
    """Return samples by task of every chunk: pure ones in order, or mixed ones."""
    if args.mixture is not None:
        counts = from_file(args.mixture, args.size)
        unknown = sorted({task for chunk in counts for task in chunk} - set(have))
        if unknown:
            raise StreamError(f"--mixture {args.mixture}: no task {', '.join(unknown)} here")
        check_enough(counts, have)
        return counts
    if args.mixed is not None:
        chunks = sum(have.values()) // args.size
        if not chunks:
            raise StreamError(f"--size {args.size}: there are only {sum(have.values())} samples")
        return drawn(have, chunks, args.size, args.mixed, args.seed, repeat=False)
    counts = []
    for task, samples in have.items():
        step = args.size or samples
        counts += [{task: min(step, samples - at)} for at in range(0, samples, step)]
    return counts


def _print_differences(
    args: argparse.Namespace, chosen: Benchmark, read: dict[str, int], made: list[WrittenFile]
) -> None:
    """Print where answers are fewer, and files other in size, than the published ones.

    Files are compared as they were read: chunks may hold less, and bad samples be left out.
    """
    root = _image_root(args, chosen)
    for task in _tasks(args, chosen):
        if task.gold is None or not task.gold.always:
            continue
        if _gold(args.source, root, task, _file(args.source, chosen, task, task.test)) is None:
            print(f"{task.name}: no {task.gold.name} was found: one gold answer a question")
    if args.limit is not None:
        return
    asked = {item.file: item.samples + len(item.problems) for item in made}
    for task in _tasks(args, chosen):
        here = (read[task.name], asked[f"test/{task.name}.jsonl"])
        for file, count, expected in zip(
            ("training", "test"), here, task.samples or here, strict=True
        ):
            if count != expected:
                text = f"{count} samples in the {file} file, the published one has {expected}"
                print(f"{task.name}: {text}")
