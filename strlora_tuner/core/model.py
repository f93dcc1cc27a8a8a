"""The PEFT model of all routed tuners: wraps layers, takes the prompt, checks what is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.expert_bank import ExpertBank
from strlora_tuner.core.fit import check_fit, differences, matched_layers, mismatch_message
from strlora_tuner.core.instruction import RoutingContext
from strlora_tuner.core.layer import CANNOT_MERGE, RoutedLinear
from strlora_tuner.saved import Shape


class RoutedModel(BaseTuner):
    """A base model whose chosen linear layers carry banks of LoRA experts.

    The instruction comes from the ids that the input embedding sees: every path (a plain forward,
    generate, a host that passes inputs_embeds after embedding ids itself) goes through it.

    A method derives from it and names its bank, a class that is made from (d_in, d_out, hidden,
    config), and, where the adapter carries state beside its layers, the module that holds it, made
    from (hidden, config). Parameters and buffers of both are saved, loaded and checked.
    """

    bank_class: type[ExpertBank]
    state_class: type[nn.Module] | None = None
    prefix = "strlora_"
    tuner_layer_cls = RoutedLinear
    target_module_mapping: dict[str, list[str]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.routing = RoutingContext()
        self._tokenizer: Any = None
        self.strlora_statistics = nn.ModuleDict()
        self.routing.statistics = self.strlora_statistics
        self.routing.embed = model.get_input_embeddings()  # type: ignore[operator]
        self.register_load_state_dict_post_hook(_after_load)

    def _check_new_adapter_config(self, config: RoutedConfig) -> None:  # type: ignore[override]
        super()._check_new_adapter_config(config)
        if config.target_modules is None:
            raise ValueError(
                "target_modules is not set: give the linear layers of the language model to wrap, "
                "by name or as one regex, for example ['q_proj', 'v_proj']"
            )

    def _prepare_model(self, peft_config: RoutedConfig, model: nn.Module) -> None:  # type: ignore[override]
        # Called before any layer is wrapped: what is refused here leaves the model as it was.
        if peft_config.target_modules == "all-linear":
            return
        layers = matched_layers(model, peft_config)
        if peft_config.saved is not None:
            check_fit(peft_config.saved, model, peft_config, layers, self.new_bank, self.new_state)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: RoutedConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        self._add_state(adapter_name, peft_config)

        def make_bank(d_in: int, d_out: int) -> ExpertBank:
            return self.new_bank(d_in, d_out, self._hidden_size(), peft_config)

        if isinstance(target, RoutedLinear):
            target.update_layer(adapter_name, peft_config, make_bank)
        else:
            linear = cast(nn.Linear, target)
            layer = RoutedLinear(linear, adapter_name, peft_config, self.routing, make_bank)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    @classmethod
    def new_bank(cls, d_in: int, d_out: int, hidden: int, config: RoutedConfig) -> ExpertBank:
        """Returns a fresh bank of one layer; `hidden` is the width H of the instruction vector."""
        return cls.bank_class(d_in, d_out, hidden, config)  # type: ignore[call-arg, arg-type]

    @classmethod
    def new_state(cls, hidden: int, config: RoutedConfig) -> nn.Module | None:
        """Returns what a fresh adapter carries beside its layers; None if nothing."""
        return None if cls.state_class is None else cls.state_class(hidden, config)

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer, read on first use; a script may set another.

        Raises:
            RuntimeError: the base model does not know the folder that it came from.
        """
        if self._tokenizer is None:
            folder = getattr(self.model.config, "name_or_path", "")
            folder = folder or getattr(self.model, "model_dir", "")
            if not folder:
                raise RuntimeError(
                    "the instruction's text is needed, but the base model names no folder with its "
                    "tokenizer: set model.config.name_or_path, or tuner_of(model).tokenizer"
                )
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def _hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().embedding_dim)  # type: ignore[operator]

    def _add_state(self, adapter_name: str, config: RoutedConfig) -> None:
        if adapter_name in self.routing.configs:
            return
        self.routing.configs[adapter_name] = config
        state = self.new_state(self._hidden_size(), config)
        if state is not None:
            device = self.model.get_input_embeddings().weight.device  # type: ignore[operator]
            meta = any(value.device.type == "meta" for value in state.state_dict().values())
            self.strlora_statistics[adapter_name] = state if meta else state.to(device)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        embedding = self.routing.embed
        assert isinstance(embedding, nn.Module)
        self._handles = [
            embedding.register_forward_hook(self._after_embedding),
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, always_call=True),
        ]
        self._count_layers()

    def _count_layers(self) -> None:
        self.routing.num_layers = sum(1 for _ in self.mixtures())

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Makes an adapter the active one."""
        super().set_adapter(*args, **kwargs)
        self._count_layers()

    def routed_layers(self) -> Iterator[tuple[str, RoutedLinear]]:
        """Yields (name, layer) of every wrapped layer, names as in the base model."""
        for name, module in self.model.named_modules():
            if isinstance(module, RoutedLinear):
                yield name, module

    def mixtures(self, adapter_name: str | None = None) -> Iterator[tuple[str, Any]]:
        """Yields (layer name, bank of experts) of one adapter, by default the active one."""
        wanted = adapter_name or self.active_adapters[0]
        for name, layer in self.routed_layers():
            if wanted in layer.strlora_mixture:
                yield name, layer.mixture(wanted)

    def statistics(self, adapter_name: str | None = None) -> Any:
        """Returns what one adapter, by default the active one, carries beside its layers."""
        return self.strlora_statistics[adapter_name or self.active_adapters[0]]

    def losses(self) -> dict[str, Tensor]:
        """Returns the side losses of the last training forward by name, summed over layers."""
        sums: dict[str, Tensor] = {}
        for _, mixture in self.mixtures():
            for name, value in mixture.losses().items():
                sums[name] = value + sums[name].to(value.device) if name in sums else value
        return sums

    def after_optimizer_step(self) -> None:
        """What the method does after every optimizer step; routers are whole, under ZeRO too."""

    def after_load(self, adapter_name: str) -> None:
        """What the method does once tensors of an adapter were loaded."""

    def begin_chunk(self) -> None:
        """What the method does with a loaded adapter before another chunk trains it."""

    def check_alive(self) -> None:
        """Raises RuntimeError if a part of the method had no effect in the first training step."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the base model through __call__, so that its hooks run as they do in generate."""
        return self.model(*args, **kwargs)

    def _after_embedding(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        ids = args[0] if args else None
        # A single token is a decoding step: the prompt's instruction stays. Ids that are not 2-d
        # are models looking up a placeholder's embedding.
        if isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] > 1:
            self.routing.on_prompt(ids, output)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        if mask is None and len(args) > 1 and isinstance(args[1], Tensor):
            mask = args[1]
        mask = mask if isinstance(mask, Tensor) else None
        self.routing.begin_forward(mask, self.training)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.routing.end_forward()

    def keep_rows(self, keep: Tensor) -> None:
        """Keeps only the rows `keep` (indices) of a batch that is being decoded: the others ended.

        For a generation that takes rows out of its key-value cache one by one.
        """
        vectors = self.routing.keep_rows(keep)
        for name in vectors:
            for _, mixture in self.mixtures(name):
                mixture.keep_rows(keep, vectors[name])

    def chosen_chunks(self) -> list[int] | None:
        """Returns the chunk, from 1, whose router each row of the last prompt took.

        None for a method with one router. Several beams of a row are several rows.
        """
        return None

    def unload(self) -> nn.Module:
        """Returns the base model without adapters and without our hooks."""
        for handle in self._handles:
            handle.remove()
        return super().unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Raises ValueError: a routed mixture has no single weight to merge."""
        raise ValueError(CANNOT_MERGE)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a routed mixture has no single weight to merge."""
        raise ValueError(CANNOT_MERGE)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter with all that it carries."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.strlora_statistics:
            del self.strlora_statistics[adapter_name]
        del self.routing.configs[adapter_name]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        _check_adapter_tensors(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_adapter_tensors(model: RoutedModel, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Raises ValueError when tensors of a loaded adapter are missing, unknown or of another shape.

    PEFT loads with strict=False and only warns; this runs before anything is copied, so that
    nothing is half loaded, modules_to_save included.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict(prefix=prefix).items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    for name in model.peft_config:
        marks = [f".{part}.{name}." for part in ("strlora_mixture", "strlora_statistics")]
        left_out = _frozen(model, prefix, marks) - given.keys()
        needed = {key: shape for key, shape in own.items() if key not in left_out}
        found, expected = (_of_adapter(keys, marks) for keys in (given, needed))
        if not found:
            continue
        whole = {k: v for k, v in given.items() if k in own and f".modules_to_save.{name}." in k}
        problems = differences(expected | {k: own[k] for k in whole}, found | whole)
        if problems:
            raise ValueError(mismatch_message(f"adapter {name!r}", problems))


def _frozen(model: RoutedModel, prefix: str, marks: list[str]) -> set[str]:
    """Returns the keys of an adapter's parameters that rest while others train; else nothing.

    DeepSpeed leaves them out when it saves a checkpoint inside a chunk. The host has loaded them
    from the adapter beside it when it goes on.
    """
    parameters = {
        key: parameter.requires_grad
        for key, parameter in model.named_parameters(prefix=prefix.removesuffix("."))
        if any(mark in key for mark in marks)
    }
    return {key for key, trains in parameters.items() if not trains and any(parameters.values())}


def _of_adapter(shapes: Mapping[str, Shape], marks: list[str]) -> dict[str, Shape]:
    """Returns the shapes of one adapter's tensors, names as PEFT saves them."""
    result = {}
    for key, shape in shapes.items():
        for mark in marks:
            if mark in key:
                result[key.replace(mark, mark[: mark.index(".", 1) + 1])] = shape
    return result


@torch.no_grad()
def _after_load(model: nn.Module, incompatible: Any) -> None:
    assert isinstance(model, RoutedModel)
    for name in model.routing.configs:
        model.after_load(name)
