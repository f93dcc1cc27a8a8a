"""Token sequences of conversations, exactly as ms-swift's `internvl_hf` template lays them out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from assets.tiny_base.make.network import IMAGE_TOKENS
from assets.tiny_base.make.texts import Turns

IGNORE = -100


class Layout:
    """Turns conversations into ids and labels; the loss is on answers and their end mark."""

    def __init__(self, tokenizer: Any) -> None:
        self.encode = lru_cache(200_000)(lambda text: tuple(tokenizer.encode(text)))
        self.pad = tokenizer.pad_token_id

    def prompt(self, text: str, image: bool, first: bool) -> tuple[int, ...]:
        """Return the ids of a user turn up to and with the assistant's header."""
        mark = "<img>" + "<IMG_CONTEXT>" * IMAGE_TOKENS + "</img>\n" if image else ""
        # Line ends stand where ms-swift's template internvl_hf puts them (a test compares the two).
        start = "" if first else "\n"
        return self.encode(
            f"{start}<|im_start|>user\n{mark}{text}<|im_end|>\n<|im_start|>assistant\n"
        )

    def conversation(self, turns: Turns, image: bool) -> tuple[list[int], list[int]]:
        """Return ids and labels (both of one length) of a conversation."""
        ids: list[int] = []
        labels: list[int] = []
        for number, (prompt, answer) in enumerate(turns):
            before = self.prompt(prompt, image and number == 0, number == 0)
            after = self.encode(answer + "<|im_end|>")
            ids += before + after
            labels += [IGNORE] * len(before) + list(after)
        return ids, labels

    def batch(self, rows: list[tuple[list[int], list[int]]], longest: int) -> dict[str, Any]:
        """Return input_ids, labels, attention_mask (rows, longest), padded on the right."""
        import torch

        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [IGNORE] * (longest - len(row)) for _, row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows])
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}
