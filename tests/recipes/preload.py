"""What a run imports. Only the fork server of tests/recipes/forked.py imports this module."""

import importlib

from recipes.resident import prepare

prepare()
for name in (
    "deepspeed",
    "eval.report",
    "recipes.cli",
    "recipes.runner",
    "swift.pipelines.infer",
    "swift.trainers.seq2seq_trainer",
    "transformers.models.internvl.modeling_internvl",
    "transformers.models.qwen3.modeling_qwen3",
):
    importlib.import_module(name)
