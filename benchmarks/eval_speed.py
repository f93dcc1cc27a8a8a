"""Samples a second of our evaluation against the published way, in one run.

    python benchmarks/eval_speed.py --json out.json
    python benchmarks/eval_speed.py --adapter runs/tiny/chunks/008/adapter
    python benchmarks/eval_speed.py --device cuda --shape internvl3.5-8b --max-new-tokens 100

Published: one sample at a time, in the order of the test files. Ours: the batches that the
orchestrator asks for, grouped by task and sorted by length. Both go through the same engine of
ms-swift with the same loaded model; loading is not timed (the published way loads once a task, ours
once a chunk). The two alternate and the median ratio is given. A batch takes as long as its longest
answer: where a few answers run on to the limit, there is less to win. `--shape` puts random weights
of a real size behind the tiny model's tokenizer; those never end an answer by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.files import read_jsonl
from data_prep.stream import open_stream
from eval.questions import Question, question_of, write_combined
from recipes import REPO
from recipes.run.commands import INFER_PLUGIN, PLUGIN

BASE = REPO / "assets" / "tiny_base"
VOCABULARY = 151936
# Language model and image encoder (448 x 448 pixels, 256 image tokens) of InternVL3.5.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "internvl3.5-1b": {
        "text": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                 "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                   "num_attention_heads": 16},
    },
    "internvl3.5-8b": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                   "num_attention_heads": 16},
    },
}  # fmt: skip
Line = dict[str, Any]


class Seconds(NamedTuple):
    """Wall time, and processor time of this process: what a busy machine does not change much."""

    wall: float
    cpu: float


def questions(options: argparse.Namespace) -> tuple[list[Line], list[Line]]:
    """Return the same questions in the published order and in ours."""
    if not (options.stream / "stream.json").is_file():
        command = [sys.executable, "-m", "data_prep.mini", "--out", str(options.stream)]
        subprocess.run([*command, "--size", "tiny"], check=True, cwd=REPO)
    stream = open_stream(options.stream)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        write_combined(options.stream, stream.tasks, path, options.samples)
        ours = read_jsonl(path)
    lines = {question_of(line, options.stream): line for line in ours}
    records = [r for task in stream.tasks for r in stream.test_records(task, options.samples)]
    published = dict.fromkeys(question_of(record, options.stream) for record in records)
    return [lines[question] for question in published], ours


def load_engine(options: argparse.Namespace) -> Any:
    """Return the engine that `swift infer` would use, with the model loaded."""
    from swift.arguments import InferArguments
    from swift.pipelines.infer.infer import SwiftInfer

    arguments: dict[str, Any] = {
        "model": str(options.model),
        "torch_dtype": options.dtype,
        "max_length": options.max_length,
        "val_dataset": [str(options.stream / "stream.json")],  # never read: we ask the engine
        "result_path": os.devnull,
        "external_plugins": [str(INFER_PLUGIN), str(PLUGIN)],
    }
    if options.adapter:
        arguments["adapters"] = [str(options.adapter)]
    engine = SwiftInfer(InferArguments(**arguments)).infer_engine
    if options.shape:
        _grow(engine, SHAPES[options.shape], options)
    return engine


def _grow(engine: Any, shape: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Put a model of another size, with random weights, behind the engine."""
    old = engine.model
    engine.processor.image_seq_length = 256
    engine.processor.image_processor.size = {"height": 448, "width": 448}
    model = sized_model(
        old.config, shape, options.device, options.dtype, max_position_embeddings=8192
    )
    model.generation_config = old.generation_config
    for name in ("model_info", "model_meta", "model_dir"):
        if hasattr(old, name):
            setattr(model, name, getattr(old, name))
    engine.model = engine.engine = model.eval()
    engine.max_model_len = 8192


def sized_model(
    config: Any, shape: dict[str, dict[str, Any]], device: str, dtype: str, **text: Any
) -> Any:
    """Return an InternVL of a shape with random weights; `text`: more settings of its decoder."""
    import torch
    from transformers import InternVLForConditionalGeneration

    text |= {"vocab_size": VOCABULARY, "tie_word_embeddings": False}
    text["layer_types"] = ["full_attention"] * shape["text"]["num_hidden_layers"]
    for name, value in {**shape["text"], **text}.items():
        setattr(config.text_config, name, value)
    for name, value in {**shape["vision"], "image_size": [448, 448]}.items():
        setattr(config.vision_config, name, value)
    config.tie_word_embeddings = False
    config.image_seq_length = 256
    # Made in its dtype: 8 billion weights in float32 first would take twice the room.
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = InternVLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    return model


def ask(
    engine: Any, lines: list[Line], batch: int, tokens: int, published: bool = False
) -> tuple[Seconds, dict[Question, str]]:
    """Return the time that all answers take, and the answers by question (images as asked).

    `published`: by the host's engine as it is; otherwise as the orchestrator's plug-in asks it.
    """
    from swift.infer_engine import RequestConfig

    from recipes.swift_plugins import inference

    engine.max_batch_size = batch
    requests = [{"messages": [dict(m) for m in line["messages"]], "images": line["images"]}
                for line in lines]  # fmt: skip
    config = RequestConfig(max_tokens=tokens, temperature=0)
    started = Seconds(time.perf_counter(), time.process_time())
    if published:
        responses = engine.infer(requests, config, use_tqdm=False)
    else:
        responses = inference.ask(engine, requests, config)
    seconds = Seconds(time.perf_counter() - started.wall, time.process_time() - started.cpu)
    texts = [response.choices[0].message.content for response in responses]
    asked = [question_of(line, REPO) for line in lines]
    return seconds, dict(zip(asked, texts, strict=True))


def measure(engine: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all repeats."""
    published, ours = questions(options)
    ask(engine, ours[:2], 2, 4)  # warm-up
    seconds: dict[str, list[Seconds]] = {"published": [], "ours": []}
    answers: dict[str, dict[Question, str]] = {}
    for repeat in range(options.repeats):
        for name, lines, batch in (("published", published, 1), ("ours", ours, options.batch)):
            tokens, single = options.max_new_tokens, name == "published"
            spent, answers[name] = ask(engine, lines, batch, tokens, single)
            seconds[name].append(spent)
            rate = len(lines) / spent.wall
            print(f"repeat {repeat + 1}: {name}, {batch} at a time: {rate:.2f} samples/s")
    pairs = list(zip(*seconds.values(), strict=True))
    ratios = [one.wall / other.wall for one, other in pairs]
    same = sum(answers["ours"][asked] == text for asked, text in answers["published"].items())
    walls = {name: statistics.median(s.wall for s in spent) for name, spent in seconds.items()}
    rates = {name: len(ours) / wall for name, wall in walls.items()}
    return {
        "speedup": statistics.median(ratios),
        "speedups": ratios,
        "cpu_time_speedup": statistics.median(one.cpu / other.cpu for one, other in pairs),
        "samples_per_second": rates,
        "samples": len(ours),
        "same_answers": same,
    }


def main() -> int:
    """Command line: prints the rates and their ratio, and writes JSON when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default by device")
    parser.add_argument("--model", type=Path, default=BASE)
    parser.add_argument("--adapter", type=Path, help="an adapter folder of a run")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this size")
    parser.add_argument("--stream", type=Path, default=REPO / "data" / "mini-tiny")
    parser.add_argument(
        "--samples", type=int, default=25, help="questions a task; 25: three full batches"
    )
    parser.add_argument("--batch", type=int, default=50, help="as eval.batch_size of recipe tiny")
    parser.add_argument(
        "--max-new-tokens", type=int, default=32, help="as recipe tiny; published: 100"
    )
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    options.stream = options.stream.resolve()
    os.environ |= {"ROOT_IMAGE_DIR": str(options.stream), "HF_HUB_OFFLINE": "1"}
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(options.threads)
    figures = measure(load_engine(options), options)
    figures["options"] = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    print(f"speed-up: {figures['speedup']:.2f} x, median of {options.repeats} "
          f"({figures['cpu_time_speedup']:.2f} x by processor time); "
          f"{figures['same_answers']} of {figures['samples']} answers are the same")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
