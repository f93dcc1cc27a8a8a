"""The command line with the stand-in host: `python -m tests.recipes.fake_run RECIPE ...`.

Such a run spends nearly all of its processor time on imports, which a fork of the tests has. What
is killed, signalled or measured is started as a program, and one whole run is.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

from recipes.cli import main
from tests.recipes import fake_host
from tests.recipes.fork import Fork, open_as

SECONDS = 600


def finish(*words: str | Path, **environment: str) -> tuple[int, str, str]:
    """Runs to the end in a fork; returns exit code, output and errors."""
    if "FAKE_REPORT" in environment:
        importlib.import_module("eval.report.page")  # once, not in each fork
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")

        def life() -> None:
            open_as(out.open("ab"), 1)
            open_as(err.open("ab"), 2)
            sys.stdout = out.open("a", encoding="utf-8", buffering=1)
            sys.stderr = err.open("a", encoding="utf-8", buffering=1)
            os.environ.update(environment)
            fake_host.STEP_SECONDS = fake_host.step_seconds()
            fake_host.install()
            try:
                code = main([str(word) for word in words])
            except SystemExit as end:  # of a wrong command line
                code = int(end.code or 0)
            if code:
                os._exit(code)

        code = Fork(life).wait(SECONDS)
        return code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")


if __name__ == "__main__":
    fake_host.install()
    sys.exit(main())
