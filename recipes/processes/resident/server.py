"""Keeps imports and base model in memory; each job is a fork of it.

Started as `python -m recipes.processes.resident.server`.

A job is a host command. It runs `swift.cli.sft` or `swift.cli.infer` as `python -m` would, in a
process of its own with its own log, so that signals, kills and memory are as without this worker;
what it need not do again is import the host and read the base model. Requests are JSON lines on
standard input, replies on standard output, see messages.py.

A job of several processes is a leader and its ranks (ranks.py), all forked from here. This
process itself never touches a GPU, since its forks could not then.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TextIO

from recipes.processes.process_tree import die_with
from recipes.processes.resident.messages import Missing, Reply, Request
from recipes.processes.resident.ranks import rank_environment, run_ranks

if TYPE_CHECKING:  # the host is imported by prepare(), once the environment is set
    from recipes.swift_plugins.resident_models import BaseModels

# Packages whose modules are worth having before a job starts; never a plug-in of a job.
_HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "swift")


def run_job(job: Request, models: BaseModels, report: int, rank: int | None = None) -> NoReturn:
    """The life of a forked process: its environment and the host, and what it was missing.

    `rank` is one of several processes, of which the first reports; None: it is the only one.
    """
    before, missed = set(sys.modules), list[str]()
    code = 1
    try:
        # The worker was started for another job, whose settings must not leak into this one.
        os.environ.clear()
        os.environ.update(job["environment"])
        if rank is not None:
            os.environ.update(rank_environment(rank, job["processes"] or 1))
        import torch

        # OMP_NUM_THREADS was read when the worker imported torch.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        models.install(missed, quiet=bool(rank))
        name = f"swift.cli.{job['kind']}"
        sys.argv = [name, *job["arguments"]]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, reported as Python would
        sys.excepthook(*sys.exc_info())  # torch's own names the rank in every line
    # os._exit, since a fork must never return into the worker's loop, calls and flushes nothing.
    with suppress(Exception):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    new = [m for m in sys.modules.keys() - before if m.split(".")[0] in _HEAVY]
    missing: Missing = {"modules": sorted(new), "models": missed}
    if not rank:
        with suppress(OSError):
            os.write(report, json.dumps(missing).encode())
    os._exit(code)


def start_job(job: Request, models: BaseModels) -> tuple[int, int]:
    """Forks a job; returns its process id and where its report can be read."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.setsid()  # signals to its group mean this job and not the worker
    die_with(parent)
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    if job["processes"] is None:
        run_job(job, models, writing)
    code = run_ranks(job["processes"], partial(run_job, job, models, writing))
    os._exit(code)


def end_job(pid: int, reading: int) -> tuple[int, Missing]:
    """Waits for a job; returns its exit code (negative: the signal) and what it was missing."""
    # To the end of the pipe before waiting: a job whose report fills the pipe would wait for us.
    text = b""
    while block := os.read(reading, 1 << 16):
        text += block
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text or '{"modules": [], "models": []}')


def get_ready(missing: Missing, models: BaseModels) -> None:
    """Imports and loads what the last job had to import and load for itself."""
    for name in missing["modules"]:
        with suppress(Exception):  # a module that needs what only the job had
            importlib.import_module(name)
    for key in missing["models"]:
        try:
            models.load(key)
        except Exception:  # noqa: BLE001 - jobs keep loading it themselves
            traceback.print_exc()


def prepare() -> BaseModels:
    """Imports the host; returns the place of base models, which is empty.

    This process never computes in parallel, since its forks could not then.
    """
    import torch

    torch.set_num_threads(1)
    importlib.import_module("recipes.swift_plugins.training")  # refuses a model's own code here too
    importlib.import_module("swift.pipelines")
    from recipes.swift_plugins.resident_models import BaseModels

    return BaseModels()


def serve(requests: TextIO, replies: TextIO) -> None:
    """Runs jobs one after the other until standard input ends."""

    def reply(content: Reply) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    models = prepare()
    for line in requests:
        pid, report = start_job(json.loads(line), models)
        reply({"pid": pid})
        code, missing = end_job(pid, report)
        reply({"code": code})
        # After the reply: the orchestrator works on the result while this one loads.
        get_ready(missing, models)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whether there is a GPU is asked of the driver's library: the runtime, once asked, would not
    # work in forks.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    serve(sys.stdin, channel)
