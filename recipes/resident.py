"""`python -m recipes.resident`: keeps imports and base model in memory; each job is a fork of it.

A job is a host command. It runs `swift.cli.sft` or `swift.cli.infer` as `python -m` would, in a
process of its own with its own log, so that signals, kills and memory are as without this worker;
what it need not do again is import the host and read the base model. Requests are JSON lines on
standard input, replies on standard output: {"pid": n} when a job starts, {"code": n} when it ends.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import random
import runpy
import signal
import sys
import traceback
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn, TextIO

# Packages whose modules are worth having before a job starts; never a plug-in of a job.
_HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "swift")
_PR_SET_PDEATHSIG = 1


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
            key = key_of(wanted)
            if key is None or not wanted.get("load_model", True):
                return load(**wanted)
            if key not in self.loaded:
                missed.append(key)
                return load(**wanted)
            model, processor = self.loaded[key]
            return on_device(model, wanted.get("device_map")), processor

        base_args.get_model_processor = get_model_processor

    def load(self, key: str) -> None:
        """Loads a model into main memory as the host would.

        One whose loading draws random numbers is not kept: jobs would go on from another state.
        """
        import torch
        from swift.model import get_model_processor

        wanted = json.loads(key)
        wanted["torch_dtype"] = getattr(torch, wanted["torch_dtype"].removeprefix("torch."))
        before = random_state()
        found = get_model_processor(**wanted, device_map="cpu")
        if random_state() == before:
            self.loaded[key] = found


def key_of(wanted: dict[str, Any]) -> str | None:
    """What decides the loaded weights, as JSON; None when it cannot be said in JSON."""
    known = {k: v for k, v in wanted.items() if v is not None and k != "device_map"}
    known["torch_dtype"] = str(known.get("torch_dtype"))
    try:
        return json.dumps(known, sort_keys=True) if known["torch_dtype"] != "None" else None
    except TypeError:
        return None


def on_device(model: Any, device_map: Any) -> Any:
    """The model where the host would have put it, which is one device."""
    from swift.model.utils import get_default_device_map

    target = device_map or get_default_device_map()
    if isinstance(target, dict):
        target = target[""]
    if str(target) in ("cpu", "None"):
        return model
    model.to(target)
    model.hf_device_map = {"": target}
    return model


def random_state() -> tuple[Any, ...]:
    """The state of every generator that the host seeds."""
    import numpy as np
    import torch

    drawn = np.random.get_state(legacy=False)
    return random.getstate(), repr(drawn), torch.get_rng_state().numpy().tobytes()


def run_job(job: dict[str, Any], models: BaseModels, report: int) -> NoReturn:
    """The life of a forked job: its log, its environment, the host, and what it was missing."""
    before, missed = set(sys.modules), list[str]()
    code = 1
    try:
        os.environ.clear()
        os.environ.update(job["environment"])
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        models.install(missed)
        name = f"swift.cli.{job['kind']}"
        sys.argv = [name, *job["arguments"]]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, told as Python tells it
        traceback.print_exc()
    with suppress(Exception):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    new = [m for m in sys.modules.keys() - before if m.split(".")[0] in _HEAVY]
    text = json.dumps({"modules": sorted(new), "models": missed})
    with suppress(OSError):
        os.write(report, text.encode())
    os._exit(code)


def start_job(job: dict[str, Any], models: BaseModels) -> tuple[int, int]:
    """Forks a job; returns its process id and where its report can be read."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    run_job(job, models, writing)


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
    importlib.import_module("recipes.strlora_host_plugin")  # refuses a model's own code here too
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
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    serve(sys.stdin, channel)
