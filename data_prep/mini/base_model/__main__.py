"""Make the tiny base model: `python -m data_prep.mini.base_model --minutes 30`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from data_prep.mini.assets import REPO_ROOT, Assets, sha256_file
from data_prep.mini.base_model import corpus, measure, network, tokenizer, train
from data_prep.mini.base_model.sequences import Layout


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.mini.base_model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time (default 30)")
    parser.add_argument("--images", type=int, default=80_000, help="pretraining images")
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "assets" / "tiny_base")
    parser.add_argument("--work", type=Path, default=REPO_ROOT / ".cache" / "base_model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Pretrain (or go on), export at every checkpoint, measure, write hashes."""
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, records = corpus.build(args.work, args.images, args.seed, args.threads)
    lines = tokenizer.corpus(Assets())
    words = tokenizer.build(lines)
    model = network.build_model(words)
    model.set_attn_implementation("eager")  # in bfloat16 on CPU four times faster than sdpa
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(words)} tokens")

    def export(current: object, progress: train.Progress) -> None:
        network.save(current, words, args.out)
        print(f"exported step {progress.step}: {quick(current)}", flush=True)

    def quick(current: object) -> str:
        scores = measure.description_accuracy(current, words, images=40)
        return "  ".join(f"{name} {score:.2f}" for name, score in scores.items())

    progress = train.run(
        model, Layout(words), images, records, tokenizer.copy_words(lines), args.minutes,
        args.work / "checkpoint.pt", export, args.seed,
    )  # fmt: skip
    network.save(model, words, args.out)
    scores = measure.description_accuracy(model, words, images=200)
    report = {"steps": progress.step, "minutes": round(progress.seconds / 60, 1), "scores": scores}
    (args.out / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")
    write_hashes(args.out)
    print(json.dumps(report), flush=True)


def write_hashes(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder` (check with `sha256sum -c`)."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "SHA256SUMS")
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)


if __name__ == "__main__":
    main()
