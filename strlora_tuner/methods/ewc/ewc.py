"""Elastic weight consolidation, online: Fisher information, penalty, and the state they carry.

Kirkpatrick et al. 2017 (eq. 3), in the online form of Schwarz et al. 2018 (section 4). After chunk
c, with theta the trainable parameters and g the gradient of one sample's loss:

    F_c = E[g^2] over the chunk's samples;   F <- gamma F + F_c;   theta* <- theta
    L <- L + lambda / 2 sum F (theta - theta*)^2                               (from chunk 2 on)

Without Fisher information (`fisher: false`) F = 1: the plain pull of L2 regularisation. Published
benchmark code logs that penalty as a number that has no gradient (`gradient: false`). It works on
any module; nothing here knows the tuner. All arithmetic is float32.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from strlora_tuner.methods.ewc.state_file import ANCHOR, FILE, FISHER
from strlora_tuner.saved import replace_file

_FIX = "restore the file of the chunk before, or train that chunk again"


@dataclass
class EwcState:
    """What is carried: F (None where F = 1) and theta*, float32, by parameter name."""

    anchor: dict[str, Tensor]
    fisher: dict[str, Tensor] | None = None


def save_state(folder: Path, state: EwcState) -> Path:
    """Writes `ewc.safetensors` into `folder`, atomically; returns its path."""
    tensors = {ANCHOR + name: value for name, value in state.anchor.items()}
    tensors |= {FISHER + name: value for name, value in (state.fisher or {}).items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return replace_file(folder / FILE, lambda path: save_file(tensors, path, {"format": "pt"}))


def load_state(folder: Path, shapes: Mapping[str, torch.Size], fisher: bool) -> EwcState:
    """Reads `ewc.safetensors` for parameters of these names and shapes.

    Tensors of parameters that no longer train (frozen routers) are kept; they feel no pull but must
    not be forgotten.

    Raises:
        ValueError: the file is missing or damaged, a trained parameter is missing or has another
            shape, a value is not finite or a Fisher value negative, or its form is the other one.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file, but this chunk needs it for EWC; {_FIX}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error}); {_FIX}") from error
    anchor = {k.removeprefix(ANCHOR): v for k, v in tensors.items() if k.startswith(ANCHOR)}
    values = {k.removeprefix(FISHER): v for k, v in tensors.items() if k.startswith(FISHER)}
    if bool(values) != fisher:
        raise ValueError(
            f"{path} holds {'' if values else 'no '}Fisher information, but this run has "
            f"ewc.fisher = {str(fisher).lower()}; keep one form for the whole stream"
        )
    problems = _problems(ANCHOR, anchor, shapes)
    if fisher:
        problems += _problems(FISHER, values, {name: v.shape for name, v in anchor.items()})
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path}: {'; '.join(problems[:3])}{more}; {_FIX}")
    return EwcState(anchor, values if fisher else None)


def _problems(kind: str, held: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> list[str]:
    problems = [f"{kind}{name} is missing" for name in sorted(wanted.keys() - held.keys())]
    for name, value in held.items():
        shape = wanted.get(name, value.shape)
        if value.shape != shape:
            problems.append(f"{kind}{name} is {tuple(value.shape)}, expected {tuple(shape)}")
        elif value.dtype != torch.float32:
            problems.append(f"{kind}{name} is {value.dtype}, expected torch.float32")
        elif not bool(value.isfinite().all()):
            problems.append(f"{kind}{name} holds NaN or infinity")
        elif kind == FISHER and bool((value < 0).any()):
            problems.append(f"{kind}{name} holds negative values")
    return problems


class Penalty:
    """Adds lambda F (theta - theta*) to the gradients of one optimizer step, once a parameter.

    The pull is computed at the beginning of the step, while theta stands still, and added by a hook
    on each parameter to the first gradient that reaches it in the step, before anything else sees
    that gradient: accumulation adds it up once, DDP and ZeRO average equal pulls of all
    ranks, clipping sees it, and reentrant checkpointing, which differentiates in pieces, does not
    matter. A parameter without any gradient in a step is not pulled in it, as the optimizer does
    not move it either.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        state: EwcState,
        weight: float,
        whole: Callable[[], AbstractContextManager[object]] = nullcontext,
        acts: bool = True,
    ) -> None:
        """Puts the hooks on, if it acts.

        Args:
            parameters: what trains, by name.
            state: theta* and F of the chunk before.
            weight: lambda.
            whole: opens a context in which every process can read whole parameters (ZeRO-3).
            acts: False: no gradient is touched, and the penalty is only a number.
        """
        self.acts = acts
        self.parameters, self.weight, self.whole = dict(parameters), weight, whole
        self.anchor = self._placed(state.anchor)
        self.fisher = None if state.fisher is None else self._placed(state.fisher)
        self.pulls: dict[str, Tensor] = {}
        self.gradient_scale = 1.0
        self.handles: list[RemovableHandle] = [
            parameter.register_hook(self._hook(name))
            for name, parameter in self.parameters.items()
            if acts
        ]

    def _placed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name].to(p.device) for name, p in self.parameters.items()}

    @torch.no_grad()
    def begin_step(self, gradient_scale: float = 1.0) -> Tensor:
        """Prepares the pulls of a step; returns the penalty lambda/2 sum F (theta - theta*)^2.

        `gradient_scale` is what the loss is multiplied with before backward (a float16 scaler's).
        """
        self.gradient_scale = gradient_scale
        total = torch.zeros((), device=next(iter(self.anchor.values())).device)
        with self.whole():
            for name, parameter in self.parameters.items():
                distance = parameter.detach().float() - self.anchor[name]
                pull = distance * self.weight
                if self.fisher is not None:
                    pull *= self.fisher[name]
                total += (pull * distance).sum() / 2
                if self.acts:
                    self.pulls[name] = pull
        return total

    def _hook(self, name: str) -> Callable[[Tensor], Tensor]:
        def add(gradient: Tensor) -> Tensor:
            pull = self.pulls.pop(name, None)
            if pull is None:
                return gradient
            return gradient + (pull * self.gradient_scale).to(gradient.dtype)

        return add

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's shape, also where DeepSpeed keeps a part of it on each process (ZeRO-3)."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


class FisherEstimate:
    """Sums g^2 over samples, in float32; `mean` divides by how many there were."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, loss: Tensor) -> None:
        """Adds the squared gradient of one sample's loss; the parameters' own `.grad` stays.

        Args:
            loss: a scalar, of ONE sample: the square of a batch's mean gradient is something else.
        """
        parameters = list(self.parameters.values())
        # An expert that the sample did not use has no gradient, and adds 0.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found = zip(self.parameters, gradients, strict=True)
        self._count({name: gradient for name, gradient in found if gradient is not None})

    def add_from(self, backward: Callable[[], object], counts: bool = True) -> None:
        """The same where whole gradients exist only inside a backward pass (ZeRO-3).

        Args:
            backward: differentiates the loss of one sample, once.
            counts: False for a sample that is differentiated for other processes' sake alone.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            return lambda gradient: found.__setitem__(name, gradient.detach().clone())

        handles = [p.register_hook(keep(name)) for name, p in self.parameters.items()]
        try:
            backward()
        finally:
            for handle in handles:
                handle.remove()
        if counts:
            self._count(found)

    def _count(self, gradients: Mapping[str, Tensor]) -> None:
        self.count += 1
        for name, gradient in gradients.items():
            square = gradient.detach().float().square()
            total = self.sums.get(name)
            self.sums[name] = square if total is None else total.add_(square)

    def mean(self, reduce: Callable[[Tensor], None] | None = None) -> dict[str, Tensor]:
        """Returns E[g^2] by parameter name.

        Args:
            reduce: sums a tensor over all processes, in place; called in the same order on all.

        Raises:
            ValueError: no sample was added, or a value is not finite.
        """
        device = next(iter(self.parameters.values())).device
        count = torch.tensor(float(self.count), device=device)
        sums = {
            # A parameter that no sample here reached: every process must reduce the same tensors.
            name: self.sums.get(name, torch.zeros(whole_shape(parameter), device=device))
            for name, parameter in self.parameters.items()
        }
        if reduce is not None:
            for value in (count, *sums.values()):
                reduce(value)
        if not count:
            raise ValueError("EWC: the chunk has no sample to estimate the Fisher information from")
        mean = {name: value / count for name, value in sums.items()}
        bad = [name for name, value in mean.items() if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(
                f"EWC: the Fisher information of {len(bad)} parameters is not finite (first: "
                f"{bad[0]}): a sample's loss overflowed; lower the learning rate"
            )
        return mean


def drawn_samples(total: int, samples: int | None, seed: int) -> list[int]:
    """The chunk's samples that the Fisher information is estimated from: all, or a seeded draw."""
    if samples is None or samples >= total:
        return list(range(total))
    return sorted(random.Random(seed).sample(range(total), samples))


def next_state(
    previous: EwcState | None,
    anchor: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor] | None,
    decay: float,
) -> EwcState:
    """Returns F <- gamma F + F_c and theta* <- theta; what no longer trains keeps its theta*.

    Args:
        previous: the state that the chunk began with; None in the first.
        anchor: theta after the chunk.
        fisher: F_c; None without Fisher information.
    """
    # On the CPU, where they are written from: beside the optimizer the GPU may have no room.
    anchors = {n: value.detach().float().cpu().clone() for n, value in anchor.items()}
    anchors = {**(previous.anchor if previous else {}), **anchors}
    if fisher is None:
        return EwcState(anchors)
    total = {n: value.detach().float().cpu() for n, value in fisher.items()}
    for name, value in ((previous.fisher if previous else None) or {}).items():
        kept = value.float().cpu() * decay
        total[name] = total[name] + kept if name in total else kept
    return EwcState(anchors, total)
