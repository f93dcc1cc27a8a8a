"""Check a stream before training on it: `python -m data_prep.check data/mine`.

Exit code 0: no errors (warnings are possible), or --fix repaired all of them. 1: errors were found
(with --fix: are left). 2: nothing to check.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.check.checking import Check, Result, Settings
from data_prep.check.findings import as_json, as_text
from data_prep.check.fix import write_clean
from data_prep.check.lengths import Lengths, ask_recipes
from data_prep.check.stream_folder import read_layout
from data_prep.command_line import FAILED, OK, UNUSABLE
from data_prep.errors import DataError, expect_utf8, listing
from data_prep.files import a_few, print_lines, write_json
from data_prep.stream import StreamError

COUNTED = 200  # samples whose tokens are counted where --tokens says nothing


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(prog="python -m data_prep.check", description=__doc__)
    out.formatter_class = argparse.RawDescriptionHelpFormatter
    out.add_argument("folder", type=Path, help="a stream folder, or one JSONL file")
    out.add_argument("--images", type=Path, help="a further folder that may hold images")
    out.add_argument("--report", type=Path, help="where the JSON goes (default: FOLDER.check.json)")
    out.add_argument(
        "--fix",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="OUT",
        help="write a copy without the bad samples (default: FOLDER.clean)",
    )
    out.add_argument("--near", action="store_true", help="also find images that look alike")
    out.add_argument("--no-decode", action="store_true", help="only check that images exist")
    out.add_argument("--recipe", help="counts tokens as this recipe's host does")
    out.add_argument("--model", type=Path, help="folder of a model: counts tokens with it")
    out.add_argument(
        "--max-length",
        type=_at_least_one,
        help="with --recipe or --model: most tokens (default: the recipe's, or 4096)",
    )
    out.add_argument(
        "--tokens",
        type=_how_many,
        metavar="N",
        help=f"with --recipe or --model: samples whose tokens are counted, or all (default: "
        f"{COUNTED}, half of them evenly spread, half those with the longest texts and the largest "
        "pictures)",
    )
    out.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CODE",
        help="report this error as a warning",
    )
    out.add_argument("--strict", action="store_true", help="report warnings as errors")
    out.add_argument("--show", type=int, default=20, help="problems to print (the JSON has all)")
    out.add_argument("--workers", type=int, help="processes (default: all cores)")
    return out


def main(argv: list[str] | None = None) -> int:
    """Check, report, and with --fix write the cleaned copy; return the exit code."""
    args = parser().parse_args(argv)
    try:
        expect_utf8(args.folder.resolve())
        allow = tuple(args.allow)
        report = args.report or beside(args.folder, ".check.json")
        _expect_options(args, report)
        settings = Settings(args.near, not args.no_decode, _lengths(args), allow, args.strict)
        result = Check(read_layout(args.folder, args.images), settings, args.workers).run()
        print_lines([as_text(result, args.show)])
        write_json(report, as_json(result))
        print_lines([f"report: {report}"])
        found = sorted({problem.code for problem in result.problems})
        if unknown := [code for code in allow if code not in found]:
            text = f"nothing of that code; found: {a_few(found, most=20) or 'none'}"
            print(f"--allow {a_few(unknown)}: {text}", file=sys.stderr)
        if args.fix is not None:
            result = _fix(result, args)
    except (DataError, StreamError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    return FAILED if result.errors else OK


def _expect_options(args: argparse.Namespace, report: Path) -> None:
    """Raise DataError for options that would be without effect, or a report that has no place."""
    counts = args.recipe is not None or args.model is not None
    for option, given in (("--max-length", args.max_length), ("--tokens", args.tokens)):
        if given is not None and not counts:
            raise DataError("options", f"{option}: counts no tokens without --recipe or --model")
    if args.near and args.no_decode:
        raise DataError("options", "--near compares what --no-decode does not read: give one")
    if report.is_dir():
        raise DataError("options", f"--report {report}: a folder; expected the name of a file")


def _lengths(args: argparse.Namespace) -> Lengths | None:
    """Return what lengths are held against, None without --recipe and --model."""
    if args.recipe is None and args.model is None:
        return None
    # The recipe of a model alone: any, its own model replaced; the template follows the model.
    name, overrides = args.recipe or "tiny", []
    if args.model is not None:
        overrides = [f"model.path={args.model.resolve()}", "model.aligner=null"]
    recipe = read_recipe(name, overrides)
    most = args.max_length or (recipe["model"]["max_length"] if args.recipe else 4096)
    counted = None if args.tokens == "all" else args.tokens or COUNTED
    return Lengths(name, tuple(overrides), most, recipe["data"]["too_long"], counted)


def read_recipe(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a recipe, read by the command that runs it.

    Raises:
        DataError: there is no such recipe, or something is wrong with it.
    """
    argv = ["-m", "recipes.cli", "validate", name, *overrides, "--json"]
    content: dict[str, Any] = json.loads(ask_recipes(argv, f"--recipe {name}"))
    return content


def _how_many(text: str) -> int | str:
    return text if text == "all" else _at_least_one(text)


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return number


def beside(folder: Path, ending: str) -> Path:
    """Return the path beside `folder` with `ending` behind its name."""
    folder = folder.resolve()
    return folder.with_name(folder.name + ending)


def _fix(result: Result, args: argparse.Namespace) -> Result:
    """Write the cleaned copy and return what a check of it finds; images were decoded before."""
    out = args.fix if args.fix != Path() else beside(args.folder, ".clean")
    count, empty = write_clean(result, out, args.workers)
    print(f"cleaned copy: {out}, {count} samples left out ({out / 'left_out.jsonl'} says why)")
    for name in empty:
        print(f"{name} is not in it: none of its samples was good (chunks are numbered anew)")
    links = {path.name: os.readlink(path) for path in out.iterdir() if path.is_symlink()}
    for name, target in links.items():
        print(f"{name}/ in it is a link to {target}: its pictures are not copied")
    again = Check(read_layout(out), Settings(decode=False, allow=tuple(args.allow)), args.workers)
    left = again.run()
    if left.errors:
        print_lines([listing(left.errors, args.show), f"{len(left.errors)} errors are left in it"])
    return left


if __name__ == "__main__":
    sys.exit(main())
