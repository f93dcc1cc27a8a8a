"""Command: `python -m eval.report RUN [--stream FOLDER]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print its path; return 2 after a message if there is no such run."""
    parser = argparse.ArgumentParser(prog="python -m eval.report", description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder, for example runs/tiny")
    parser.add_argument("--stream", type=Path, help="the stream folder, if it was moved")
    options = parser.parse_args(arguments)
    try:
        path = write_report(options.run, options.stream)
    except OSError as error:
        print(f"eval.report: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
