"""A renamed name of the host stops a plug-in before anything runs unprotected."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import REPO
from recipes.run.commands import HOST_PLUGIN, INFER_PLUGIN, POOL_PLUGIN

pytest.importorskip("swift")


def load(path: Path) -> None:
    """Runs a plug-in's file as the host does, under a name of its own."""
    spec = importlib.util.spec_from_file_location("plugin_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("plugin", "module", "name", "protects"),
    [
        (
            HOST_PLUGIN,
            "transformers.dynamic_module_utils",
            "get_cached_module_file",
            "Python files that come with a model are not run",
        ),
        (
            HOST_PLUGIN,
            "transformers.trainer",
            "rotate_checkpoints",
            "the newest checkpoint is kept",
        ),
        (
            HOST_PLUGIN,
            "swift.model.register:ModelLoader",
            "default_trust_remote_code",
            "Python files that come with a model are not run",
        ),
        (HOST_PLUGIN, "swift.utils.shutdown_manager", "ShutdownManager", "/tmp/stop"),
        (
            INFER_PLUGIN,
            "swift.pipelines.infer.infer:SwiftInfer",
            "infer_dataset",
            "the answers of all processes are written",
        ),
    ],
)
def test_a_renamed_name_stops_the_plugin(
    plugin: Path, module: str, name: str, protects: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for imported in ("swift.callbacks.deepspeed_elastic", "swift.model", "swift.pipelines.infer"):
        importlib.import_module(imported)
    path, _, owner = module.partition(":")
    holder = importlib.import_module(path)
    monkeypatch.delattr(getattr(holder, owner) if owner else holder, name)
    with pytest.raises(ImportError, match=name) as caught:
        load(plugin)
    assert protects in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["pool", "inference pool", "pool inference"])
def test_inference_is_installed_once_whatever_the_order(order: str) -> None:
    files = {"pool": POOL_PLUGIN, "inference": INFER_PLUGIN}
    words = [str(files[word]) for word in order.split()]
    code = """
import sys
from swift.pipelines.infer.infer import SwiftInfer
from swift.utils import import_external_file
for path in sys.argv[1:]:
    import_external_file(path)
assert SwiftInfer.infer.__name__ == "route_and_answer", SwiftInfer.infer
inner = SwiftInfer.infer_dataset.__closure__[0].cell_contents
assert inner.__module__ == "swift.pipelines.infer.infer", inner
"""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
