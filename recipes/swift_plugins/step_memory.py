"""Prints the memory of a training step, part by part: flags as of `swift sft`.

The host itself trains, with the adapter, autocast, checkpointing and optimizer of the recipe, over
tensors of floating point that have a shape and no content: a model of 8B takes no memory. Whole
numbers (token ids, masks, positions) are real, since shapes follow from them.

It does so with few of the decoder's layers, and with one more. All layers of a decoder have one
shape, so that what the others take follows from the difference.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback
from swift.pipelines.train.sft import SwiftSft
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from recipes.config.sizes.base_model import stored_tensors
from strlora_tuner import host_api

host_api.check("step_memory")
MARK = "ANSWER "  # how the line with the answer begins; the host prints others
LAYERS = 3  # the first three of Qwen3-VL add features of the pictures
SMALL = 4096  # tensors of up to so many floats are computed, such as a position's frequencies
aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class Shapes(TorchDispatchMode):
    """Computes shapes in place of numbers of floating point; counts the bytes that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.alive: set[int] = set()
        self.now = self.peak = self.small = 0
        self.off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.off:
            return func(*args, **kwargs)
        known = not any(isinstance(each, FakeTensor) for each in tree_leaves((args, kwargs)))
        if func in INDEXED:  # how many places a mask names is known, but not to a fake one
            args = (args[0], [i for each in args[1] for i in _places(each)], *args[2:])
        try:
            with self.fake:
                result = func(*args, **kwargs)
        except DataDependentOutputException:
            if known:
                return func(*args, **kwargs)
            if func is not aten._local_scalar_dense.default:
                raise
            dtype = args[0].dtype  # some number, for the log; a test for NaN is negative
            return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        except RuntimeError:
            if not known:
                raise
            return func(*args, **kwargs)
        if known and all(map(self._is_computed, tree_leaves(result))):
            result = func(*args, **kwargs)
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _is_computed(self, value: Any) -> bool:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return not floats or value.numel() <= self.small

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size

    @contextmanager
    def numbers(self) -> Iterator[None]:
        """Inside, everything is computed, and nothing counted."""
        self.off = True
        try:
            yield
        finally:
            self.off = False

    def batch(self, collate: Callable[..., Any]) -> Callable[..., Any]:
        """Returns what collates a batch of real samples, with pictures that are shapes alone."""

        def collated(*args: Any, **kwargs: Any) -> Any:
            with self.numbers():
                batch = collate(*args, **kwargs)
            return tree_map_only(Tensor, self._shape_of, batch)

        return collated

    def _shape_of(self, tensor: Tensor) -> Tensor:
        return self.fake.from_tensor(tensor) if tensor.is_floating_point() else tensor


def _places(index: Any) -> Sequence[Any]:
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
    return index.nonzero().unbind(1) if is_mask and not isinstance(index, FakeTensor) else [index]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Records the most that is alive besides what stays, phase by phase of a step, in bytes."""

    shapes: Shapes
    found: dict[str, int]

    def on_step_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        if self.trainer.args.gradient_accumulation_steps > 1:  # they outlive a micro-batch
            for weight in (p for p in model.parameters() if p.requires_grad):
                weight.grad = torch.zeros_like(weight)
        base = self.trainer.template.get_base_model(model)
        self.gradients = bytes_of(p.grad for p in model.parameters())
        self.shapes.peak = self.shapes.now
        base.get_decoder().register_forward_pre_hook(lambda *_: self._note(model, "pictures"))

    def on_substep_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self._note(model, "text")

    def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self._note(model, "text")

    def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self._note(model, "update")

    def _note(self, model: nn.Module, phase: str) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        fixed = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
        states = tree_leaves([*self.trainer.optimizer.optimizer.state.values()])
        parts = {"base": bytes_of(fixed), "adapter": bytes_of(trained)}
        parts |= {"optimizer": bytes_of(states), "gradients": self.gradients}
        rest = self.shapes.peak - sum(parts.values())
        self.found |= parts | {phase: max(rest, self.found.get(phase, 0))}
        modules = [bytes_of(module.parameters(recurse=False)) for module in model.modules()]
        self.found["largest"] = max(modules)
        self.shapes.peak = self.shapes.now


def bytes_of(values: Any) -> int:
    """Bytes of the tensors among `values`, of storage that several share once."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return sum({each._cdata: each.nbytes() for each in storages}.values())


def predict(argv: Sequence[str]) -> dict[str, int]:
    """Bytes of a training step in one process without DeepSpeed, by part.

    `base`, `adapter`, `optimizer` and `gradients` (where several micro-batches make a step) stay;
    `pictures`, `text` and `update` are the most that is alive besides them while pictures are
    embedded, in the decoder's forward and backward pass, and in the optimizer's step, for any of
    the micro-batches that the arguments make the host read. `largest` module, and the
    decoder's width `hidden`, are what DeepSpeed sizes its buffers by.
    """
    # A process for each: the host can be set up only once in one.
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        few, more = pool.starmap(run_step, [(argv, LAYERS), (argv, LAYERS + 1)], chunksize=1)
    left = few.pop("layers") - LAYERS
    return {name: few[name] + left * (more[name] - few[name]) for name in few}


def run_step(argv: Sequence[str], layers: int) -> dict[str, int]:
    """The parts of a step with only `layers` layers in the decoder (all, where it has fewer)."""

    def without_weights(cls: Any, path: str, *args: Any, config: Any, **kwargs: Any) -> Any:
        text = config.get_text_config()
        Watch.found = {"layers": text.num_hidden_layers, "hidden": text.hidden_size}
        text.num_hidden_layers = min(layers, text.num_hidden_layers)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[-text.num_hidden_layers :]
        model = cls._from_config(config, dtype=kwargs.get("dtype", kwargs.get("torch_dtype")))
        head = model.get_output_embeddings()
        names = [name for name, _ in stored_tensors(Path(path))]
        own = not text.tie_word_embeddings
        if names:  # loading unties what a configuration ties where the files hold both
            own = any(name.endswith("lm_head.weight") for name in names)
        if own and head is not None:
            head.weight = nn.Parameter(torch.empty_like(head.weight))
        return model

    host_api.replace("transformers:PreTrainedModel.from_pretrained", classmethod(without_weights))
    # Module.to swaps parameters that are fake, and torch refuses that where weak references exist,
    # which every fake tensor has. For shapes it is enough to hand over the data.
    host_api.replace(
        "torch.utils:swap_tensors", lambda one, other: setattr(one, "data", other.data)
    )
    host_api.replace("swift.trainers.mixin:SwiftMixin._compute_acc", lambda *args, **kwargs: None)
    with Shapes() as Watch.shapes:
        host = SwiftSft(list(argv))
        Watch.shapes.small = SMALL
        host.template.data_collator = Watch.shapes.batch(host.template.data_collator)
        host.template.encode = _real(host.template.encode)
        callbacks_map["step_memory"] = Watch
        host.args.training_args.callbacks.append("step_memory")
        host.run()
    return Watch.found


def _real(encode: Callable[..., Any]) -> Callable[..., Any]:
    def encoded(*args: Any, **kwargs: Any) -> Any:
        with Watch.shapes.numbers():
            return encode(*args, **kwargs)

    return encoded


if __name__ == "__main__":
    print(MARK + json.dumps(predict(sys.argv[1:])))
