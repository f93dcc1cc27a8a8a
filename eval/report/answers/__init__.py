"""`answers.html` of a run: what it answers wrong now, what it once knew, and what for what.

One self-contained page beside report.html, which links to it.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.files import write_text
from eval.report.answers.wrong_answers import task_answers
from eval.report.data import RunData
from eval.report.page import fill

FILE = "answers.html"


def write_answers(run: RunData) -> Path | None:
    """Write `<run>/answers.html`; return its path, or None where no prediction can be read."""
    tasks = task_answers(run)
    if not tasks:
        return None
    path = run.root / FILE
    chunks = [(chunk, run.chunk_label(chunk)) for chunk in range(run.evaluated)]
    write_text(path, fill("answers.html.j2", {"run": run, "tasks": tasks, "chunks": chunks}))
    return path
