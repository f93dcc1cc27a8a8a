"""What the resident worker keeps for the host's jobs: base models in main memory."""

from __future__ import annotations

import json
import logging
import random
import sys
from typing import Any

import numpy as np
import torch
from swift.arguments.base_args import base_args
from swift.model import get_model_processor as load_model
from swift.model.utils import get_default_device_map
from swift.utils.logger import logger, ms_logger

from strlora_tuner import host_api

host_api.check("resident")
LOAD = "swift.arguments.base_args.base_args:get_model_processor"


class BaseModels:
    """The base models that jobs have asked the host for, by the arguments of their loading."""

    def __init__(self) -> None:
        self.loaded: dict[str, tuple[Any, Any]] = {}

    def install(self, missed: list[str], quiet: bool) -> None:
        """Gives the host what is loaded; what is not is loaded by the host and noted in `missed`.

        Only in a job: it changes the model, and its process has a copy of its own. `quiet`: the job
        is a rank above 0, which logs errors only.
        """
        _prepare_output(quiet)
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

        host_api.replace(LOAD, get_model_processor)

    def load(self, key: str) -> None:
        """Loads a model into main memory as the host would.

        One whose loading draws random numbers is not kept: jobs would start from another state.
        """
        wanted = json.loads(key)
        wanted["torch_dtype"] = getattr(torch, wanted["torch_dtype"].removeprefix("torch."))
        before = random_state()
        loaded = load_model(**wanted, device_map="cpu")
        if random_state() == before:
            self.loaded[key] = loaded


def key_of(wanted: dict[str, Any]) -> str | None:
    """What decides the loaded weights, as JSON; None when JSON cannot hold it."""
    known = {k: v for k, v in wanted.items() if v is not None and k != "device_map"}
    # A dtype is no JSON; load() turns the word back.
    known["torch_dtype"] = str(known.get("torch_dtype"))
    try:
        return json.dumps(known, sort_keys=True) if known["torch_dtype"] != "None" else None
    except TypeError:
        return None


def single_device(device_map: Any) -> str | None:
    """The one device where the host would put the model, a rank's own GPU for example.

    None where it would split it over several, or over the processes (ZeRO-3).
    """
    target = device_map or get_default_device_map()
    if isinstance(target, dict):
        target = target[""] if target.keys() == {""} else None
    return None if target in (None, "auto", "balanced", "sequential") else str(target)


def on_device(model: Any, device: str) -> Any:
    """The model on a device, as the host would have loaded it there."""
    if device != "cpu":
        model.to(device)
        model.hf_device_map = {"": device}  # as loading with a device_map leaves it
    return model


def random_state() -> tuple[object, ...]:
    """The state of every generator that the host seeds."""
    drawn: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    words = drawn["state"].pop("key").tobytes()
    return random.getstate(), words, repr(drawn), torch.get_rng_state().numpy().tobytes()


def _prepare_output(quiet: bool) -> None:
    """Lines reach the log as they are written; `quiet` as the host is on ranks above 0."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if quiet:
        logger.setLevel(logging.ERROR)
        ms_logger.setLevel(logging.ERROR)
