"""The published MLLM-CL as a stream of domains (DCL) or abilities (ACL).

    python -m data_prep.mllm_cl --source DIR --download                 # its JSON, from the hub
    python -m data_prep.mllm_cl --source DIR --benchmark DCL --out data/mllm-cl-dcl

DIR holds a folder a task: RS/train.json, RS/test.json, RS/images; of abilities OCR/train.json and
OCR_test/test.json.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from data_prep.command_line import OK, add_common, expect_folder, fetch, run_plan, source_facts
from data_prep.compose.chunk_counts import drawn
from data_prep.compose.pools import Counts, chunk_files, make, make_pools
from data_prep.errors import DataError
from data_prep.mllm_cl import GENERATOR, REPOSITORY, VERSION
from data_prep.mllm_cl.router import FOLDER, write_router
from data_prep.parallel import cores
from data_prep.published.benchmarks import MLLM_CL
from data_prep.sources.image_paths import LINK, ImageResolver
from data_prep.sources.test_sets import TestFile
from data_prep.stream import StreamError
from data_prep.stream_writer import Contents, Plan, PlannedFile


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(prog="python -m data_prep.mllm_cl", description=__doc__)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("--source", type=Path, required=True, help="the published folder")
    out.add_argument("--images", type=Path, help="root of the images (default: --source)")
    out.add_argument("--benchmark", choices=sorted(MLLM_CL), default="DCL")
    out.add_argument("--order", help="tasks in their order, such as RS,Med,AD (default: published)")
    out.add_argument("--download", action="store_true", help="fetch the JSON into --source first")
    out.add_argument("--size", type=int, help="most samples of a chunk (default: a task a chunk)")
    out.add_argument("--mixed", type=float, metavar="ALPHA", help="mix tasks: Dirichlet shares")
    out.add_argument("--router-samples", type=int, default=20, help="of each task, for MR-LoRA")
    out.add_argument("--no-image-check", action="store_true", help="images are somewhere else")
    add_common(out, out_required=False)
    return out


def main(argv: list[str] | None = None) -> int:
    """Do what is asked; return the exit code."""
    options = parser()
    args = options.parse_args(argv)
    if args.out is None and not args.download:
        options.error("--out DIR is needed, or --download")
    code = fetch(REPOSITORY, args.source, "; images are not in it") if args.download else OK
    return code if code or args.out is None else run_plan(args, partial(_plan, args))


def _plan(args: argparse.Namespace) -> Plan:
    if args.mixed is not None and (not args.size or not 0 < args.mixed < 1e6):
        raise StreamError("--mixed ALPHA: expected a number above 0, and --size with it")
    if args.size is not None and args.size < 1:
        raise StreamError(f"--size {args.size}: expected at least 1")
    scorers = MLLM_CL[args.benchmark]
    tasks = _tasks(args)
    root = (args.images or args.source).resolve()
    expect_folder(args.source, "--source", f"Get it: --download, or {REPOSITORY} on the hub")
    expect_folder(root, "--images", "Give the folder that holds RS/images and the others")
    train = {task: _file(args.source, task, "train") for task in tasks}
    tests = {task: _file(args.source, task, "test") for task in tasks}
    settings = {
        "train": {task: source_facts(path) for task, path in train.items()},
        "test": {task: source_facts(path) for task, path in tests.items()},
        "images": str(root),
        "tasks": tasks,
        **{key: getattr(args, key) for key in ("benchmark", "size", "mixed", "router_samples")},
        **{key: getattr(args, key) for key in ("no_image_check", "skip_bad")},
    }

    def contents(staging: Path) -> Contents:
        resolvers = {task: _resolver(args, root, task, "") for task in tasks}
        workers = args.workers or cores()
        pools = make_pools(staging / "pools", train, resolvers, args.skip_bad, workers)
        counts = _counts(args, {task: pool.samples for task, pool in pools.items()})
        if args.router_samples > 0:
            write_router(staging, pools, args.router_samples, args.seed)
        files = chunk_files(pools, counts, args.seed)
        for task, path in tests.items():
            where = _resolver(args, root, task, "_test")
            source = TestFile(path, task, scorers[task], where, own_ids=False)
            files.append(PlannedFile(f"test/{task}.jsonl", source, task))
        problems = tuple(problem for pool in pools.values() for problem in pool.problems)
        chosen = {task: scorers[task] for task in tasks}
        return Contents(files, chosen, {LINK: str(root)}, (FOLDER,), problems=problems)

    generator = {"name": GENERATOR, "version": VERSION, "settings": settings}
    name = f"mllm-cl-{args.benchmark.lower()}"
    return Plan(name, generator, args.seed, contents, make, args.skip_bad)


def _tasks(args: argparse.Namespace) -> list[str]:
    known = list(MLLM_CL[args.benchmark])
    tasks = args.order.split(",") if args.order else known
    unknown = [task for task in tasks if task not in known]
    if unknown or len(set(tasks)) < len(tasks):
        raise StreamError(f"--order {args.order}: expected some of {','.join(known)}, each once")
    return tasks


def _file(source: Path, task: str, split: str) -> Path:
    """Return the file of a task's split. Raises DataError with the places that were looked at."""
    folders = (task, f"{task}_test") if split == "test" else (task, f"{task}_train")
    paths = [source / folder / f"{split}{end}" for folder in folders for end in (".json", ".jsonl")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        where = " or ".join(str(p.relative_to(source)) for p in paths if p.suffix == ".json")
        raise DataError(
            "no-data", f"{source}: no {where}. Get it: --download, or --order without it"
        )
    return path


def _resolver(args: argparse.Namespace, root: Path, task: str, ending: str) -> ImageResolver:
    """Paths in the published files begin at the root, at the task's folder or at its images."""
    folder = f"{task}{ending}" if ending and (root / f"{task}{ending}").is_dir() else task
    starts = ("", folder, f"{folder}/images")
    return ImageResolver(root, starts, must_exist=not args.no_image_check)


def _counts(args: argparse.Namespace, have: dict[str, int]) -> Counts:
    """Return samples by task of every chunk: pure ones in order, or mixed ones."""
    if args.mixed is not None:
        chunks = sum(have.values()) // args.size
        if not chunks:
            raise StreamError(f"--size {args.size}: there are only {sum(have.values())} samples")
        return drawn(have, chunks, args.size, args.mixed, args.seed, repeat=False)
    counts: Counts = []
    for task, samples in have.items():
        step = args.size or samples
        counts += [{task: min(step, samples - at)} for at in range(0, samples, step)]
    return counts


if __name__ == "__main__":
    sys.exit(main())
