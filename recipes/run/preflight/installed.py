"""Are the packages there that the host will import, the lazily imported ones included?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

from recipes import REPO
from recipes.config.schema import Recipe
from recipes.processes.missing_requirements import lacking
from recipes.run.preflight.finding import Finding
from recipes.run.trackers import missing_trackers
from strlora_tuner.methods.smolora.embedder_files import embedder_problem

# The newest whose own requirements (torch==2.13.0, transformers>=5.16.1,<5.20) are what
# requirements.lock holds.
VLLM = "0.32.0"


def check_packages(recipe: Recipe) -> Iterator[Finding]:
    """Packages of requirements.txt, trackers, vLLM, a sentence embedder; not those of an image."""
    if recipe.launcher.slurm.container:
        return
    found = lacking(REPO / "requirements.txt")
    if found:
        yield Finding(
            "packages",
            f"{', '.join(found)}. Get them: {sys.executable} -m pip install -r requirements.txt, "
            "or leave --no-setup out",
        )
    if recipe.eval.backend == "vllm" and find_spec("vllm") is None:
        yield Finding(
            "vLLM",
            f"eval.backend asks for it and it is not installed. Get it: pip install vllm=={VLLM} "
            "(it requires the torch and transformers of requirements.lock; its other requirements "
            "may move packages, so take an environment of its own), or set eval.backend: "
            "transformers",
        )
    yield from (Finding("tracker", text) for text in missing_trackers(recipe))
    embedder = getattr(recipe.tuner_options, "embedder", None)
    problem = embedder_problem(embedder) if embedder else None
    if problem:
        yield Finding("embedder", problem)
