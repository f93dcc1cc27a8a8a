"""saved.py judges an adapter's file without torch: whole, finite, with all that it must hold."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from strlora_tuner.methods import folders, options_class
from strlora_tuner.methods.ewc.state_file import FILE, check_state_file
from strlora_tuner.options import AdapterOptions
from strlora_tuner.saved import (
    CONFIG,
    INSIDE,
    LAYER,
    STATE,
    WEIGHTS,
    AdapterError,
    check_adapter,
    check_finite,
    read_shapes,
)
from tests.strlora_tuner.models import GOLDEN, adapted, text_model

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def test_every_method_names_all_that_it_saves():
    keys = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for method in folders():
        names = {line.split()[0] for line in keys[f"{method}/text"]}
        options = options_class(method)
        layer = {name.partition(LAYER)[2] for name in names if LAYER in name}
        state = {name.partition(STATE)[2] for name in names if STATE in name}
        assert layer == set(options.layer_tensors), method
        assert state == set(options.state_tensors), method


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(tmp_path, kind, value):
    tensors = {f"plain.{other}": torch.ones(3, 5).to(other) for other in (*KINDS, *WHOLE_NUMBERS)}
    tensors["largest"] = torch.full((7,), torch.finfo(kind).max, dtype=kind)
    tensors["empty"] = torch.zeros(0, 4)
    path = tmp_path / WEIGHTS
    save_file(tensors, path)
    check_finite(path)
    for name in ("largest", f"plain.{kind}"):
        bad = {**tensors, name: tensors[name].clone()}
        bad[name].view(-1)[2] = value
        save_file(bad, path)
        with pytest.raises(
            AdapterError, match=re.escape(f"{path} holds NaN or infinity in {name}")
        ):
            check_finite(path)


def test_a_file_that_is_not_whole_is_named(tmp_path):
    path = tmp_path / WEIGHTS
    with pytest.raises(AdapterError, match="is missing; bring back an undamaged copy"):
        read_shapes(path)
    save_file({"a": torch.ones(64)}, path)
    content = path.read_bytes()
    assert read_shapes(path) == {"a": (64,)}
    cut = [content[:-1], content[:4], content[:40], b"", content + b"\0"]
    for part in cut:
        path.write_bytes(part)
        with pytest.raises(AdapterError, match=re.escape(f"{path} is damaged")):
            read_shapes(path)
        with pytest.raises(AdapterError, match="is damaged"):
            check_finite(path)
    save_file({}, path)
    with pytest.raises(AdapterError, match="holds no tensors"):
        read_shapes(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of one adapter of each method."""
    root = tmp_path_factory.mktemp("saved")
    for method in folders():
        adapted(text_model(), method).save_pretrained(root / method)
    return root


@pytest.mark.parametrize("method", folders())
def test_an_adapter_lacks_nothing(saved, tmp_path, method):
    folder = shutil.copytree(saved / method, tmp_path / "adapter")
    options = options_class(method)
    check_adapter(folder, options, previous=saved / method)
    tensors = load_file(folder / WEIGHTS)
    first = next(name.partition(LAYER)[0] for name in sorted(tensors) if LAYER in name)
    assert first.startswith(INSIDE)
    gone = [f"{first}{LAYER}{part}" for part in options.layer_tensors]
    gone += [f"base_model.{STATE}{part}" for part in options.state_tensors]
    for name in gone:
        save_file({k: v for k, v in tensors.items() if k != name}, folder / WEIGHTS)
        with pytest.raises(AdapterError, match=re.escape(name.rpartition(".")[2])):
            check_adapter(folder, options)
    save_file({**tensors, "more": torch.ones(1)}, folder / WEIGHTS)
    check_adapter(folder, options)
    with pytest.raises(AdapterError, match=r"tensors of the chunk before: 0 missing .* 1 new"):
        check_adapter(folder, options, previous=saved / method)
    save_file({"lora_A": torch.ones(1)}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="no layer with experts"):
        check_adapter(folder, options)
    check_adapter(folder, AdapterOptions)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), ("{", "cannot be read"), ("[]", "holds a list, expected an object")],
)
def test_an_adapter_without_its_configuration(saved, tmp_path, content, message):
    folder = shutil.copytree(saved / "moelora", tmp_path / "adapter")
    (folder / CONFIG).unlink()
    if content is not None:
        (folder / CONFIG).write_text(content, encoding="utf-8")
    with pytest.raises(AdapterError, match=f"{CONFIG} {message}"):
        check_adapter(folder, None)


def test_the_state_of_ewc(tmp_path):
    one = torch.ones(2)
    forms = {True: {"anchor.a": one, "fisher.a": 2 * one}, False: {"anchor.a": one}}
    with pytest.raises(AdapterError, match="is missing, but the recipe uses ewc"):
        check_state_file(tmp_path, fisher=True)
    for fisher, tensors in forms.items():
        save_file(tensors, tmp_path / FILE)
        check_state_file(tmp_path, fisher)
        with pytest.raises(AdapterError, match="holds 1 weights and"):
            check_state_file(tmp_path, not fisher)
    save_file({"anchor.a": one, "fisher.a": one * float("inf")}, tmp_path / FILE)
    with pytest.raises(AdapterError, match=r"holds NaN or infinity in fisher\.a"):
        check_state_file(tmp_path, fisher=True)
