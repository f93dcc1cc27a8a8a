"""Encoded samples kept in a folder by their content: `launcher.sample_cache`.

The host encodes a sample (tokens, labels, pixels) whenever it is read: a question again after every
chunk, a training sample again in every run of a comparison. Here the result is kept under the
SHA-256 of all that decides it: the sample with the bytes of its pictures, the host's template,
tokenizer and picture processor, their settings and versions. What cannot be named this way, or
draws random numbers, is encoded as without a cache.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import importlib
import json
import logging
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER, LIMIT = "SAMPLE_CACHE", "SAMPLE_CACHE_GB"  # of the environment; STRLORA_* are options
_DIGEST = 32  # bytes of SHA-256 before each file's safetensors
_TRIMMED_TO = 0.8  # of the limit
_VERSIONS = ("ms-swift", "transformers", "tokenizers", "torch", "torchvision", "pillow")
# What the host keeps in a template beside its settings; processor and model_info: see _processor.
_NO_SETTINGS = {"model", "dummy_model", "processor", "model_info", "model_meta", "config"}
_NO_SETTINGS |= {"_handles", "_deepspeed_initialize", "_loss_scale_cache", "_agent_template_cache"}
_NO_SETTINGS |= {"root_image_dir"}  # where pictures are, not what they show
_NO_SETTINGS_OF_MODEL = {"model_dir", "model_name", "config"}
logger = logging.getLogger("swift")


class NotCacheable(Exception):
    """A sample whose encoding is decided by something that has no known content, or not kept."""


class SampleCache:
    """Encoded samples as files; several processes may share it, a damaged file counts as none.

    Args:
        folder: made when missing.
        limit: bytes; a sample that does not fit any more is not kept.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder.expanduser(), limit
        self.found = self.encoded = 0
        self._room: float | None = None  # counted when something is first written
        self._told = set[str]()

    def read(self, key: str) -> dict[str, Any] | None:
        """Returns the sample kept under `key`, or None."""
        from safetensors.torch import load

        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, content = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            self.tell(f"{path} is damaged; its sample is encoded again")
            return None
        tensors, plain = load(content), _plain(content)
        return {name: tensors[name] if value is None else value for name, value in plain.items()}

    def write(self, key: str, sample: dict[str, Any]) -> None:
        """Keeps a sample.

        Raises:
            NotCacheable: it holds what is neither a tensor in main memory nor JSON.
            OSError: the folder cannot be written to.
        """
        import torch
        from safetensors.torch import save

        tensors = {name: v.contiguous() for name, v in sample.items() if torch.is_tensor(v)}
        plain = {name: None if name in tensors else value for name, value in sample.items()}
        for name, value in plain.items():
            if name not in tensors and (value is None or not _is_json(value)):
                raise NotCacheable(f"`{name}` of an encoded sample is a {type(value).__name__}")
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            raise NotCacheable("encoded on the accelerator")
        content = save(tensors, {"sample": json.dumps(plain)})
        if self._room is None:
            self._room = self.limit - sum(size for _, size, _ in _files(self.folder))
        if self._room < len(content):
            self.tell(f"{self.folder} is full (launcher.sample_cache_gb); no more is kept")
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._room -= len(content) + _DIGEST

    def tell(self, words: str) -> None:
        """Warns, once a process."""
        if words not in self._told:
            self._told.add(words)
            logger.warning(f"sample cache: {words}")

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.sample"


def _plain(content: bytes) -> dict[str, Any]:
    """What of a kept sample is no tensor (None in their places), from a safetensors' header."""
    end = 8 + int.from_bytes(content[:8], "little")
    plain: dict[str, Any] = json.loads(json.loads(content[8:end])["__metadata__"]["sample"])
    return plain


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def trim(folder: Path, limit: float) -> None:
    """Takes a cache of more than `limit` bytes to 80 % of it: what was used longest ago goes."""
    files = sorted(_files(folder.expanduser()))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in files:
        if total <= _TRIMMED_TO * limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, size and path of all kept samples, and of what a killed process left of one."""
    for path in folder.glob("??/*"):
        try:
            known = path.stat()
        except FileNotFoundError:  # another process trims
            continue
        yield known.st_mtime, known.st_size, path


# What decides how a sample is encoded -------------------------------------------------------------


def key_of(template: Any, sample: dict[str, Any], with_length: bool) -> str:
    """The name of a sample as the host's `template` encodes it: 64 hexadecimal digits.

    Raises:
        NotCacheable: the content of a part cannot be told.
    """
    content = {name: value for name, value in sample.items() if value not in (None, [], {})}
    content.pop("dataset", None)  # the file that the host read it from
    pictures = [_picture(image) for image in content.pop("images", [])]
    if content.keys() & {"videos", "audios"}:
        raise NotCacheable("videos and audio are not read")
    parts = [_settings(template), pictures, content, with_length]
    text = json.dumps(parts, sort_keys=True, default=_words)
    return hashlib.sha256(text.encode()).hexdigest()


def _words(value: Any) -> str:
    """A value that JSON does not know, unless its words hold nothing but an address in memory."""
    words = repr(value)
    if " at 0x" in words:
        raise NotCacheable(f"the content of {words} cannot be told")
    return words


def _picture(image: Any) -> str:
    """SHA-256 of a picture's file as the host finds it; `image` may be its {"bytes", "path"}."""
    from swift.template.vision_utils import load_file

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and not image.strip().startswith("http"):
        try:
            image = load_file(image).getvalue()
        except (OSError, ValueError) as error:  # the host says what is wrong with it
            raise NotCacheable(f"picture {image[:200]}: {error}") from error
    if not isinstance(image, bytes):
        raise NotCacheable(f"a picture as {type(image).__name__}, or from an address")
    return hashlib.sha256(image).hexdigest()


def _settings(template: Any) -> list[Any]:
    """All of a template that decides how it encodes."""
    modules = {type(template).__module__, type(template.loss_scale).__module__}
    if not all(module.startswith("swift.") for module in modules):
        raise NotCacheable(f"a template of {sorted(modules)}, which no version names")
    if template.mode not in ("train", "transformers") or template.task_type != "causal_lm":
        raise NotCacheable(f"template in mode {template.mode}, task {template.task_type}")
    if not template.remove_unused_columns:
        raise NotCacheable("remove_unused_columns is false")
    own = {name: value for name, value in vars(template).items() if name not in _NO_SETTINGS}
    environment = {name: os.environ.get(name) for name in _environment_names()}
    kind = type(template).__qualname__
    return [kind, own, environment, _processor(template.processor)]


@functools.lru_cache(maxsize=4)
def _processor(processor: Any) -> str:
    """Digest of tokenizer, picture processor, model configuration and versions."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotCacheable(f"the tokenizer {type(tokenizer).__name__} cannot be written as JSON")
    info = processor.model_info
    model = {name: v for name, v in vars(info).items() if name not in _NO_SETTINGS_OF_MODEL}
    parts = [
        backend.to_str(),
        repr(tokenizer).replace(tokenizer.name_or_path, ""),
        str(getattr(processor, "chat_template", None)),
        "" if processor is tokenizer else json.dumps(processor.to_dict(), default=_words),
        info.config.to_json_string(use_diff=False).replace(info.model_dir, ""),
        json.dumps(model, default=_words),
        str([version(name) for name in _VERSIONS]),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _environment_names() -> list[str]:
    """The variables by which the host's templates are told sizes, found in their own source."""
    folder = Path(str(importlib.import_module("swift.template").__file__)).parent
    pattern = re.compile(r"(?:get_env_args|environ\.get)\(\s*'(\w+)'")
    text = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
    return sorted({name.upper() for name in pattern.findall(text)} - {"ROOT_IMAGE_DIR"})


def random_state() -> tuple[Any, ...]:
    """The state of every generator that the host seeds."""
    import numpy as np
    import torch

    drawn: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    keys = drawn["state"].pop("key").tobytes()  # its words would take longer than the encoding
    return random.getstate(), keys, repr(drawn), torch.get_rng_state().numpy().tobytes()


# In the host --------------------------------------------------------------------------------------


def install(folder: Path, gigabytes: float) -> SampleCache:
    """Has the host's templates look into the cache first, in this process and its forks."""
    from swift.template import Template

    cache = SampleCache(folder, gigabytes * 1e9)
    Template.encode = cached(Template.encode, cache)
    atexit.register(_tell_use, cache)
    return cache


def cached(encode: Callable[..., Any], cache: SampleCache) -> Callable[..., Any]:
    """The host's `Template.encode`, asked only for what the cache does not hold."""

    def with_cache(
        self: Any, inputs: Any, return_template_inputs: bool = False, return_length: bool = False
    ) -> Any:
        def plain() -> Any:
            return encode(self, inputs, return_template_inputs, return_length)

        try:
            row = dict(inputs) if isinstance(inputs, dict) else dataclasses.asdict(inputs)
            key = key_of(self, row, return_length)
        except NotCacheable as reason:
            cache.tell(f"encoded as without it: {reason}")
            return plain()
        sample = cache.read(key)
        if sample is not None:
            cache.found += 1
            return sample | _template_inputs(row) if return_template_inputs else sample
        before = random_state()
        sample = plain()
        cache.encoded += 1
        try:
            if not isinstance(sample, dict) or random_state() != before:
                raise NotCacheable("a sample in parts, or encoded by chance")
            cache.write(key, {k: v for k, v in sample.items() if k != "template_inputs"})
        except NotCacheable as reason:
            cache.tell(f"not kept: {reason}")
        except OSError as error:  # without its path: one for all samples
            cache.tell(f"samples cannot be kept in {cache.folder}: {error.strerror}")
        return sample

    return with_cache


def _template_inputs(row: dict[str, Any]) -> dict[str, Any]:
    """What the host's engines ask of a question beside its tokens; its pictures are not opened."""
    from swift.template.template_inputs import TemplateInputs

    return {"template_inputs": TemplateInputs.from_dict(row).chosen}


def _tell_use(cache: SampleCache) -> None:
    if cache.found or cache.encoded:
        total = cache.found + cache.encoded
        print(f"sample cache: {cache.found} of {total} samples were in {cache.folder}", flush=True)
