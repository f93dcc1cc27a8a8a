"""Compare runs in one table: `python -m eval.compare RUN RUN ... [--out FOLDER]`.

Prints a verdict and methods x scores; runs of one recipe with different seeds are one method, and a
folder of runs (a sweep) stands for the runs in it. With --out also compare.html, compare.csv,
tests.csv, compare.md, compare.tex (booktabs), and the figures stream and tasks as PDF and SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.files import print_lines, write_text
from data_prep.stream import StreamError
from eval.compare import compare, figures, page, tables, verdict
from eval.compare.comparison import chosen_columns
from eval.published import names
from eval.significance import SPREADS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after a message if the runs cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                        help="run folders, or folders of run folders")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the files")
    spreads = "; ".join(f"{name}: {words}" for name, words in SPREADS.items()).replace("%", "%%")
    parser.add_argument(
        "--spread", choices=SPREADS, default="std", help=f"what follows ±: {spreads}"
    )
    parser.add_argument(
        "--columns",
        metavar="LIST",
        help="the columns of the table, for example last,avg,forgetting,last/VQAv2",
    )
    parser.add_argument(
        "--published",
        metavar="NAME",
        default="",
        help=f"set published numbers, not run here, beside these: {', '.join(names())}",
    )
    options = parser.parse_args(arguments)
    try:
        comparison = compare(options.runs)
        columns = chosen_columns(comparison, options.columns) if options.columns else ()
        choice = tables.Choice(options.spread, columns, options.published)
        written = []
        if options.out:
            files = {
                "compare.csv": tables.as_csv(comparison),
                "tests.csv": tables.tests_csv(comparison),
                "compare.md": tables.markdown(comparison, choice),
                "compare.tex": tables.latex(comparison, choice),
                "compare.html": page.html(comparison, choice),
            }
            for name, content in files.items():
                write_text(options.out / name, content)
                written.append(options.out / name)
            written += figures.write_figures(comparison, options.out, options.spread)
        said = verdict.sentences(comparison)
        print_lines([tables.text(comparison, choice, said).removesuffix("\n"), *written])
    except (ValueError, OSError, StreamError) as error:
        print(f"eval.compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
