"""The command line of `bash recipes/run_stream.sh`, with the standard library alone.

Nothing else is imported here, nor in command_table.py, so that every `--help` works before
anything is installed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.command_table import COMMANDS, EXIT_CODES, USES

_TARGET = "a shipped recipe ({}), a YAML file, or a run folder (runs/tiny)"


def shipped_recipes() -> list[str]:
    """Names of the recipes in this folder, sorted."""
    return sorted(path.stem for path in Path(__file__).resolve().parent.glob("*.yaml"))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; the first word may be a command, and `run` is meant without one.

    Returns `command`, `recipe`, `overrides` and the command's own options. A wrong command line
    ends the process with exit code 2, `--help` with 0.
    """
    words = list(arguments)
    named = bool(words) and words[0] in COMMANDS
    command = words.pop(0) if named else "run"
    parser = command_parser(command, top=not named)
    options = parser.parse_intermixed_args(words)
    options.command = command
    if command == "run" and (options.seeds or options.methods):
        axes = {"--methods": options.methods, "--seeds": options.seeds}
        given = [word for axis, text in axes.items() if text for word in (axis, text)]
        given += [*options.overrides, *(["--slurm"] if options.slurm else [])]
        parser.error(
            "one run has one method and one seed; for all of them: "
            + shlex.join(["bash", "recipes/run_stream.sh", "sweep", options.recipe, *given])
        )
    for name in ("validate", "status"):  # the older spelling: RECIPE --status
        if command == "run" and getattr(options, name):
            options.command = name
    for name, value in (("json", False), ("verify", False), ("follow", False), ("overrides", [])):
        if not hasattr(options, name):
            setattr(options, name, value)
    return options


def command_parser(command: str, top: bool = False) -> argparse.ArgumentParser:
    """The parser of one command; with `top` its help also lists all commands."""
    name = "" if top else f" {command}"
    parser = argparse.ArgumentParser(
        prog=f"bash recipes/run_stream.sh{name}",
        description=_overview()
        if top
        else f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}.",
        epilog=_footer(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help=_TARGET.format(", ".join(shipped_recipes()))
    )
    if command == "watch":
        parser.add_argument("inbox", metavar="FOLDER", help="where files and folders arrive")
    if command in USES:
        _use_options(parser)
    else:
        help_text = "e.g. schedule.later.learning_rate=1e-3"
        parser.add_argument("overrides", metavar="key=value", nargs="*", help=help_text)
    {
        "run": _run_options,
        "watch": _watch_options,
        "sweep": _sweep_options,
        "plan": _plan_options,
        "status": _status_options,
        "validate": _validate_options,
        "reproduce": _reproduce_options,
        "clean": _clean_options,
        "ask": _ask_options,
        "chat": _chat_options,
        "serve": _serve_options,
        "export": _export_options,
        "push": _push_options,
    }.get(command, lambda parser: None)(parser)
    parser.add_argument(
        "--no-setup",
        action="store_true",
        help="skip recipes/setup.sh and use $PYTHON, else .venv/bin/python, else python3",
    )
    return parser


def _footer(command: str) -> str:
    codes = {**EXIT_CODES[command], "2": "the recipe or the command line is wrong"}
    order = [code for code in ("0", "1", "2", "128+n") if code in codes]
    lines = "".join(f"\n  {code:<5}  {codes[code]}" for code in order)
    return (
        "Relative paths in a recipe and in overrides start at the repository's root.\n"
        f"Exit codes:{lines}"
    )


def _overview() -> str:
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    return (
        "Trains a model on a stream chunk after chunk through ms-swift, evaluates all tasks after\n"
        "each chunk and writes runs/<name>/ with adapters, predictions, scores, matrix.csv and\n"
        "report.html. After an interruption the same command continues.\n\n"
        "bash recipes/run_stream.sh [COMMAND] RECIPE [key=value ...]; commands (default: run):\n"
        + "\n".join(lines)
        + "\n\n`bash recipes/run_stream.sh COMMAND --help` lists the options of each."
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--validate", action="store_true", help="the same as the command validate")
    what.add_argument("--status", action="store_true", help="the same as the command status")
    what.add_argument("--slurm", action="store_true", help="submit the run to SLURM (sbatch)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands of a chunk, as this machine would run them, and what it lacks; "
        "with --slurm the job file, the sbatch command and what the cluster says of it; nothing is "
        "run or written",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--chunk", type=int, metavar="N", help="with --dry-run: which chunk; default: the first"
    )
    shown.add_argument("--all", action="store_true", help="with --dry-run: all chunks")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="when the host fails, print its whole log instead of the cause alone",
    )
    for option in ("--seeds", "--methods"):  # of the command sweep, which is told
        parser.add_argument(option, help=argparse.SUPPRESS)
    jobs = parser.add_argument_group("with --slurm")
    jobs.add_argument(
        "--chain",
        type=_positive,
        default=1,
        metavar="N",
        help="N jobs, each starting after the one before",
    )
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="train all chunks; the same command without this option evaluates them later",
    )
    # Of a run that a sweep starts: an array's task finds its overrides in a line of a file.
    parser.add_argument("--of-sweep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cells", help=argparse.SUPPRESS)
    parser.add_argument("--cell", type=int, help=argparse.SUPPRESS)


def _sweep_options(parser: argparse.ArgumentParser) -> None:
    axes = parser.add_argument_group("what is varied (default: the file's block sweep)")
    axes.add_argument("--methods", metavar="a,b", help="files of recipes/methods/")
    axes.add_argument("--seeds", metavar="0-4,7", help="of the model and of the samples' order")
    text = "data.seed: a stream of its own for each"
    axes.add_argument("--stream-seeds", metavar="0,1", help=text)
    text = (
        "any key of the recipe, or scale (factor on the first rate) and later (later rate as a "
        "share of the first's); repeat it for further axes"
    )
    axes.add_argument("--grid", action="append", default=[], metavar="KEY=V,V", help=text)
    text = "where the run folders lie; default: runs/sweeps/RECIPE"
    parser.add_argument("--into", metavar="FOLDER", help=text)
    text = "a CSV of each finished run goes there; a run that has one is not run again"
    parser.add_argument("--results", metavar="FOLDER", help=text)
    text = "runs at a time on this machine"
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help=text)
    parser.add_argument("--slurm", action="store_true", help="submit the runs as one array")
    text = "with --slurm: runs at a time"
    parser.add_argument("--throttle", type=_positive, metavar="N", help=text)
    text = (
        "best: when all runs of a method are finished, remove the adapters of all its settings "
        "but the one of the highest mean Last; scores stay"
    )
    parser.add_argument("--keep", choices=("all", "best"), default="all", help=text)
    parser.add_argument("--dry-run", action="store_true", help="print what would run, run nothing")


def _watch_options(parser: argparse.ArgumentParser) -> None:
    for name, seconds, text in (
        ("--poll", 600.0, "time between two looks; default: 10m"),
        ("--rest", 60.0, "a delivery is whole when nothing of it changed so long; default: 1m"),
    ):
        parser.add_argument(name, type=_seconds, default=seconds, metavar="TIME", help=text)
    for name, text in (
        ("--marked", "only a mark says that a delivery is whole: a file NAME.done beside it"),
        ("--once", "look once, bring what is there to its end, and stop: for cron"),
        ("--skip-bad", "leave bad samples out and list them; else their file is rejected"),
        ("--slurm", "submit a job for each arrival (sbatch): this process trains nothing"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    text = "processes that read and check (default: all cores)"
    parser.add_argument("--workers", type=_positive, metavar="N", help=text)
    parser.set_defaults(dry_run=False, seeds="", methods="", chain=1)  # those of a job


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--quick", action="store_true", help="leave out the tokens, which take the host's start"
    )
    for option in ("--gpu", "--price"):
        parser.add_argument(option, action=_Removed, help=argparse.SUPPRESS)


def _status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    text = "of a sweep: show its table until all runs have ended"
    parser.add_argument("--follow", action="store_true", help=text)
    parser.add_argument(
        "--verify", action="store_true", help="also check every file that the run has recorded"
    )


def _validate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the whole recipe as JSON")


def _reproduce_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--into", metavar="FOLDER", help="default: the run's folder with -again")
    parser.add_argument(
        "--compare-only",
        action="store_true",
        help="run nothing; compare with the folder, which may come from another machine",
    )
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")


def _clean_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove the files")
    parser.add_argument(
        "--old-adapters",
        action="store_true",
        help="include the adapter weights of chunks before the newest finished one: the run can "
        "continue and keeps its scores, but those chunks cannot be evaluated again",
    )


def _use_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help="the adapter after chunk N (0: the base model); default: the newest",
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="where the base model lies now, if not where the run had it; another base is refused",
    )
    parser.add_argument(
        "--cpu", action="store_true", help="use the CPU, where the run's recipe asks for a GPU"
    )


def _ask_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        metavar="[PICTURE ...] QUESTION",
        nargs="+",
        help='picture.jpg "What is this?": the last word is the question, those before it pictures',
    )
    parser.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="the longest answer; default: the recipe's eval.max_new_tokens",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the answer")


def _chat_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="PICTURE", nargs="*", help="of the first question")


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone; 0.0.0.0: all"
    )
    parser.add_argument(
        "--key", help="clients must send it; $STRLORA_SERVE_KEY does the same and is not in `ps`"
    )


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="FOLDER", required=True, help="new or empty")
    parser.add_argument(
        "--merged",
        action="store_true",
        help="write base model and adapter as one model; LoRA and its like only, since a routed "
        "adapter depends on the question",
    )
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help="of method strlora_signed: the plain LoRA that the adapter is for prompts of exactly "
        "this text; <image> marks where pictures stand, by default as in the run's questions",
    )
    _published_options(parser)


def _push_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="OWNER/NAME", help="made if it is not there, private")
    parser.add_argument("--dry-run", action="store_true", help="print what would go; send nothing")
    _published_options(parser)


def _published_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-name",
        metavar="NAME",
        help="how others get the base model, for the card: a hub's OWNER/NAME",
    )
    parser.add_argument("--licence", metavar="NAME", help="of the base model, where no file says")


class _Removed(argparse.Action):
    """An option of earlier versions, which is refused with the reason."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        parser.error(
            f"{'/'.join(self.option_strings)} is gone: plan prints counted and measured figures, "
            "no estimates and no prices; leave it out"
        )


def _seconds(text: str) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    if not number.replace(".", "", 1).isdecimal():
        text = f"{text}: expected a number and s, m, h or d, such as 10m"
        raise argparse.ArgumentTypeError(text)
    return float(number) * units[unit]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


if __name__ == "__main__":
    parse(sys.argv[1:])
