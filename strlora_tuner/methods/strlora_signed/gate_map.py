"""The fixed map of a layer: E rows of random signs, known by a seed, and the gates it gives.

The signs are whole numbers, drawn on the CPU: the same on every machine, which random numbers with
a fraction are not. Rows of random signs keep distances as Gaussian ones do (Achlioptas 2003). An
adapter's file holds the seed and a check number; a machine that draws other signs is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strlora_tuner.core.gating import topk_mask

_PRIME = 2_147_483_647


def draw_seed() -> Tensor:
    """Returns a seed from torch's own generator, an int64 scalar."""
    return torch.randint(2**62, (), dtype=torch.int64)


def draw_map(seed: int, experts: int, hidden: int) -> Tensor:
    """Returns G, (experts, hidden), +1 or -1 in int8."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, (experts, hidden), generator=generator, dtype=torch.int8)
    return 2 * drawn - 1


def check_number(signs: Tensor) -> int:
    """Returns a number that tells one map from another: its signs read as a sum of weights."""
    places = torch.arange(1, signs.numel() + 1, dtype=torch.int64)
    weights = places * 1_000_003 % _PRIME
    return int((signs.flatten().long() * weights).sum())


def fixed_gates(signs: Tensor, instruction: Tensor, kept: int | None) -> Tensor:
    """Returns the gates (S, E) float32 of instruction vectors (S, H), centred and scaled.

    Args:
        signs: G, (E, H).
        instruction: u, float32.
        kept: k of the gates E/k for the k largest of G u, 0 for the others, of equal values the
            first; None: the sign of each, +1 for 0.
    """
    scores = instruction @ signs.to(instruction).t()
    if kept is None:
        return torch.where(scores < 0, -1.0, 1.0)
    return topk_mask(scores, kept).float() * (len(signs) / kept)
