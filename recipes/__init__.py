"""Recipes: one YAML a run, and the orchestrator that walks a stream chunk after chunk.

The entry point is ``bash recipes/run_stream.sh RECIPE``. Nothing here imports torch or ms-swift:
training and evaluation happen in the processes that :mod:`recipes.run.commands` describes and
:mod:`recipes.run.runner` starts.
"""

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


class UserError(Exception):
    """What a command prints as a message, without a traceback: it says what to do."""
