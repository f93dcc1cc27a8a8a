"""Write the embedded stream: `python -m data_prep.mini --out data/mini-tiny --size tiny`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from data_prep.errors import DataError
from data_prep.mini.assets import DEFAULT_CACHE
from data_prep.mini.mini_stream import write_mini_stream
from data_prep.mini.mixtures import SIZES
from data_prep.progress_bar import Progress
from data_prep.stream import StreamError
from data_prep.stream_writer import StreamBusy

LOOK_AGAIN = 0.5  # seconds


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
        written = write_or_wait(args)
    except (DataError, StreamError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    print(f"{args.out}: {'written' if written else 'complete, nothing to do'} ({seconds:.1f} s)")
    return 0


def write_or_wait(args: argparse.Namespace) -> bool:
    """Write the stream, or wait while another run writes it; returns whether this one wrote."""
    told = False
    while True:
        try:
            return write_mini_stream(
                args.out,
                args.size,
                args.seed,
                args.workers,
                Progress("mini stream", "files"),
                cache=args.assets,
            )
        except StreamBusy:
            if not told:
                print(f"{args.out}: another run is writing it; waiting", file=sys.stderr)
            told = True
            time.sleep(LOOK_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
