"""The average itself: after step n of the stream, avg <- b avg + (1 - b) theta, in float32.

An average whose window grows with the stream (Options.decay) forgets its start and smooths all that
came after, as in Polyak and Juditsky 1992 and the warmed-up averages of common training loops. It
works on any model with a PEFT adapter; nothing here knows the tuner.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from strlora_tuner.methods.slow_weights.both_sets import FILE, STEPS, read_steps
from strlora_tuner.methods.slow_weights.options import Options
from strlora_tuner.saved import check_finite, order_metadata, replace_file


def adapter_tensors(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """All that PEFT would save of an adapter, by the names it saves: the model's own tensors."""
    everything = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = get_peft_model_state_dict(model, everything, adapter)
    return found


class SlowWeights:
    """The average of an adapter's parameters; buffers are carried as they are.

    A parameter that is frozen (routers in later chunks) stays in it: its average settles on it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], options: Options) -> None:
        """Begins with the parameters as they are, or with what `options.state` holds.

        Args:
            tensors: of the adapter, whole ones (under ZeRO-3: while they are gathered).

        Raises:
            ValueError: the state is missing, damaged or of other tensors.
        """
        self.options, self.steps = options, 0
        parameters = {k: v for k, v in tensors.items() if isinstance(v, nn.Parameter)}
        self.average = {k: v.detach().float().clone() for k, v in parameters.items()}
        if options.state is not None:
            self._load(Path(options.state))

    def _load(self, path: Path) -> None:
        self.steps = read_steps(path)
        check_finite(path)
        held = load_file(path)
        for name, value in self.average.items():
            found = held.get(name)
            if found is None or found.shape != value.shape or found.dtype != torch.float32:
                what = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise ValueError(
                    f"{path}: {name}: found {what}, expected torch.float32 {tuple(value.shape)}; "
                    "bring back the file of the chunk before, or train that chunk again"
                )
            value.copy_(found)

    @torch.no_grad()
    def step(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves the average, once after every optimizer step; `tensors` as in the constructor."""
        self.steps += 1
        weights = [tensors[name].float() for name in self.average]
        torch._foreach_lerp_(
            list(self.average.values()), weights, 1 - self.options.decay(self.steps)
        )

    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> Path:
        """Writes the slow set into `folder`, atomically: all tensors of the adapter by name."""
        whole = {name: self.average.get(name, value) for name, value in tensors.items()}
        whole = {name: v.detach().cpu().contiguous() for name, v in whole.items()}
        said = {"format": "pt", STEPS: str(self.steps)}

        def write(path: Path) -> None:
            save_file(whole, path, said)
            order_metadata(path)

        return replace_file(folder / FILE, write)
