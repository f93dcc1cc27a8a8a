"""Make the tiny base model: `python -m assets.tiny_base.make --minutes 30`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
from pathlib import Path

from assets.tiny_base.make import corpus, job
from data_prep.mini.assets import REPO_ROOT


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.tiny_base.make", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time (default 30)")
    parser.add_argument("--images", type=int, default=80_000, help="pretraining images")
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "assets" / "tiny_base")
    parser.add_argument("--work", type=Path, default=REPO_ROOT / ".cache" / "base_model")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--start", type=Path, help="exported base model to begin with")
    parser.add_argument("--vision", type=Path, help="base model whose vision tower is taken as is")
    parser.add_argument("--hidden", type=int, default=256, help="width of the text model")
    parser.add_argument("--layers", type=int, default=4, help="depth of the text model")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Make the images, then pretrain (or go on) in args.workers processes."""
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Here first: every worker builds what is missing, and they would do so at the same time.
    corpus.build(args.work, args.images, args.seed, args.workers)
    with socket.socket() as probe:  # a free port for the workers to meet on
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=job.work, args=(args, rank, port), daemon=True)
        for rank in range(1, args.workers)
    ]
    for process in others:
        process.start()
    job.work(args, 0, port)


if __name__ == "__main__":
    main()
