"""What `export --instruction` loses on prompts of another text: an adapter beside its LoRAs.

    python benchmarks/fixed_gates/one_instruction.py RUN --stream data/mini-tiny

For every task three plain LoRAs are written as the export writes them: for the first test question
(`question`), for the part that all its texts end with, alone (`template`), and for the first
question of the next task (`foreign`). Each answers all test questions of the task, and so does the
adapter itself (`adapter`). Of the answer's tokens, each after the data's own words before it: the
mean loss, the largest difference of a logit from the adapter's, and the share of answers whose
every token has the highest logit, which are those that greedy decoding would give. `gates`: the
mean share of a layer's gates that are the question's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peft import PeftConfig, PeftModel
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import strlora_tuner  # noqa: F401 (registers the method with PEFT)
from strlora_tuner.methods.strlora_signed.one_instruction import write_lora
from strlora_tuner.training_loop import tuner_of

Sample = dict[str, Any]


class Asker:
    """A base model's processor, and what a model says to the answers of test questions."""

    def __init__(self, base: str, stream: Path) -> None:
        self.base, self.stream = base, stream
        self.processor = AutoProcessor.from_pretrained(base)

    def load(self, adapter: Path) -> PeftModel:
        """Returns the base model with an adapter."""
        model = AutoModelForImageTextToText.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, str(adapter)).eval()

    def encoded(self, text: str, pictures: list[Any]) -> Any:
        """Returns the inputs of a prompt, put as in training."""
        content: list[Any] = [{"type": "image", "image": picture} for picture in pictures]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        return self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def inputs(self, sample: Sample) -> tuple[Any, Tensor]:
        """Returns the inputs of a sample, its answer included, and the answer's ids."""
        pictures = [Image.open(self.stream / name).convert("RGB") for name in sample["images"]]
        found = self.encoded(text_of(sample), pictures)
        tokenizer = self.processor.tokenizer
        answer = tokenizer(
            sample["messages"][-1]["content"], add_special_tokens=False, return_tensors="pt"
        )["input_ids"]
        answer = torch.cat([answer, torch.tensor([[tokenizer.eos_token_id]])], 1)
        found["input_ids"] = torch.cat([found["input_ids"], answer], 1)
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        return found, answer[0]

    @torch.no_grad()
    def read(self, model: PeftModel, text: str, like: Sample) -> None:
        """Has a model read a prompt of `text`, with blank pictures, and answer nothing."""
        blank = [Image.new("RGB", (112, 112), "white") for _ in like["images"]]
        model(**self.encoded(text, blank))

    @torch.no_grad()
    def logits(self, model: PeftModel, sample: Sample) -> tuple[Tensor, Tensor]:
        """Returns the logits (A, V) at the answer's tokens, and their ids (A)."""
        inputs, answer = self.inputs(sample)
        return model(**inputs).logits[0, -len(answer) - 1 : -1].float(), answer


def text_of(sample: Sample) -> str:
    """Returns what a sample asks, without the mark of its picture."""
    return str(sample["messages"][0]["content"]).replace("<image>", "")


def template_of(samples: list[Sample]) -> str:
    """Returns the lines that all texts end with; of texts of one line the words."""
    cut = "\n" if all("\n" in text_of(sample) for sample in samples) else " "
    parts = [reversed(text_of(sample).split(cut)) for sample in samples]
    # Not strict: texts of several lengths have no more in common than the shortest has.
    shared = [same[0] for same in itertools.takewhile(lambda s: len(set(s)) == 1, zip(*parts))]  # noqa: B905
    return cut.join(reversed(shared))


def gates_of(model: PeftModel) -> Tensor:
    """Returns the gates of the last prompt, (layers, E)."""
    return torch.stack([bank.last_gates[-1] for _, bank in tuner_of(model).mixtures()])


def measured(rows: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Returns loss, difference and share of right answers of (logits, own logits, ids)."""
    losses = [torch.nn.functional.cross_entropy(found, ids) for found, _, ids in rows]
    return {
        "loss": float(torch.stack(losses).mean()),
        "difference": max(float((found - own).abs().max()) for found, own, _ in rows),
        "right": sum(bool((f.argmax(-1) == ids).all()) for f, _, ids in rows) / len(rows),
    }


def main() -> int:
    """Command line: prints a line for each task and LoRA."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, or an adapter's folder")
    parser.add_argument("--stream", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=80, help="test questions of a task")
    options = parser.parse_args()
    adapters = sorted(options.run.glob("chunks/*/adapter"))
    adapter = adapters[-1] if adapters else options.run
    asker = Asker(str(PeftConfig.from_pretrained(adapter).base_model_name_or_path), options.stream)
    model = asker.load(adapter)
    tests = {}
    for path in sorted((options.stream / "test").glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()[: options.samples]
        tests[path.stem] = [json.loads(line) for line in lines]
    names = list(tests)
    print("task        texts  LoRA       gates   loss  max |d logit|  right %")
    for task, after in zip(names, [*names[1:], names[0]], strict=True):
        samples = tests[task]
        own, gates = [], []
        for sample in samples:
            logits, ids = asker.logits(model, sample)
            own.append((logits, ids))
            gates.append(gates_of(model))
        texts = len({text_of(sample) for sample in samples})
        told = {
            "question": (text_of(samples[0]), samples[0]),
            "template": (template_of(samples), samples[0]),
            "foreign": (text_of(tests[after][0]), tests[after][0]),
        }
        figures = measured([(logits, logits, ids) for logits, ids in own])
        print(line(task, texts, "adapter", 1.0, figures), flush=True)
        for name, (text, like) in told.items():
            if not text:
                continue
            asker.read(model, text, like)
            fixed = gates_of(model)
            shared = torch.stack([(each == fixed).float().mean() for each in gates]).mean()
            with tempfile.TemporaryDirectory() as folder:
                write_lora(model, Path(folder))
                lora = asker.load(Path(folder))
            found = [asker.logits(lora, sample)[0] for sample in samples]
            rows = [(f, logits, ids) for f, (logits, ids) in zip(found, own, strict=True)]
            print(line("", "", name, float(shared), measured(rows)), flush=True)
    return 0


def line(task: str, texts: object, name: str, shared: float, found: dict[str, float]) -> str:
    """Returns a row of the table."""
    figures = f"{found['loss']:6.3f} {found['difference']:14.3g} {100 * found['right']:8.1f}"
    return f"{task:11} {texts!s:>5}  {name:9} {shared:6.2f} {figures}"


if __name__ == "__main__":
    sys.exit(main())
