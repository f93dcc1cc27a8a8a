"""What a run imports. Only the fork server of tests/recipes/forked.py imports this module."""

import importlib
import os

from recipes.processes.process_tree import die_with
from recipes.processes.resident.server import prepare

die_with(os.getppid())  # of the tests; runs die with the server
prepare()
for name in (
    "deepspeed",
    "eval.report.answers",
    "eval.report.model_card",
    "eval.report.scalars",
    "recipes.cli",
    "recipes.run.runner",
    "swift.pipelines.infer",
    "swift.trainers.seq2seq_trainer",
    "transformers.models.internvl.modeling_internvl",
    "transformers.models.qwen3.modeling_qwen3",
):
    importlib.import_module(name)
