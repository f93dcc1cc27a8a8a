"""Which adapter of a run is used: a chunk's, checked before anything is loaded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recipes import UserError
from recipes.baselines.mr_lora.pool import check_pool, write_pool
from recipes.config.loading import load_recipe
from recipes.config.schema import Recipe
from recipes.config.yaml_values import as_override
from recipes.run.preflight.gpus import check_gpus
from recipes.run_folder.checkpoints import CheckpointError, check_adapter, verify_adapter
from recipes.run_folder.layout import RunLayout, SideLayout
from recipes.run_folder.manifest import check_same_model
from recipes.run_folder.state import RunState, load_state
from strlora_tuner.saved import AdapterError


class UseError(UserError):
    """The run's model cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class FinishedAdapter:
    """A run's recipe as recorded, and the chunk whose adapter is used (0: the base model)."""

    recipe: Recipe
    layout: RunLayout
    state: RunState
    chunk: int

    @property
    def title(self) -> str:
        """What answers, for people."""
        if self.chunk == 0:
            return f"[{self.recipe.name}] the base model answers (chunk 0), without an adapter"
        after = f"after chunk {self.chunk} of {self.recipe.data.chunks}"
        return f"[{self.recipe.name}] {self.recipe.method} {after} answers"

    @property
    def alone(self) -> Recipe:
        """The recipe for one process on this machine, which answers with PyTorch."""
        launcher = self.recipe.launcher
        # A container is used with this kind alone, see run/placement.py.
        kind = "slurm" if launcher.slurm.container and launcher.kind == "slurm" else "local"
        one = launcher.model_copy(update={"nproc": 1, "nodes": 1, "kind": kind})
        answers = self.recipe.eval.model_copy(update={"backend": "transformers"})
        return self.recipe.model_copy(update={"launcher": one, "eval": answers})

    @contextmanager
    def beside(self) -> Iterator[SideLayout]:
        """A temporary folder for the files of a process that answers; the run stays as it is.

        Raises:
            UseError: the run asks for a GPU and none works here.
        """
        problems = "\n  ".join(map(str, check_gpus(self.alone)))
        if problems:
            raise UseError(f"this machine cannot answer, or only with --cpu:\n  {problems}")
        folder = Path(tempfile.mkdtemp(prefix="strlora-"))
        layout = SideLayout(self.layout.root, folder)
        try:
            if self.recipe.pool is not None and self.chunk > 0:
                write_pool(self.recipe, layout, self.state, self.chunk)
            yield layout
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def open_adapter(
    folder: Path, chunk: int | None, model: str | None = None, cpu: bool = False
) -> FinishedAdapter:
    """Opens a run's adapter and checks it and its base model.

    Args:
        folder: the run folder.
        chunk: whose adapter; None: of the newest trained chunk; 0: the base model.
        model: where the base model is now; None: where the run had it.
        cpu: answer on the CPU, whatever the run was made on.

    Raises:
        UseError: there is no such run, chunk or adapter, or it is damaged.
        RunChanged: the base model is not the one that the adapter was trained on.
    """
    layout = RunLayout(folder)
    if not layout.manifest.is_file() or not layout.recipe.is_file():
        raise UseError(f"{folder}: not started; a run has a manifest.json and a recipe.yaml")
    overrides = [as_override("run_dir", folder)]
    overrides += [as_override("model.path", model)] if model else []
    overrides += ["launcher.cpu=true"] if cpu else []
    recipe, state = load_recipe(str(layout.recipe), overrides), load_state(layout.state)
    trained = [record.index for record in state.chunks if record.trained]
    index = max(trained, default=0) if chunk is None else chunk
    if index != 0 and index not in trained:
        known = ", ".join(map(str, trained)) or "none yet"
        raise UseError(
            f"{folder}: chunk {index} has no adapter; trained chunks: {known} (0: the base model)"
        )
    check_same_model(layout, recipe)
    if index > 0:
        _check(recipe, layout, state, index)
    return FinishedAdapter(recipe, layout, state, index)


def _check(recipe: Recipe, layout: RunLayout, state: RunState, index: int) -> None:
    try:
        verify_adapter(layout.adapter(index), state.record(index).adapter_sha256)
        check_adapter(layout.adapter(index), recipe.tuner_type)
        if recipe.pool is not None:
            check_pool(layout, state, index)
    except (AdapterError, CheckpointError) as error:
        raise UseError(
            f"chunk {index}: {error}. Bring the file back from a copy, or use another chunk "
            "(--chunk; `clean --old-adapters` removes older ones)"
        ) from error


def adapter_text(log: Path) -> str | None:
    """What a host process said of the adapter that it loaded: "adapter on: 12 layers routed"."""
    if not log.is_file():
        return None
    found = re.findall(r"adapter on: [^\n]*", log.read_text(encoding="utf-8", errors="replace"))
    return found[-1] if found else None
