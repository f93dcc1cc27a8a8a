"""`clean`: removes what a run no longer needs. What continuing it needs is never touched.

The policy, chunk by chunk:

- never removed: state, manifest, recipe, matrix, report, logs, metrics, predictions, scores, and
  the adapter of the newest finished chunk, from which the next one starts;
- a trained chunk: its host folder (checkpoints), merged weights, the file of mixed-in samples;
- the chunk that is being trained: every checkpoint but the newest complete one;
- an evaluated chunk: raw answers (they are in predictions/);
- everywhere: temporary files of a process that was killed;
- only when asked (`--old-adapters`): adapters of chunks before the newest finished one; of a pool,
  in which every adapter answers, the routers of those chunks instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from recipes.config.schema import Recipe
from recipes.processes.run_lock import RunLock
from recipes.run_folder.checkpoints import OPTIMIZER, newest_checkpoint
from recipes.run_folder.layout import RouterLayout, RunLayout
from recipes.run_folder.state import RunState, load_state
from strlora_tuner.methods.ewc import state_file as ewc
from strlora_tuner.methods.slow_weights.both_sets import inner_weights
from strlora_tuner.saved import WEIGHTS

# How temporary files begin: a dot, and the name of what they become.
_LEFTOVERS = (
    *(".state.json.", ".manifest.json.", ".recipe.yaml.", ".matrix.csv.", ".report.html."),
    *(".test_prompts.jsonl.", ".routing_probe.json.", ".task_labels.json.", ".adapter."),
    *(".predictions", ".scores.json.", ".routing.json.", ".train_metrics", ".answers.jsonl."),
    *(".mixed.jsonl.", ".router", ".pool.json.", ".failure.txt.", ".too_long.jsonl."),
    *(".matrix-fast.csv.", ".matrix-slow.csv.", ".ablation.json.", ".watch.json."),
)


def clean(recipe: Recipe, remove: bool, old_adapters: bool = False) -> Iterator[str]:
    """Yields a line for each thing that goes; removes it only with `remove`.

    Raises:
        RunLocked: an orchestrator is working on the run.
        StateError: state.json is damaged, so that what is needed is unknown.
    """
    layout = RunLayout(Path(recipe.folder))
    if not layout.state.is_file():
        yield f"{layout.root}: not started; nothing to clean"
        return
    with RunLock(layout.lock):
        found = sorted(set(removable(layout, load_state(layout.state), old_adapters)))
        total = 0
        for path in found:
            size = size_of(path)
            total += size
            yield f"{'removed' if remove else 'would remove'}  {size / 2**20:10.1f} MiB  {path}"
            if remove:
                remove_path(path)
    if not found:
        yield f"{layout.root}: nothing to remove"
    elif remove:
        yield f"{total / 2**20:.1f} MiB freed"
    else:
        yield f"{total / 2**20:.1f} MiB in all; nothing was removed, add --yes to do so"


def removable(layout: RunLayout, state: RunState, old_adapters: bool) -> Iterator[Path]:
    """Yields what the policy allows to remove: files and folders inside the run folder."""
    for folder in (layout.root, layout.root / "slurm"):
        yield from _leftovers(folder)
    router = RouterLayout(layout.root)
    trained = [record.index for record in state.chunks if record.trained]
    # The chunk whose adapter the run continues: never newer than what is counted as done.
    newest = min(max(trained, default=0), max(state.done, 1))
    for record in state.chunks:
        index = record.index
        chunk = layout.chunk(index)
        for folder in (chunk, layout.replay(index), chunk / "slow", chunk / "fast"):
            yield from _leftovers(folder)
        host = layout.host(index)
        if record.trained:
            yield from _existing(host, layout.replay_file(index), router.host(index))
        else:
            yield from _spare_checkpoints(host)
            yield from _spare_checkpoints(router.host(index))
        if record.evaluated:
            yield from _existing(layout.answers(index), layout.merged(index))
        if old_adapters and record.trained and 0 < index < newest:
            pool = bool(record.router_sha256)
            adapter = (router if pool else layout).adapter(index)
            inner = [adapter / name for name in inner_weights(adapter)]
            yield from _existing(
                *(adapter / name for name in (WEIGHTS, ewc.FILE, OPTIMIZER)), *inner
            )


def _spare_checkpoints(host: Path) -> Iterator[Path]:
    """Complete checkpoints before the newest complete one; a half-written one stays to be judged
    by the next start."""
    newest = newest_checkpoint(host)
    for path in host.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        older = newest is not None and number.isdigit() and int(number) < newest.step
        if older and not path.is_symlink():
            yield path


def _leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files and folders: our own begin with a dot and stand beside what they become."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.name.startswith(_LEFTOVERS))


def _existing(*paths: Path) -> Iterator[Path]:
    yield from (path for path in paths if path.exists())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())


def remove_path(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
