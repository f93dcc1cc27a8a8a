"""One worker of a pretraining run: builds the network, trains it, exports and measures it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from assets.tiny_base.make import corpus, measure, network, tokenizer, train
from assets.tiny_base.make.sequences import Layout
from data_prep.files import sha256_file, write_json
from data_prep.mini.assets import Assets


def work(args: argparse.Namespace, rank: int, port: int) -> None:
    """Pretrain as worker `rank`; worker 0 exports at every checkpoint, measures, writes hashes."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, records = corpus.build(args.work, args.images, args.seed, args.workers)
    lines = tokenizer.corpus(Assets())
    words = tokenizer.build(lines)
    model = network.build_model(words, args.hidden, args.layers)
    model.set_attn_implementation("eager")  # in bfloat16 on CPU four times faster than sdpa
    if args.start:
        network.adopt(model, words, args.start)
    if args.vision:
        network.keep_sight(model, args.vision)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"worker {rank}: {millions:.2f} M parameters, {len(words)} tokens", flush=True)

    def export(current: object, progress: train.Progress) -> None:
        network.save(current, words, args.out)
        scores = measure.description_accuracy(current, words, images=30)
        print(f"exported step {progress.step}: {scores}", flush=True)

    workers = train.Workers(rank, args.workers, port)
    copied = tokenizer.copy_words(lines)
    checkpoint = args.work / "checkpoint.pt"
    # A resumed run goes on with other rows than it began with.
    seed = f"{args.seed}/{checkpoint.stat().st_mtime_ns if checkpoint.exists() else 'start'}"
    batches = train.batches(Layout(words), images, records, copied, workers, seed)
    progress = train.run(model, batches, args.minutes, checkpoint, export, workers, args.rate)
    if rank == 0:
        network.save(model, words, args.out)
        scores = measure.description_accuracy(model, words, images=200)
        report = {
            "steps": progress.step, "minutes": round(progress.seconds / 60, 1), "scores": scores,
        }  # fmt: skip
        write_json(args.out / "pretraining.json", report, indent=1)
        write_hashes(args.out)
        print(json.dumps(report), flush=True)


def write_hashes(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder` (check with `sha256sum -c`)."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "SHA256SUMS")
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)
