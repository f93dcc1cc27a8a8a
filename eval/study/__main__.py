"""Write the tables and figures of README and docs/study.md out of the committed CSVs.

`python -m eval.study` writes what stands between the markers `<!-- study: ... -->`; `--check`
writes nothing and ends with 1 where documents and CSVs differ. The last line names the
winner of the largest study: the method that keeps no data with the best mean Avg, and its lead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.files import print_lines
from eval.study import tables
from eval.study.documents import RESULTS, first_difference, studies, write

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if --check finds a difference, 2 if nothing can be made."""
    parser = argparse.ArgumentParser(prog="python -m eval.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing, name a difference")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="repository (this one)")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            if difference := first_difference(options.root):
                print(f"eval.study: {difference}; write it anew: python -m eval.study",
                      file=sys.stderr)  # fmt: skip
                return 1
            said = ["tables and figures agree with the CSVs (text outside the markers is not read)"]
        else:
            said = [f"written: {path}" for path in write(options.root)]
        print_lines([*said, *map(tables.winner, studies(options.root / RESULTS))])
    except (ValueError, OSError) as error:
        print(f"eval.study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
