"""Keeps imports and base model in memory; each job is a fork of it.

Started as `python -m recipes.processes.resident.host`.

A job is a host command. It runs `swift.cli.sft` or `swift.cli.infer` as `python -m` would, in a
process of its own with its own log, so that signals, kills and memory are as without this worker;
what it need not do again is import the host and read the base model. Requests are JSON lines on
standard input, replies on standard output: {"pid": n} when a job starts, {"code": n} when it ends.

A job of several processes is a leader and its ranks (ranks.py), all forked from here. This
process itself never touches a GPU, since its forks could not then.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import os
import runpy
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any, NoReturn, TextIO

from recipes.processes.resident.ranks import die_with, rank_environment, run_ranks
from recipes.swift_plugins import sample_cache

# Packages whose modules are worth having before a job starts; never a plug-in of a job.
_HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "swift")


class BaseModels:
    """The base models that jobs have asked the host for, by what they asked with."""

    def __init__(self) -> None:
        self.loaded: dict[str, tuple[Any, Any]] = {}

    def install(self, missed: list[str]) -> None:
        """Gives the host what is loaded; what is not is loaded by the host and noted in `missed`.

        Only in a job: it changes the model, and its process has a copy of its own.
        """
        from swift.arguments.base_args import base_args

        load = base_args.get_model_processor

        def get_model_processor(**wanted: Any) -> tuple[Any, Any]:
            key, device = key_of(wanted), single_device(wanted.get("device_map"))
            if key is None or device is None or not wanted.get("load_model", True):
                return load(**wanted)
            if key not in self.loaded:
                missed.append(key)
                return load(**wanted)
            model, processor = self.loaded[key]
            return on_device(model, device), processor

        base_args.get_model_processor = get_model_processor

    def load(self, key: str) -> None:
        """Loads a model into main memory as the host would.

        One whose loading draws random numbers is not kept: jobs would go on from another state.
        """
        import torch
        from swift.model import get_model_processor

        wanted = json.loads(key)
        wanted["torch_dtype"] = getattr(torch, wanted["torch_dtype"].removeprefix("torch."))
        before = sample_cache.random_state()
        found = get_model_processor(**wanted, device_map="cpu")
        if sample_cache.random_state() == before:
            self.loaded[key] = found


def key_of(wanted: dict[str, Any]) -> str | None:
    """What decides the loaded weights, as JSON; None when it cannot be said in JSON."""
    known = {k: v for k, v in wanted.items() if v is not None and k != "device_map"}
    known["torch_dtype"] = str(known.get("torch_dtype"))
    try:
        return json.dumps(known, sort_keys=True) if known["torch_dtype"] != "None" else None
    except TypeError:
        return None


def single_device(device_map: Any) -> str | None:
    """The one device where the host would put the model, a rank's own GPU for example.

    None where it would split it over several, or over the processes (ZeRO-3).
    """
    from swift.model.utils import get_default_device_map

    target = device_map or get_default_device_map()
    if isinstance(target, dict):
        target = target[""] if target.keys() == {""} else None
    return None if target in (None, "auto", "balanced", "sequential") else str(target)


def on_device(model: Any, device: str) -> Any:
    """The model on a device, as the host would have loaded it there."""
    if device != "cpu":
        model.to(device)
        model.hf_device_map = {"": device}
    return model


def run_job(
    job: dict[str, Any], models: BaseModels, report: int, rank: int | None = None
) -> NoReturn:
    """The life of a forked process: its environment and the host, and what it was missing.

    `rank` is one of several processes, of which the first reports; None: it is the only one.
    """
    before, missed = set(sys.modules), list[str]()
    code = 1
    try:
        os.environ.clear()
        os.environ.update(job["environment"])
        if rank is not None:
            os.environ.update(rank_environment(rank, job["processes"]))
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        prepare_output(quiet=bool(rank))
        models.install(missed)
        name = f"swift.cli.{job['kind']}"
        sys.argv = [name, *job["arguments"]]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, told as Python tells it
        sys.excepthook(*sys.exc_info())  # torch's own names the rank in every line
    with suppress(Exception):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    new = [m for m in sys.modules.keys() - before if m.split(".")[0] in _HEAVY]
    text = json.dumps({"modules": sorted(new), "models": missed})
    if not rank:
        with suppress(OSError):
            os.write(report, text.encode())
    os._exit(code)


def prepare_output(quiet: bool) -> None:
    """Lines reach the log as they are written; `quiet` as the host is on ranks above 0."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if quiet:
        from swift.utils.logger import logger, ms_logger

        logger.setLevel(logging.ERROR)
        ms_logger.setLevel(logging.ERROR)


def start_job(job: dict[str, Any], models: BaseModels) -> tuple[int, int]:
    """Forks a job; returns its process id and where its report can be read."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.setsid()
    die_with(parent)
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    if job["processes"] is None:
        run_job(job, models, writing)
    code = run_ranks(job["processes"], partial(run_job, job, models, writing))
    os._exit(code)


def end_job(pid: int, reading: int) -> tuple[int, dict[str, list[str]]]:
    """Waits for a job; returns its exit code (negative: the signal) and what it was missing."""
    text = b""
    while block := os.read(reading, 1 << 16):
        text += block
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text or '{"modules": [], "models": []}')


def get_ready(missing: dict[str, list[str]], models: BaseModels) -> None:
    """Imports and loads what the last job had to import and load for itself."""
    for name in missing["modules"]:
        with suppress(Exception):  # a module that needs what only the job had
            importlib.import_module(name)
    for key in missing["models"]:
        try:
            models.load(key)
        except Exception:  # noqa: BLE001 - jobs go on loading it themselves
            traceback.print_exc()


def prepare() -> ModuleType:
    """Imports the host; this process never computes in parallel, since its forks could not then."""
    import torch

    torch.set_num_threads(1)
    os.environ.pop(sample_cache.FOLDER, None)  # each job brings its own
    importlib.import_module("recipes.swift_plugins.training")  # refuses a model's own code here too
    return importlib.import_module("swift.pipelines")


def serve(requests: TextIO, replies: TextIO) -> None:
    """Runs jobs one after the other until standard input ends."""

    def reply(**words: Any) -> None:
        replies.write(json.dumps(words) + "\n")
        replies.flush()

    models = BaseModels()
    prepare()
    for line in requests:
        pid, report = start_job(json.loads(line), models)
        reply(pid=pid)
        code, missing = end_job(pid, report)
        reply(code=code)
        get_ready(missing, models)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whether there is a GPU is asked of the driver's library: the runtime, once asked, would not
    # work in forks.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    serve(sys.stdin, channel)
