"""How well a base model describes held-out images, by family: real greedy answers to field queries.

An answer counts when it is the true value exactly; for boxes when the overlap (IoU) exceeds 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from assets.tiny_base.make import network, texts
from assets.tiny_base.make.corpus import make_one
from assets.tiny_base.make.sequences import Layout
from data_prep.mini.tasks import TASKS


def box_overlap(first: str, second: str) -> float:
    """Return the IoU of two boxes written "x1 y1 x2 y2"; 0 when one cannot be read."""
    try:
        a, b = ([int(word) for word in text.split()] for text in (first, second))
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    except ValueError:
        return 0.0
    wide = max(0, min(ax2, bx2) - max(ax1, bx1))
    high = max(0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - wide * high
    return wide * high / union if union > 0 else 0.0


def greedy(
    model: Any, layout: Layout, tokenizer: Any, images: np.ndarray, prompts: list[str],
    new_tokens: int = 16,
) -> list[str]:  # fmt: skip
    """Return the greedy answer to each prompt about images (n, 112, 112, 3) uint8."""
    import torch

    rows = [list(layout.prompt(prompt, True, True)) for prompt in prompts]
    longest = max(map(len, rows))
    # Padding on the left: answers begin behind the last token of every row.
    ids = torch.tensor([[layout.pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=network.to_pixels(images),
            max_new_tokens=new_tokens, do_sample=False,
        )  # fmt: skip
    return tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


def description_accuracy(
    model: Any, tokenizer: Any, images: int = 100, split: str = "validation", seed: int = 1
) -> dict[str, float]:
    """Return for every task the share of right field values over `images` held-out images."""
    model.eval()
    layout = Layout(tokenizer)
    scores = {}
    for name in TASKS:
        made = [make_one(name, split, index, seed) for index in range(images)]
        queries = [(i, *pair) for i, (_, record) in enumerate(made) for pair in record["pairs"]]
        right = 0.0
        for start in range(0, len(queries), 100):
            part = queries[start : start + 100]
            pixels = np.stack([made[i][0] for i, _, _ in part])
            prompts = [texts.FIELDS[0].format(field) for _, field, _ in part]
            answers = greedy(model, layout, tokenizer, pixels, prompts)
            for (_, _, value), answer in zip(part, answers, strict=True):
                exact = len(value.split()) != 4  # only boxes have four words
                hit = answer == value if exact else box_overlap(answer, value) > 0.5
                right += hit
        scores[name] = right / len(queries)
    return scores
