"""Compare runs in one table: `python -m eval.compare RUN RUN ... [--out FOLDER]`.

Prints methods x scores with 95 % intervals; runs of one recipe with different seeds are one
method. With --out also compare.html, compare.csv, tests.csv, compare.md and compare.tex.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.files import print_lines, write_text
from data_prep.stream import StreamError
from eval.compare import compare, page, tables

FILES = {
    "compare.csv": tables.as_csv,
    "tests.csv": tables.tests_csv,
    "compare.md": tables.markdown,
    "compare.tex": tables.latex,
    "compare.html": page.html,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after a message if the runs cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--out", type=Path, help="folder for the HTML, CSV, Markdown and LaTeX files"
    )
    options = parser.parse_args(arguments)
    try:
        found = compare(options.runs)
        written = [options.out / name for name in FILES] if options.out else []
        for path in written:
            write_text(path, FILES[path.name](found))
        print_lines([tables.text(found).removesuffix("\n"), *written])
    except (ValueError, OSError, StreamError) as error:
        print(f"eval.compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
