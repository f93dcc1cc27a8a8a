"""host_api.py: a name of the host that is gone stops the plug-in that needs it, with a reason."""

from __future__ import annotations

import importlib
from importlib.metadata import version

import pytest

from strlora_tuner import host_api

EVERY = [(group, name) for group, names in host_api.TABLE.items() for name in names]


def holder_of(path):
    """Returns the object whose own attribute the last part of `path` is, and that part."""
    module, _, inside = path.partition(":")
    holder, *rest = importlib.import_module(module), *inside.split(".")
    for part in rest[:-1]:
        holder = getattr(holder, part)
    for kind in getattr(holder, "__mro__", [holder]):
        if rest[-1] in vars(kind):
            return kind, rest[-1]
    return holder, rest[-1]


@pytest.mark.parametrize(("group", "name"), EVERY, ids=[f"{g}-{n.path}" for g, n in EVERY])
def test_a_renamed_name_stops_the_run(group, name, monkeypatch):
    if group == "deepspeed":
        pytest.importorskip("deepspeed")
    host_api.check(group)
    holder, last = holder_of(name.path)
    if name.mentions:  # there, but it no longer knows that name
        monkeypatch.setattr(holder, last, type(last, (), {}))
    else:
        monkeypatch.delattr(holder, last)
    with pytest.raises(ImportError) as caught:
        host_api.check(group)
    message = str(caught.value)
    assert name.path in message
    assert name.protects in message
    assert f"ms-swift {version('ms-swift')}, transformers {version('transformers')}" in message
    assert "requirements.txt" in message


def test_only_what_the_table_protects_is_replaced(monkeypatch):
    from swift.pipelines.infer.infer import SwiftInfer
    from transformers import trainer

    path = "transformers.trainer:rotate_checkpoints"
    before = trainer.rotate_checkpoints
    assert host_api.replace(path, len) is before
    assert trainer.rotate_checkpoints is len
    host_api.replace(path, before)
    assert host_api.replace("swift.pipelines.infer.infer:SwiftInfer.infer", len) is None
    assert SwiftInfer.infer is len
    del SwiftInfer.infer
    with pytest.raises(KeyError, match="set_seed is not in the table"):
        host_api.replace("transformers.trainer:set_seed", len)
    monkeypatch.delattr(trainer, "rotate_checkpoints")
    with pytest.raises(ImportError, match="the newest checkpoint is kept"):
        host_api.replace(path, len)
    assert not hasattr(trainer, "rotate_checkpoints"), "nothing was assigned"
