"""Sums up how the prompts of an inference run were routed, by task, for the routing diagnosis.

Every prompt counts once, in the pass that reads it: decoding steps and the recomputation of
gradient checkpointing are left out. All sums are float64 and additive, so that several processes
together count exactly what one would (file.py adds them up).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from strlora_tuner.core.expert_bank import Routed
from strlora_tuner.core.instruction.turns import instruction_mask
from strlora_tuner.core.layer import RoutedLinear
from strlora_tuner.core.routing_metrics import entropy
from strlora_tuner.routing_record.probe import Probe
from strlora_tuner.training_loop import tuner_of

MOST_TEXTS = 48  # distinct instructions a task whose vectors are kept
MOST_BITS = 52  # of a whole number that float64 holds exactly, and its sums
MIXED = -1  # no set of experts: rows of one instruction kept different ones


def _added_up(one: dict[Any, Any], more: dict[Any, Any]) -> dict[Any, Any]:
    """Returns the entries of both; those with a key in both are added up."""
    return {**one, **more, **{key: one[key] + more[key] for key in one.keys() & more.keys()}}


@dataclass
class LayerSums:
    """Sums of one layer over rows, by group: G groups, E experts, rank r.

    Attributes:
        use, selected: (G, E), stage-2 weight averaged over the row's tokens, and stage-1 choice.
        task_entropy, token_entropy: (G), in nats, of stage 1 and stage 2 (mean over tokens).
        mean, second: (G, r) and (G, r, r), first and second moment of the weighted activations
            g_e A_e x over the row's tokens.
        sets: weight of every set of kept experts, by its :func:`set_codes`: {code: (G)}.
    """

    use: Tensor
    selected: Tensor
    task_entropy: Tensor
    token_entropy: Tensor
    mean: Tensor
    second: Tensor
    sets: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def zeros(cls, groups: int, experts: int, rank: int, device: torch.device) -> LayerSums:
        """Returns sums of nothing."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        return cls(zero(experts), zero(experts), zero(), zero(), zero(rank), zero(rank, rank))

    def add(self, weights: Tensor, hidden: Tensor, routed: Routed) -> None:
        """Adds the rows of a batch; sets are added by the recorder.

        Args:
            weights: (B, G) float64, each row's weight in every group.
            hidden: A x, (B, L, r).
            routed: how they were routed, all float32.
        """
        gates, tokens = routed.gates, routed.tokens
        tokens = tokens / tokens.sum(1, keepdim=True).clamp_min(1e-30)
        root = tokens.sqrt()  # both factors of a second moment carry half of a token's weight
        active = hidden.unflatten(-1, (gates.shape[-1], -1)) * gates.unsqueeze(-1)
        active = active.flatten(-2) * root.unsqueeze(-1)
        rows = {
            "use": torch.einsum("ble,bl->be", gates, tokens),
            "selected": routed.kept,
            "task_entropy": entropy(routed.preference),
            "token_entropy": (entropy(gates) * tokens).sum(-1),
            "mean": torch.einsum("blr,bl->br", active, root),
            "second": active.transpose(1, 2) @ active,
        }
        for name, values in rows.items():
            getattr(self, name).add_(torch.tensordot(weights, values.double(), dims=([0], [0])))

    def __add__(self, more: LayerSums) -> LayerSums:
        sums = {k: v + getattr(more, k) for k, v in vars(self).items() if k != "sets"}
        return LayerSums(**sums, sets=_added_up(self.sets, more.sets))

    def cpu(self) -> LayerSums:
        """Returns them on the CPU; sets always are."""
        sums = {k: v.cpu() for k, v in vars(self).items() if k != "sets"}
        return LayerSums(**sums, sets=self.sets)


@dataclass
class Text:
    """One distinct instruction: its rows, their weight in every group, the sum of its vectors.

    `kept` has by layer the code of the experts that all its rows kept, or :data:`MIXED`.
    """

    text: str
    rows: int
    groups: Tensor
    vector: Tensor
    kept: Tensor | None = None

    def keep(self, masks: Tensor | None) -> None:
        """Takes the masks of further rows of this text, (layers)."""
        if self.kept is None or masks is None:
            self.kept = masks if self.kept is None else self.kept
        else:
            self.kept = torch.where(self.kept == masks, masks, MIXED)

    def __add__(self, more: Text) -> Text:
        groups, vector = self.groups + more.groups, self.vector + more.vector
        together = Text(self.text, self.rows + more.rows, groups, vector, self.kept)
        together.keep(more.kept)
        return together


def set_codes(kept: Tensor) -> Tensor:
    """Returns each row's set of kept experts (B, E) as a whole number (B) in float64.

    Up to 52 experts it is the bit mask. Of more, which float64 does not hold, a sum of fixed random
    numbers that is still exact: that two sets have the same one has a chance of 2^-44 or less.
    """
    experts = kept.shape[-1]
    if experts <= MOST_BITS:
        bits = 2 ** torch.arange(experts, dtype=torch.float64)
    else:
        most = 2 ** (MOST_BITS - experts.bit_length())
        generator = torch.Generator().manual_seed(experts)
        bits = torch.randint(most, (experts,), generator=generator).double()
    return kept.double() @ bits.to(kept.device)


def text_order(text: str) -> str:
    """Returns a key that orders texts as if at random, alike in every process and every chunk."""
    return hashlib.sha256(text.encode()).hexdigest()


def subsample(texts: dict[str, Text]) -> dict[str, Text]:
    """Returns at most :data:`MOST_TEXTS` texts a group, the first ones by `text_order`.

    A text that is dropped here can never come back, so dropping early or late, in one process or
    in several, leaves the same texts with the same counts.
    """
    by_group: dict[int, list[str]] = {}
    for key in sorted(texts, key=text_order):
        by_group.setdefault(int(texts[key].groups.argmax()), []).append(key)
    kept = {key for keys in by_group.values() for key in keys[:MOST_TEXTS]}
    return {key: text for key, text in texts.items() if key in kept}


@dataclass
class Sums:
    """What one process, or several together, counted: rows by group (G), layers, instructions."""

    rows: Tensor
    layers: dict[str, LayerSums]
    texts: dict[str, Text]

    def save(self, path: Path) -> None:
        """Writes them to a file that :meth:`load` reads."""
        layers = {name: vars(layer) for name, layer in self.layers.items()}
        texts = {key: vars(text) for key, text in self.texts.items()}
        torch.save({"rows": self.rows, "layers": layers, "texts": texts}, path)

    @classmethod
    def load(cls, path: Path) -> Sums:
        """Returns what :meth:`save` wrote."""
        content = torch.load(path, weights_only=True)
        layers = {name: LayerSums(**layer) for name, layer in content["layers"].items()}
        texts = {key: Text(**text) for key, text in content["texts"].items()}
        return cls(content["rows"], layers, texts)

    def __add__(self, more: Sums) -> Sums:
        layers, texts = _added_up(self.layers, more.layers), _added_up(self.texts, more.texts)
        return Sums(self.rows + more.rows, layers, texts)


class RoutingRecorder:
    """Listens to the routed layers of a model from its making on."""

    def __init__(self, model: nn.Module, tokenizer: Any, probe: Probe) -> None:
        self.tuner = tuner_of(model)
        self.adapter = self.tuner.active_adapters[0]
        self.config = cast(Any, self.tuner.peft_config[self.adapter])
        self.tokenizer, self.probe = tokenizer, probe
        self.layers: dict[str, LayerSums] = {}
        self.texts: dict[str, Text] = {}
        self.rows = torch.zeros(len(probe.groups), dtype=torch.float64)
        self._decoded: dict[tuple[int, ...], str] = {}
        self._open = self._begun = False
        self._weights: Tensor | None = None
        self._prompts: list[str] = []
        self._codes: dict[str, Tensor] = {}
        self.tuner.routing.recording = True
        base = self.tuner.model
        base.register_forward_pre_hook(self._before_forward)
        base.register_forward_hook(self._after_forward)
        for name, layer in self.tuner.routed_layers():
            layer.register_forward_hook(partial(self._after_layer, name))

    def _before_forward(self, *_: Any) -> None:
        self._open, self._begun, self._weights, self._codes = True, False, None, {}

    @torch.no_grad()
    def _after_layer(
        self, name: str, layer: RoutedLinear, args: tuple[Any, ...], output: Tensor
    ) -> None:
        if not self._open:
            return
        x, mixture = args[0], layer.mixture(self.adapter)
        if not self._begun:  # the first routed layer of this pass; the prompt is known by now
            self._begun = True
            self._begin(self.tuner.routing.take_prompt(x), x)
        routed, mixture.recorded = mixture.recorded, None
        if self._weights is None or routed is None:  # a decoding step
            return
        step = x.shape[0] // self._weights.shape[0]  # beams repeat rows
        hidden = mixture.expert_activations(x[::step]).float()
        if name not in self.layers:
            groups, experts = len(self.probe.groups), self.config.num_experts
            self.layers[name] = LayerSums.zeros(groups, experts, hidden.shape[-1], x.device)
        sums = self.layers[name]
        routed = Routed(*(part[::step].float() for part in routed))
        sums.add(self._weights.to(x.device), hidden, routed)
        self._codes[name] = set_codes(routed.kept)

    def _begin(self, ids: Tensor | None, x: Tensor) -> None:
        """Finds the instructions of a new prompt (B, L) and their weights in the groups (B, G)."""
        if ids is None:
            return
        routing = self.tuner.routing
        vectors = routing.last_of_rows(self.adapter, routing.instruction(self.adapter, x))
        vectors = vectors[:: x.shape[0] // ids.shape[0]].double().cpu()
        mask = instruction_mask(ids, self.config)
        rows = [tuple(row[marked].tolist()) for row, marked in zip(ids, mask, strict=True)]
        texts = [self._text(row) for row in rows]
        weights = torch.tensor([self.probe.weights(t) for t in texts], dtype=torch.float64)
        for text, vector, row in zip(texts, vectors, weights, strict=True):
            # Copies: a view would keep its whole batch in memory, and torch.save all of it.
            new = Text(text, 1, row.clone(), vector.clone())
            self.texts[text] = self.texts[text] + new if text in self.texts else new
        if len(self.texts) > 4 * MOST_TEXTS * len(self.probe.groups):
            self.texts = subsample(self.texts)
        self.rows += weights.sum(0)
        self._weights, self._prompts = weights, texts

    def _text(self, ids: tuple[int, ...]) -> str:
        if ids not in self._decoded:
            self._decoded[ids] = self.tokenizer.decode(list(ids)).strip()
        return self._decoded[ids]

    def _after_forward(self, *_: Any) -> None:
        if self._weights is not None:
            masks = {name: codes.long().cpu() for name, codes in self._codes.items()}
            for name, codes in masks.items():
                sets = self.layers[name].sets
                for code, row in zip(codes.tolist(), self._weights, strict=True):
                    sets[code] = sets.get(code, torch.zeros_like(row)) + row
            ordered = [masks[name] for name, _ in self.tuner.mixtures() if name in masks]
            for row, text in enumerate(self._prompts if ordered else []):
                if text in self.texts:
                    self.texts[text].keep(torch.stack([codes[row] for codes in ordered]))
        self._open, self._codes = False, {}

    def sums(self) -> Sums:
        """Returns everything counted so far, on the CPU."""
        layers = {name: layer.cpu() for name, layer in self.layers.items()}
        return Sums(self.rows, layers, subsample(self.texts))
