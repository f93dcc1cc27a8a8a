"""Where a host process runs: what stands before its command on several machines or in an image."""

from __future__ import annotations

from recipes import REPO
from recipes.config.schema import Recipe


def srun(recipe: Recipe) -> tuple[str, ...]:
    """What starts a host process on every machine of a job; empty on one machine."""
    launcher = recipe.launcher
    if launcher.kind != "slurm" or launcher.nodes == 1:
        return ()
    options = [f"--{option}" for option in launcher.slurm.srun_options]
    # --kill-on-bad-exit: the tasks of the other machines would wait for the one that died.
    per_node = f"--nodes={launcher.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"
    return ("srun", *per_node, "--export=ALL", *options)


def container(recipe: Recipe) -> tuple[str, ...]:
    """What starts a host process inside the recipe's image; empty without one.

    The image sees this checkout, the folders of model, stream and run, and launcher.slurm.binds.
    """
    launcher = recipe.launcher
    if launcher.kind != "slurm" or launcher.slurm.container is None:
        return ()
    gpu = () if launcher.cpu else ("--nv",)
    model = [recipe.model.path] if recipe.model.is_local else []
    needed = [(REPO / path).resolve() for path in (*model, recipe.data.stream, recipe.folder)]
    # What lies in the checkout is seen with it.
    outside = [str(path) for path in needed if not path.is_relative_to(REPO)]
    binds = dict.fromkeys([str(REPO), *outside, *launcher.slurm.binds])
    return (
        "apptainer",
        "exec",
        *gpu,
        *(f"--bind={bind}" for bind in binds),
        launcher.slurm.container,
    )
