"""`report.html` of a run: one self-contained page, made from the run's files.

python -m eval.report runs/tiny
"""

from __future__ import annotations

from pathlib import Path

from eval.files import write_text
from eval.report.data import load_run
from eval.report.page import render


def write_report(run_dir: Path, stream_dir: Path | None = None) -> Path:
    """Write `<run_dir>/report.html` and return its path.

    Works on a run still going on; what is missing or damaged is shown as a marked gap.

    Args:
        run_dir: the run folder.
        stream_dir: the stream folder; None takes the one that manifest.json names.

    Raises:
        FileNotFoundError: there is no such run folder.
    """
    path = Path(run_dir) / "report.html"
    write_text(path, render(load_run(Path(run_dir), stream_dir)))
    return path
