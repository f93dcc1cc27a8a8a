"""Independent float64 implementations of the methods, straight from their formulas.

Loops over samples, tokens and experts; shares no code with the package. Each returns the update of
one layer, (B, L, d_out), for x (B, L, d_in), from its weights by name; `scale` is alpha / r.
"""

from __future__ import annotations

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def softmax(values: list[Tensor]) -> list[Tensor]:
    exponentials = [torch.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def expert(weights: Weights, index: int, rank: int, x: Tensor) -> Tensor:
    """B_e A_e x of one token."""
    part = slice(index * rank, (index + 1) * rank)
    return weights["B"][:, part] @ (weights["A"][part] @ x)


def moelora(x: Tensor, weights: Weights, experts: int, scale: float) -> Tensor:
    rank = len(weights["A"]) // experts
    rows = []
    for sample in x:
        tokens = []
        for token in sample:
            gates = softmax([row @ token for row in weights["router"]])
            parts = [gates[e] * expert(weights, e, rank, token) for e in range(experts)]
            tokens.append(scale * sum(parts))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def oracle(x: Tensor, weights: Weights, tasks: list[int], scale: float) -> Tensor:
    """`tasks` are the samples' tasks."""
    rank = len(weights["A"]) // 3
    pairs = zip(x, tasks, strict=True)
    rows = [[scale * expert(weights, t, rank, token) for token in sample] for sample, t in pairs]
    return torch.stack([torch.stack(tokens) for tokens in rows])


def fixed_gates(signs: Tensor, vector: Tensor, kept: int | None) -> list[float]:
    """The gates of one instruction vector; `kept` is k, None: signs."""
    values = [float((row * vector).sum()) for row in signs]
    if kept is None:
        return [-1.0 if value < 0 else 1.0 for value in values]
    best = sorted(range(len(values)), key=lambda e: (-values[e], e))[:kept]
    return [len(values) / kept if e in best else 0.0 for e in range(len(values))]


def strlora_signed(
    x: Tensor, weights: Weights, signs: Tensor, vectors: Tensor, kept: int | None, scale: float
) -> Tensor:
    """`vectors` (B, H) are the centred instruction vectors, `signs` (E, H) the map."""
    rank = len(weights["A"]) // len(signs)
    rows = []
    for sample, vector in zip(x, vectors, strict=True):
        gates = fixed_gates(signs, vector, kept)
        tokens = []
        for token in sample:
            parts = [g * expert(weights, e, rank, token) for e, g in enumerate(gates)]
            tokens.append(scale * sum(parts))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def smolora(
    x: Tensor, weights: Weights, counted: Tensor, sentences: Tensor, scale: float
) -> Tensor:
    """`counted` (B, L) bool marks the tokens of mean(x), `sentences` (B, 384) the embeddings."""
    half = len(weights["vision"])
    rank = len(weights["A"]) // (2 * half)
    rows = []
    for sample, marks, sentence in zip(x, counted, sentences, strict=True):
        mean = torch.stack([t for t, mark in zip(sample, marks, strict=True) if mark]).mean(0)
        vision = softmax([row @ mean for row in weights["vision"]])
        text = softmax([row @ sentence for row in weights["text"]])
        v = max(range(half), key=lambda e: float(vision[e].detach()))
        i = max(range(half), key=lambda e: float(text[e].detach()))
        tokens = []
        for token in sample:
            seen = scale * vision[v] * expert(weights, v, rank, token)
            read = scale * text[i] * expert(weights, half + i, rank, token)
            a, b = softmax([weights["fusion"][0] @ seen, weights["fusion"][1] @ read])
            tokens.append(a * seen + b * read)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def olora(x: Tensor, weights: Weights, chunks: int, scale: float) -> Tensor:
    """The sum of the current and all earlier updates."""
    rank, past_a, past_b = len(weights["A"]), weights["past_A"], weights["past_B"]
    rows = []
    for sample in x:
        tokens = []
        for token in sample:
            update = weights["B"] @ (weights["A"] @ token)
            for chunk in range(chunks):
                part = slice(chunk * rank, (chunk + 1) * rank)
                update = update + past_b[:, part] @ (past_a[part] @ token)
            tokens.append(scale * update)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def orthogonality(weights: Weights, weight: float, form: str) -> Tensor:
    """lambda times the sum over the products of every earlier row with every row of A."""
    products = [(old * new).sum() for old in weights["past_A"] for new in weights["A"]]
    return weight * sum(product**2 if form == "squared" else abs(product) for product in products)


def branchlora(
    x: Tensor, weights: Weights, first: list[int], routers: list[Tensor], top_k: int, scale: float
) -> Tensor:
    """`first` is each sample's first real token, `routers` the router (N, d_in) that it uses."""
    width = len(weights["A"])
    sides = torch.cat([weights["frozen_B"], weights["B"]], 1)
    branches = {}
    for place, branch in enumerate(weights["order"].tolist()):
        branches[branch] = sides[:, place * width : (place + 1) * width]
    rows = []
    for sample, start, router in zip(x, first, routers, strict=True):
        scores = [row @ sample[start] for row in router]
        best = sorted(range(len(scores)), key=lambda i: -float(scores[i].detach()))[:top_k]
        gates = softmax([scores[i] for i in best])
        tokens = []
        for token in sample:
            parts = [
                g * (branches[i] @ (weights["A"] @ token)) for g, i in zip(gates, best, strict=True)
            ]
            tokens.append(scale * sum(parts))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)


def anchor_weights(
    features: list[list[Tensor]], past: list[list[Tensor]], temperature: float
) -> list[Tensor]:
    """`features` are image and text of one prompt, `past` those of every chunk's prompts."""

    def cosine(one: Tensor, other: Tensor) -> Tensor:
        length = (one * one).sum().sqrt() * (other * other).sum().sqrt()
        return (one * other).sum() / length if length > 0 else length

    near = []
    for prompts in past:
        means = [sum(prompt[kind] for prompt in prompts) / len(prompts) for kind in (0, 1)]
        near.append(sum(cosine(features[kind], means[kind]) for kind in (0, 1)) / 2)
    return softmax([value / temperature for value in near])


def hide_llava(
    x: Tensor, weights: Weights, shares: list[list[float]] | str, scale: float
) -> Tensor:
    """`shares` are each sample's weights of the chunks' LoRAs, or how a lower layer fuses them."""
    rank = len(weights["A"])
    down = [*weights["past_A"].split(rank), weights["A"]]
    up = [*weights["past_B"].split(rank, 1), weights["B"]]
    rows = []
    for number, sample in enumerate(x):
        tokens = []
        for token in sample:
            if shares == "sum":
                update = sum(
                    up[i] @ (down[j] @ token) for i in range(len(up)) for j in range(len(up))
                )
            else:
                own = [1 / len(up)] * len(up) if shares == "mean" else shares[number]
                update = sum(s * (b @ (a @ token)) for s, a, b in zip(own, down, up, strict=True))
            tokens.append(scale * update)
        rows.append(torch.stack(tokens))
    return torch.stack(rows)
