"""Rewrites an InternVL checkpoint that brings its own code as transformers' own class reads it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.convert_internvl.published_weights import ConversionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 when the folder is written, 1 when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m recipes.convert_internvl", description=__doc__)
    parser.add_argument("source", type=Path, help="the checkpoint's folder, as downloaded")
    parser.add_argument("--to", type=Path, required=True, help="a new folder for the result")
    options = parser.parse_args(arguments)
    from recipes.convert_internvl.native_folder import convert

    try:
        convert(options.source, options.to, tell=print)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
