"""The command line of `bash recipes/run_stream.sh`, with the standard library alone.

Nothing else is imported here, nor in command_table.py, so that every `--help` works before
anything is installed.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.command_table import COMMANDS, EXIT_CODES, USES

AXES = ("--methods", "--seeds", "--stream-seeds", "--grid")  # of a sweep
# Options that mean something only with --slurm, or only without it.
_WITHOUT, _WITH = "without --slurm", "with --slurm"
_COMPANIONS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "run": (
        ("--chain", _WITHOUT, True),
        ("--chunk", _WITH, False),
        ("--all", _WITH, False),
        ("--verbose", _WITH, False),
        ("--train-only", f"{_WITH}: launcher.slurm.eval_jobs=true evaluates in another job", False),
    ),
    "sweep": (
        ("--throttle", _WITHOUT, True),
        ("--jobs", f"{_WITH}: --throttle N is the number of runs at a time", False),
        ("--keep", f"{_WITH}: give the command without it once the runs are finished", False),
    ),
}
_TARGET = "a shipped recipe ({}), a YAML file{}"
_OF_RUN = ", or a run folder (runs/tiny)"
_FOLDERS = {"sweep": "", "status": ", a run folder (runs/tiny) or a sweep's (runs/sweeps/tiny)"}


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
    if words and not named and (meant := _meant_command(words[0])):
        parser.error(f"no command or recipe is called {words[0]!r}; did you mean {meant!r}?")
    # Intermixed: argparse alone refuses overrides that come behind an option.
    options = parser.parse_intermixed_args(words)
    options.command = command
    if command == "run":
        texts = {axis: getattr(options, axis[2:].replace("-", "_")) for axis in AXES}
        given = [word for axis, text in texts.items() if text for word in (axis, text)]
        if given:
            given += [*options.overrides, *(["--slurm"] if options.slurm else [])]
            parser.error(
                "one run has one method, one seed and one value of a key; for all of them: "
                + shlex.join(["bash", "recipes/run_stream.sh", "sweep", options.recipe, *given])
            )
    for name, needs, wanted in _COMPANIONS.get(command, ()):
        key = name[2:].replace("-", "_")
        if getattr(options, key) != parser.get_default(key) and bool(options.slurm) != wanted:
            parser.error(f"{name} would be ignored {needs}")
    for name in ("validate", "status"):  # the older spelling: RECIPE --status
        if command == "run" and getattr(options, name):
            options.command = name
    return options


def _meant_command(word: str) -> str | None:
    """The command that a first word was meant to be; None for a recipe's name or a path."""
    taken = word in shipped_recipes() or Path(word).exists()
    if taken or word.startswith("-") or Path(word).name != word:
        return None
    known = [*COMMANDS, *shipped_recipes()]
    nearest = difflib.get_close_matches(word, known, n=1)
    return nearest[0] if nearest and nearest[0] in COMMANDS else None


def command_parser(command: str, top: bool = False) -> argparse.ArgumentParser:
    """The parser of one command; with `top` its help also lists all commands."""
    text = COMMANDS[command]
    parser = argparse.ArgumentParser(
        prog="bash recipes/run_stream.sh" + ("" if top else f" {command}"),
        description=_overview() if top else f"{text[0].upper()}{text[1:]}.",
        epilog=_footer(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # `run --status` and `run --validate` go to those commands without a parser of their own; these
    # are the options that they read.
    parser.set_defaults(json=False, verify=False, follow=False)
    target = _TARGET.format(", ".join(shipped_recipes()), _FOLDERS.get(command, _OF_RUN))
    parser.add_argument("recipe", metavar="RECIPE", help=target)
    if command == "watch":
        parser.add_argument("inbox", metavar="FOLDER", help="where files and folders arrive")
    if command in USES:
        parser.set_defaults(overrides=[])
        _add(parser, *_USE_OPTIONS)
    else:
        text = "e.g. schedule.later.learning_rate=1e-3"
        parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)
    if command == "run":
        _run_options(parser)
    elif command == "sweep":
        _axis_options(parser)
    elif command == "watch":
        parser.set_defaults(dry_run=False, seeds="", methods="", chain=1)  # those of a job
    _add(parser, *_OPTIONS.get(command, ()))
    text = "skip recipes/setup.sh and use $PYTHON, else .venv/bin/python, else python3"
    _add(parser, _flag("--no-setup", text))
    return parser


Option = tuple[str, dict[str, Any]]  # what add_argument takes


def _flag(name: str, text: str) -> Option:
    return name, {"action": "store_true", "help": text}


def _option(name: str, metavar: str | None, text: str, **how: Any) -> Option:
    return name, {"metavar": metavar, "help": text, **how}


def _add(parser: argparse._ActionsContainer, *options: Option) -> None:
    for name, how in options:
        parser.add_argument(name, **how)


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


def _seconds(text: str) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    # float() by itself would also take nan, inf and a minus sign.
    if not number.replace(".", "", 1).isdecimal():
        text = f"{text}: expected a number and s, m, h or d, such as 10m"
        raise argparse.ArgumentTypeError(text)
    return float(number) * units[unit]


def positive(text: str) -> int:
    """A whole number of 1 or more, as argparse takes it; ArgumentTypeError says what was wrong."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


_JSON = "print JSON instead of "
_PUBLISHED = (
    _option(
        "--base-name", "NAME", "how others get the base model, for the card: a hub's OWNER/NAME"
    ),
    _option("--licence", "NAME", "of the base model, where none of its files names it"),
)
_USE_OPTIONS = (
    _option("--chunk", "N", "the adapter after chunk N (0: the base model); default: the newest",
            type=int),
    _option("--model", "FOLDER", "where the base model is now, if it has moved; "
            "another base is refused"),
    _flag("--cpu", "use the CPU, where the run's recipe asks for a GPU"),
)  # fmt: skip
# Besides the target, the overrides, and the groups of `run` and `sweep`, which come first.
_OPTIONS: dict[str, tuple[Option, ...]] = {
    "watch": (
        _option("--poll", "TIME", "time between two checks; default: 10m", type=_seconds,
                default=600.0),
        _option("--rest", "TIME", "a delivery is complete when nothing in it changed for so long; "
                "default: 1m", type=_seconds, default=60.0),
        _flag("--marked", "a delivery is complete only when there is a file NAME.done beside it"),
        _flag("--once", "check once, process what is there, and stop: for cron"),
        _flag("--skip-bad", "leave bad samples out and list them; else their file is rejected"),
        _flag("--slurm", "submit a job for each arrival (sbatch): this process trains nothing"),
        _option("--workers", "N", "processes that read and check (default: all cores)",
                type=positive),
    ),
    "sweep": (
        _option("--into", "FOLDER", "folder of the run folders; default: runs/sweeps/RECIPE"),
        _option("--results", "FOLDER", "a CSV of each finished run goes there; a run that has one "
                "is not run again"),
        _option("--jobs", "N", "runs at a time on this machine", type=positive, default=1),
        _flag("--slurm", "submit the runs as one array"),
        _option("--throttle", "N", "with --slurm: runs at a time", type=positive),
        _option("--keep", None, "best: when all runs of a method are finished, remove the adapters "
                "of all its settings but the one of the highest mean Last; scores stay",
                choices=("all", "best"), default="all"),
        _flag("--dry-run", "print what would run, run nothing"),
    ),
    "plan": (
        _flag("--json", f"{_JSON}tables"),
        _flag("--quick", "skip the counts of tokens, for which the host must start"),
    ),
    "status": (
        _flag("--json", f"{_JSON}lines"),
        _flag("--follow", "of a sweep: show its table until all runs have ended"),
        _flag("--verify", "also check every file that the run has recorded"),
    ),
    "validate": (_flag("--json", "print the whole recipe as JSON"),),
    "reproduce": (
        _option("--into", "FOLDER", "default: the run's folder with -again"),
        _flag("--compare-only", "run nothing; compare with the folder, which may come from another "
              "machine"),
        _flag("--json", "print the differences as JSON"),
    ),
    "clean": (
        _flag("--yes", "remove the files"),
        _flag("--old-adapters", "include the adapter weights of chunks before the newest finished "
              "one: the run can continue and keeps its scores, but those chunks cannot be "
              "evaluated again"),
    ),
    "ask": (
        _option("words", "[PICTURE ...] QUESTION", 'picture.jpg "What is this?": the last word is '
                "the question, those before it pictures", nargs="+"),
        _option("--max-tokens", "N", "the longest answer; default: the recipe's "
                "eval.max_new_tokens", type=positive),
        _flag("--json", f"{_JSON}the answer"),
    ),
    "chat": (_option("words", "PICTURE", "of the first question", nargs="*", default=[]),),
    "serve": (
        _option("--port", None, "default: 8000; 0: a free one", type=int, default=8000),
        _option("--host", None, "default: 127.0.0.1, this machine alone; 0.0.0.0: all",
                default="127.0.0.1"),
        _option("--key", None, "clients must send it; $STRLORA_SERVE_KEY does the same and is not "
                "in `ps`"),
    ),
    "export": (
        _option("--to", "FOLDER", "new or empty", required=True),
        _flag("--merged", "write base model and adapter as one model; LoRA and its like only, "
              "since a routed adapter depends on the question"),
        _option("--instruction", "TEXT", "of method strlora_signed: the plain LoRA that the "
                "adapter is for prompts of exactly this text; <image> marks where pictures stand, "
                "by default as in the run's questions"),
        *_PUBLISHED,
    ),
    "push": (
        _option("repository", "OWNER/NAME", "made if it is not there, private"),
        _flag("--dry-run", "print what would go; send nothing"),
        *_PUBLISHED,
    ),
}  # fmt: skip


def _run_options(parser: argparse.ArgumentParser) -> None:
    hidden = {"help": argparse.SUPPRESS}
    what, shown = (parser.add_mutually_exclusive_group() for _ in range(2))
    _add(
        what,
        _flag("--validate", "the same as the command validate"),
        _flag("--status", "the same as the command status"),
        _flag("--slurm", "submit the run to SLURM (sbatch)"),
    )
    text = (
        "print the commands of a chunk, as this machine would run them, and what it lacks; with "
        "--slurm the job file, the sbatch command and what the cluster says of it; nothing is run "
        "or written"
    )
    _add(parser, _flag("--dry-run", text))
    text = "with --dry-run: which chunk; default: the first"
    _add(shown, _option("--chunk", "N", text, type=int))
    _add(shown, _flag("--all", "with --dry-run: all chunks"))
    text = "when the host fails, print its whole log instead of the cause alone"
    _add(parser, _flag("--verbose", text))
    _add(parser, *((axis, hidden) for axis in AXES))  # a message names sweep
    text = "N jobs, each starting after the one before"
    chain = _option("--chain", "N", text, type=positive, default=1)
    _add(parser.add_argument_group("with --slurm"), chain)
    text = "train all chunks; the same command without this option evaluates them later"
    _add(parser, _flag("--train-only", text))
    # Of a run that a sweep starts: an array's task finds its overrides in a line of a file.
    _add(parser, _flag("--of-sweep", argparse.SUPPRESS))
    _add(parser, ("--cells", hidden), ("--cell", {**hidden, "type": int}))


def _axis_options(parser: argparse.ArgumentParser) -> None:
    text = (
        "any key of the recipe, or scale (factor on the first rate) and later (later rate as a "
        "share of the first's); repeat it for further axes"
    )
    _add(
        parser.add_argument_group("what is varied (default: the file's block sweep)"),
        _option("--methods", "a,b", "files of recipes/methods/"),
        _option("--seeds", "0-4,7", "of the model and of the samples' order"),
        _option("--stream-seeds", "0,1", "data.seed: a stream of its own for each"),
        _option("--grid", "KEY=V,V", text, action="append", default=[]),
    )


if __name__ == "__main__":
    parse(sys.argv[1:])
