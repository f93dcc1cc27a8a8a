"""Are the packages there that the host will import, the lazily imported ones included?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from recipes import REPO
from recipes.config.schema import Recipe
from recipes.processes.missing_requirements import lacking
from recipes.run.preflight.finding import Finding
from recipes.run.trackers import missing_trackers
from strlora_tuner.embedder_files import embedder_problem
from strlora_tuner.methods.strlora_signed.options import BASE

# The newest whose own requirements (torch==2.13.0, transformers>=5.16.1,<5.20) are what
# requirements.lock holds.
VLLM = "0.32.0"
# What a value in the swift block makes the host import beside requirements.txt, and only then: the
# key, its values (a pattern), the modules of which one must be there, how pip calls the first.
_BITS = "8bit|bnb|paged|ademamix|lion"
ON_DEMAND = (
    ("attn_impl", "flash_attn|flash_attention_2", ("flash_attn", "kernels"), "flash-attn"),
    ("attn_impl", "flash_attention_3", ("flash_attn_3", "kernels"), "flash-attn-3"),
    ("use_liger_kernel", "True", ("liger_kernel",), "liger-kernel"),
    ("tuner_backend", "unsloth", ("unsloth",), "unsloth"),
    ("quant_method", "bnb", ("bitsandbytes",), "bitsandbytes"),
    ("quant_method", "hqq", ("hqq",), "hqq"),
    ("quant_method", "eetq", ("eetq",), "eetq"),
    ("quant_method", "quanto", ("optimum",), "optimum-quanto"),
    ("optim", f"(?!galore|.*torch_).*({_BITS}).*", ("bitsandbytes",), "bitsandbytes"),
    ("optim", ".*galore.*", ("galore_torch",), "galore-torch"),
    ("optim", ".*apollo.*", ("apollo_torch",), "apollo-torch"),
    ("optim", ".*lomo.*", ("lomo_optim",), "lomo-optim"),
    ("optim", "grokadamw", ("grokadamw",), "grokadamw"),
    ("optim", "schedule_free.*", ("schedulefree",), "schedulefree"),
    ("optim", "adamw_torch_[48]bit", ("torchao",), "torchao"),
    ("optim", "stable_adamw", ("optimi",), "torch-optimi"),
    ("use_flash_ckpt", "True", ("dlrover",), "dlrover"),
)


def check_packages(recipe: Recipe) -> Iterator[Finding]:
    """Packages of requirements.txt, trackers, vLLM, a sentence embedder; not those of an image."""
    if recipe.launcher.slurm.container:
        return
    lacks = lacking(REPO / "requirements.txt")
    if lacks:
        yield Finding(
            "packages",
            f"{', '.join(lacks)}. Get them: {sys.executable} -m pip install -r requirements.txt, "
            "or leave --no-setup out",
        )
    for key, values, modules, name in ON_DEMAND:
        given = recipe.swift.get(key)
        asked = given is not None and re.fullmatch(values, str(given))
        if asked and not any(map(find_spec, modules)):
            yield Finding(
                f"swift.{key}",
                f"{given} needs the package {name}, which is not installed. Get it: "
                f"{sys.executable} -m pip install {name}, or give another value",
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
    if embedder not in (None, BASE) and (problem := embedder_problem(embedder)):
        yield Finding("embedder", problem)
