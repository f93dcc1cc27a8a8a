"""`python -m recipes.cli`: the commands of `bash recipes/run_stream.sh`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from recipes import REPO, UserError
from recipes.arguments import parse


def _not_installed(error: ModuleNotFoundError) -> str:
    return (
        f"the package {error.name} is not installed in {sys.executable}: bash recipes/setup.sh "
        "makes an environment that has everything (.venv, 2 GB)"
    )


try:
    from data_prep.files import print_lines
    from recipes.config.loading import load_recipe
    from recipes.config.problems import RecipeError
    from recipes.config.schema import Recipe
    from recipes.processes.stopping import Stopped, stop_on_signals
    from recipes.target import failure_noted, load_target
except ModuleNotFoundError as lacking:
    sys.exit(_not_installed(lacking))

if TYPE_CHECKING:
    from recipes.use.finished_adapter import FinishedAdapter

DONE, FAILED, BAD_RECIPE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 done, 1 the run failed, 2 the recipe is wrong."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # Taken now: load_target changes the working directory.
    options.where = Path.cwd()  # files that a user names lie there, those of a recipe at the root
    try:
        if options.command == "status" and (code := _sweep_status(options)) is not None:
            return code
        return _COMMANDS[options.command](load_target(options), options)
    except RecipeError as error:
        print(error, file=sys.stderr)
        count = len(error.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in the recipe.", file=sys.stderr)
        return BAD_RECIPE
    except Stopped as stopped:
        text = "finished work is saved, and the same command continues from there"
        _tell(f"\nstopped by {stopped}: {text}")
        return 128 + stopped.number
    except ModuleNotFoundError as error:
        print(f"\nstopped: {_not_installed(error)}", file=sys.stderr)
        return FAILED
    except Exception as error:
        from data_prep.stream import StreamError

        if not isinstance(error, (UserError, StreamError, OSError)):
            raise
        message = _system_text(error) if isinstance(error, OSError) else error
        _tell(f"\nstopped: {message}")
        return FAILED


# Each command imports its own part when it is called: a dry run, validate and status load no torch
# and answer at once (a test holds it).
def _run(recipe: Recipe, options: argparse.Namespace) -> int:
    if options.slurm:
        return _print_all(_submit(recipe, options))
    if options.dry_run:
        from recipes.tools.preview import preview

        return _print_all(preview(recipe, options.chunk, options.all))
    if options.chunk is not None or options.all:
        return _refused("--chunk and --all belong to --dry-run: a run does all chunks")
    from recipes.processes import log_errors

    log_errors.verbose = options.verbose
    with failure_noted(recipe) if options.of_sweep else nullcontext():
        return _train(recipe, options.train_only)


def _submit(recipe: Recipe, options: argparse.Namespace, after: str | None = None) -> Iterable[str]:
    from recipes.run.preflight.all_checks import look_before_start
    from recipes.slurm.submit import Job, submit

    words = (options.word, *options.overrides)
    job = Job(recipe, words, REPO / recipe.folder / "slurm", words)
    findings = look_before_start(recipe, on_submit_host=True)
    return submit(job, findings, options.dry_run, options.chain, after)


def _sweep(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.sweep.sweep_command import sweep

    stop_on_signals()
    return sweep(options.sweep, options, lambda line: print(line, flush=True))


def _sweep_status(options: argparse.Namespace) -> int | None:
    """The table of a sweep, where one is named; None: it is a run."""
    from recipes.sweep.cells import find_sweep
    from recipes.sweep.progress import as_json, follow, read_rows, show

    folder = find_sweep(options.recipe)
    if folder is None:
        return None
    for word in [*options.overrides, *(["--verify"] if options.verify else [])]:
        return _refused(f"{word} is for one run; {folder} is a sweep's folder")
    if options.json and options.follow:
        return _refused("--json prints the table once, --follow until all has ended")
    if options.json:
        return _print_all([as_json(read_rows(folder))])
    # Nothing is at work here: Ctrl-C is how one leaves --follow.
    with suppress(KeyboardInterrupt):
        (follow if options.follow else show)(folder)
    return DONE


def _train(recipe: Recipe, train_only: bool = False) -> int:
    from recipes.run.runner import run
    from recipes.run.terminal import Progress

    stop_on_signals()
    with Progress(recipe.name, recipe.data.chunks) as progress:
        run(recipe, progress, train_only)
    return DONE


def _watch(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.watch.watching import Watch, open_inbox

    inbox = open_inbox(recipe, options.where / options.inbox, options.rest, options.marked)

    def bring_up(now: Recipe) -> None:
        if not options.slurm:
            _train(now)
            return
        _print_all(_submit(now, options, "singleton"))  # jobs of one name wait for each other

    stop_on_signals()
    every = "once" if options.once else f"every {options.poll:g} s; Ctrl-C stops it"
    print(f"[{recipe.name}] looking into {inbox.folder} {every}", flush=True)
    how = options.slurm, inbox, options.skip_bad, options.workers
    Watch(partial(load_recipe, *options.loaded), bring_up, *how).run(options.poll, options.once)
    return DONE


def _validate(recipe: Recipe, options: argparse.Namespace) -> int:
    if options.json:
        return _print_all([recipe.model_dump_json(indent=2)])
    from recipes.run.chunk_data import open_recipe_stream
    from recipes.run.preflight.all_checks import is_submit_host, look_before_start

    valid = f"{options.recipe}: valid ({recipe.title}, {recipe.data.chunks} chunks)"
    found = look_before_start(recipe, is_submit_host(recipe))
    code = _print_all([valid, *(finding.line() for finding in found)])
    if (Path(recipe.data.stream) / "stream.json").is_file():
        open_recipe_stream(recipe)  # refuses more chunks or other tasks than there are
    return code


def _plan(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.tools.method_sizes import sizes_of_methods
    from recipes.tools.plan import make_plan
    from recipes.tools.plan_text import as_text

    # A run folder's recipe is resolved for one method: what others would take is not in it.
    methods = [] if options.of_run else sizes_of_methods(*options.loaded)
    plan = make_plan(recipe, methods, count=not options.quick)
    return _print_all([json.dumps(asdict(plan), indent=2)] if options.json else as_text(plan))


def _status(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.tools.status import as_json, as_text, read_status, verify

    if options.follow:
        return _refused("--follow is for a sweep's folder; this is one run")
    status = read_status(recipe)
    if options.verify:
        status.damaged = list(verify(recipe))
    _print_all([as_json(status)] if options.json else as_text(status))
    return FAILED if status.damaged else DONE


def _report(recipe: Recipe, options: argparse.Namespace) -> int:
    from eval.report import write_report

    folder = Path(recipe.folder)
    if not (folder / "manifest.json").is_file():
        return _refused(f"{folder}: not started; there is nothing to report on", FAILED)
    lines: list[str] = []
    path = write_report(folder, tell=lines.append)
    return _print_all([*lines, f"report: {path}"])


def _reproduce(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.run_folder.state import load_state
    from recipes.tools.reproduce import as_text, differences, expect_chunks, is_same

    first, into = Path(recipe.folder), options.into
    second = (options.where / into).resolve() if into else Path(f"{first}-again")
    if not (first / "manifest.json").is_file():
        return _refused(f"{first}: not started; there is nothing to reproduce", FAILED)
    if second.resolve() == first.resolve():
        return _refused(f"--into {into} is the run itself; name the folder of another run")
    done = load_state(first / "state.json").chunks
    if not any(chunk.trained or chunk.evaluated for chunk in done):
        return _refused(f"{first}: no chunk is done; there is nothing to reproduce", FAILED)
    if options.compare_only and not (second / "manifest.json").is_file():
        text = f"{second}: no manifest.json there; --into names the folder of the run to compare"
        return _refused(text, FAILED)
    if not options.compare_only:
        expect_chunks(recipe)
        start = recipe.start_from and str(first / "chunks/000/adapter")  # copied when it started
        _train(recipe.model_copy(update={"run_dir": str(second), "start_from": start}))
    found = differences(first, second)
    _print_all([json.dumps(found, indent=2)] if options.json else as_text(first, second, found))
    return DONE if is_same(found) else FAILED


def _clean(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.tools.clean import clean

    return _print_all(clean(recipe, options.yes, options.old_adapters))


def _open(recipe: Recipe, options: argparse.Namespace) -> FinishedAdapter:
    from recipes.use.finished_adapter import open_adapter

    model = options.model and str(options.where / options.model)
    return open_adapter(Path(recipe.folder), options.chunk, model, options.cpu)


def _ask(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.use.ask import ask

    *pictures, question = options.words
    if os.path.isfile(options.where / question):
        return _refused(
            f"the question is missing: the last word, {question!r}, is a file; expected the "
            'question behind the pictures, in quotes: "What is this?"'
        )
    adapter = _open(recipe, options)
    stop_on_signals()
    answer = ask(adapter, question, [options.where / p for p in pictures], options.max_tokens)
    # On standard error: standard output holds the answer alone, for pipes.
    _tell("; ".join(filter(None, [adapter.title, answer.adapter])))
    if answer.note:
        _tell(answer.note)
    if answer.expert is not None:
        chunk = f"chunk {answer.expert}" if answer.expert else "what came with start_from"
        _tell(f"the question went to {chunk}")
    if options.json:
        return _print_all([json.dumps(asdict(answer) | {"chunk": adapter.chunk}, indent=2)])
    if answer.finish_reason == "length":
        _tell("the answer was cut: --max-tokens N allows a longer one")
    if not answer.text.strip():
        _tell("the answer is empty")
    return _print_all([answer.text])


def _chat(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.use.chat import chat

    adapter = _open(recipe, options)
    stop_on_signals()
    with suppress(Stopped):
        chat(adapter, [options.where / picture for picture in options.words], options.where)
    return DONE


def _serve(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.use.serve import Server, serve
    from strlora_tuner.options import SERVE_KEY

    adapter, key = _open(recipe, options), options.key or os.environ.get(SERVE_KEY) or None

    def tell(server: Server) -> None:
        asks = "clients must send the key" if key else "no key is asked for"
        print("; ".join(filter(None, [adapter.title, server.adapter])))
        print(f"{server.url}   model: {server.model}   {asks}   Ctrl-C stops it", flush=True)
        put = f"a question alone is put as {server.form.as_text()}"
        _tell("\n".join(filter(None, [put, server.form.note, f"log: {server.log}"])))

    stop_on_signals()
    try:
        serve(adapter, tell, options.host, options.port, key)
    except Stopped as stopped:
        _tell(f"\nserver stopped by {stopped}")
    return DONE


def _export(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.use.export import export

    adapter = _open(recipe, options)
    target = options.where / options.to
    stop_on_signals()
    published = (options.merged, options.base_name, options.licence, options.instruction)
    return _print_all(export(adapter, target, *published))


def _push(recipe: Recipe, options: argparse.Namespace) -> int:
    from recipes.use.push import push

    adapter = _open(recipe, options)
    named = options.base_name, options.licence
    return _print_all(push(adapter, options.repository, options.dry_run, *named))


_COMMANDS: dict[str, Callable[[Recipe, argparse.Namespace], int]] = {
    "run": _run,
    "watch": _watch,
    "sweep": _sweep,
    "plan": _plan,
    "status": _status,
    "validate": _validate,
    "report": _report,
    "reproduce": _reproduce,
    "clean": _clean,
    "ask": _ask,
    "chat": _chat,
    "serve": _serve,
    "export": _export,
    "push": _push,
}


def _print_all(lines: Iterable[str]) -> int:
    print_lines(lines)
    return DONE


def _refused(text: str, code: int = BAD_RECIPE) -> int:
    print(text, file=sys.stderr)
    return code


def _tell(text: str) -> None:
    """Prints on standard error; where the terminal is gone, the exit code alone must say it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


_NO_LOCKS = (
    "this file system has no locks (Lustre without -o flock, NFS without its lock service): set "
    "run_dir on another one, such as the node's own disk, or have it mounted with locks"
)


def _system_text(error: OSError) -> str:
    """The system's message (full disk, read-only folder, ...) and what to do about it."""
    from errno import EACCES, EDQUOT, ENOLCK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS

    advice = {
        ENOSPC: "free some space (the command clean lists what this run no longer needs)",
        EDQUOT: "your quota is used up: free some space (the command clean lists what can go)",
        EROFS: "the folder is read-only: mount it writable or set another run_dir",
        EACCES: "you may not write there: correct the permissions or set another run_dir",
        ENOLCK: _NO_LOCKS,
        ENOSYS: _NO_LOCKS,
        EOPNOTSUPP: _NO_LOCKS,
        EPERM: "you may not write there: correct the permissions or set another run_dir",
    }.get(error.errno or 0)
    fix = f"; {advice}, then repeat the command" if advice else ""
    return f"{error}; finished work is saved{fix}"


if __name__ == "__main__":
    sys.exit(main())
