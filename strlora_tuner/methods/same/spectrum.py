"""The covariance of a layer's inputs from a sketch of fixed size, and updates scaled along it.

C = mean(x x') over all tokens of the stream so far is too large to keep for a layer of 14,336
inputs. Kept is Y = C O, with O (d, K) fixed numbers: linear in C, so that batches, steps and
processes simply add up, in any order. C is read from it by the Nyström formula (Tropp et al. 2017):
C ~ Y (O'Y)^-1 Y'. Where K reaches d, O is the identity and C is exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Of the sketch's own largest eigenvalue: what is below is rounding of its float32 sums.
_ROUNDING = 1e-6


@lru_cache(maxsize=64)
def sketch_map(width: int, components: int, device: torch.device) -> Tensor | None:
    """Returns O (d, K) float32, standard normal and always the same; None: the identity."""
    if components >= width:
        return None
    drawn = np.random.RandomState(0).standard_normal((width, components))  # a frozen generator
    return torch.from_numpy(drawn).to(device, torch.float32)


def sketch_of(rows: Tensor, components: int) -> Tensor:
    """Returns sum x x' O over rows (n, d) float32: (d, K)."""
    fixed = sketch_map(rows.shape[-1], components, rows.device)
    return rows.t() @ (rows if fixed is None else rows @ fixed)


def spectrum_of(sketch: Tensor) -> tuple[Tensor, Tensor]:
    """Returns directions V (d, K) and eigenvalues (K), largest first, of a sketch Y (d, K).

    Directions that the inputs never had have the eigenvalue 0.
    """
    wide = sketch.double()
    fixed = sketch_map(*sketch.shape, sketch.device)
    core = wide if fixed is None else fixed.double().t() @ wide
    # O'Y is symmetric but for rounding, and eigh reads one triangle only.
    values, vectors = torch.linalg.eigh((core + core.t()) / 2)
    good = values > _ROUNDING * values[-1].clamp_min(0)
    roots = torch.where(good, values, 1).sqrt()
    factor = wide @ (vectors * torch.where(good, 1 / roots, 0))
    # C ~ F F', so that F's singular vectors are C's directions and their squares its eigenvalues.
    directions, roots, _ = torch.linalg.svd(factor, full_matrices=False)
    return directions.to(sketch.dtype), roots.square().to(sketch.dtype)


def kept(spectrum: Tensor, energy: float) -> Tensor:
    """Marks the fewest of the sorted eigenvalues (K) whose squares make `energy` of all squares."""
    squares = spectrum.square()
    before = squares.cumsum(0) - squares
    return (before < energy * squares.sum()) & (spectrum > 0)


def router_factors(spectrum: Tensor, energy: float, window: int) -> Tensor:
    """Returns how much of an update stays along each direction, (K).

    It falls with the mean of an eigenvalue and the window - 1 before it; the least of the kept
    directions, and those that are not kept, keep all of it.
    """
    marks, means = kept(spectrum, energy), window_means(spectrum, window)
    least = torch.where(marks, means, torch.inf).min()
    return torch.where(marks, least / means, 1.0)


def window_means(spectrum: Tensor, window: int) -> Tensor:
    """Returns the mean of each value and the window - 1 before it, as far as there are any, (K)."""
    sums = torch.cat([spectrum.new_zeros(1), spectrum.cumsum(0)])
    ends = torch.arange(1, len(sums), device=spectrum.device)
    starts = (ends - window).clamp_min(0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def expert_factors(spectrum: Tensor, energy: float, damping: float) -> Tensor:
    """Returns mu / (sigma + mu) of the kept directions and 1 of the others, (K)."""
    return torch.where(kept(spectrum, energy), damping / (spectrum + damping), 1.0)


def scaled(update: Tensor, directions: Tensor, factors: Tensor) -> Tensor:
    """Returns an update (rows, d) times V diag(factors) V' + (I - V V')."""
    return update + (update @ directions * (factors - 1)) @ directions.t()


def damped(update: Tensor, covariance: Tensor, damping: float) -> Tensor:
    """Returns update (d_out, r) times mu (S + mu I)^-1, by blocks of S (E, r/E, r/E)."""
    count, rank, _ = covariance.shape
    eye = torch.eye(rank, device=update.device, dtype=update.dtype)
    parts = update.unflatten(1, (count, rank)).permute(1, 2, 0)  # (E, r/E, d_out)
    solved = torch.linalg.solve(covariance + damping * eye, damping * parts)
    return solved.permute(2, 0, 1).flatten(1)


def scores(usage: Tensor, past_importance: Tensor) -> Tensor:
    """Returns each expert's use less its past importance (E), each scaled to 0..1."""
    return _scaled_to_one(usage) - _scaled_to_one(past_importance)


def _scaled_to_one(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    return torch.where(high > low, (values - low) / (high - low), 0.0)
