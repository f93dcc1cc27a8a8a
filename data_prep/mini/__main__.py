"""Write the embedded stream: `python -m data_prep.mini --out data/mini-tiny --size tiny`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from data_prep.mini.assets import DEFAULT_CACHE, AssetError
from data_prep.mini.manifest import StreamError
from data_prep.mini.mixtures import SIZES
from data_prep.mini.stream import write_stream
from data_prep.progress import Progress


def main(argv: list[str] | None = None) -> int:
    """Write the stream (or find it complete); return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.mini", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="stream folder to write")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    parser.add_argument("--assets", type=Path, default=DEFAULT_CACHE, help="cache of the packages")
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        written = write_stream(
            args.out, args.size, args.seed, args.workers, Progress("mini stream"), cache=args.assets
        )
    except (AssetError, StreamError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    print(f"{args.out}: {'written' if written else 'complete, nothing to do'} ({seconds:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
