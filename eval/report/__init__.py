"""`report.html` of a run: one self-contained page, made from the run's files.

python -m eval.report runs/tiny

Beside it: `answers.html` with what is answered wrong, scalars for TensorBoard in `tensorboard/`,
and a model card in the newest adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_prep.files import write_text


def write_report(
    run_dir: Path,
    stream_dir: Path | None = None,
    tell: Callable[[str], None] | None = None,
    finished: bool = False,
) -> Path:
    """Write `<run_dir>/report.html`, TensorBoard scalars and the model card; return the page.

    Works on a run still going on; what is missing or damaged is shown as a marked gap.

    Args:
        run_dir: the run folder.
        stream_dir: the stream folder; None takes the one that manifest.json names.
        tell: given the paragraph on what the run came to, if there is one.
        finished: the run ends with this report, which state.json does not say yet.

    Raises:
        FileNotFoundError: there is no such run folder.
    """
    # Here: every command imports this package, and Matplotlib takes a second of processor time.
    from eval.report.answers import write_answers
    from eval.report.data import load_run
    from eval.report.model_card import write_model_card
    from eval.report.numbers import outcome_text, summarise
    from eval.report.page import render
    from eval.report.scalars import write_scalars

    run = load_run(Path(run_dir), stream_dir)
    if finished:
        run.state = replace(run.state, finished=True)
    summary = summarise(run)
    path = Path(run_dir) / "report.html"
    write_text(path, render(run, summary))
    write_answers(run)
    write_scalars(run)
    write_model_card(run, summary)
    if tell is not None and (text := outcome_text(run, summary)):
        tell(text)
    return path
