"""The PEFT model: wraps layers, listens to the embedding, and checks what is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from strlora_tuner.config import StrLoraConfig
from strlora_tuner.instruction import InstructionStatistics, RoutingContext
from strlora_tuner.layer import CANNOT_MERGE, StrLoraLinear
from strlora_tuner.mixture import MixtureOfExperts
from strlora_tuner.registration import register
from strlora_tuner.saved import Shape, check_fit, differences, matched_layers, not_fitting


class StrLoraModel(BaseTuner):
    """A base model whose chosen linear layers carry routed mixtures of LoRA experts.

    The instruction vector comes from the ids that the input embedding sees: every path (a plain
    forward, generate, a host that passes inputs_embeds after embedding ids itself) goes through it.
    """

    prefix = "strlora_"
    tuner_layer_cls = StrLoraLinear
    target_module_mapping: dict[str, list[str]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.routing = RoutingContext()
        self.strlora_statistics = nn.ModuleDict()
        self.routing.statistics = self.strlora_statistics
        self.routing.embed = model.get_input_embeddings()  # type: ignore[operator]
        self.register_load_state_dict_post_hook(_start_missing_teachers)

    def _check_new_adapter_config(self, config: StrLoraConfig) -> None:  # type: ignore[override]
        super()._check_new_adapter_config(config)
        if config.target_modules is None:
            raise ValueError(
                "target_modules is not set: give the linear layers of the language model to wrap, "
                "by name or as one regex, for example ['q_proj', 'v_proj']"
            )

    def _prepare_model(self, peft_config: StrLoraConfig, model: nn.Module) -> None:  # type: ignore[override]
        # Called before any layer is wrapped: what is refused here leaves the model as it was.
        if peft_config.target_modules == "all-linear":
            return
        layers = matched_layers(model, peft_config)
        if peft_config.saved is not None:
            check_fit(peft_config.saved, model, peft_config, layers)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: StrLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        hidden = self._hidden_size()
        self._add_statistics(adapter_name, peft_config, hidden)
        if isinstance(target, StrLoraLinear):
            target.update_layer(adapter_name, peft_config, hidden)
        else:
            linear = cast(nn.Linear, target)
            layer = StrLoraLinear(linear, adapter_name, peft_config, self.routing, hidden)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().embedding_dim)  # type: ignore[operator]

    def _add_statistics(self, adapter_name: str, config: StrLoraConfig, hidden: int) -> None:
        if adapter_name in self.strlora_statistics:
            return
        device = self.model.get_input_embeddings().weight.device  # type: ignore[operator]
        statistics = InstructionStatistics(hidden)
        meta = statistics.mean.device.type == "meta"
        self.strlora_statistics[adapter_name] = statistics if meta else statistics.to(device)
        self.routing.configs[adapter_name] = config

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

    def routed_layers(self) -> Iterator[tuple[str, StrLoraLinear]]:
        """Yields (name, layer) of every wrapped layer, names as in the base model."""
        for name, module in self.model.named_modules():
            if isinstance(module, StrLoraLinear):
                yield name, module

    def mixtures(self, adapter_name: str | None = None) -> Iterator[tuple[str, MixtureOfExperts]]:
        """Yields (layer name, mixture) of one adapter, by default the active one."""
        wanted = adapter_name or self.active_adapters[0]
        for name, layer in self.routed_layers():
            if wanted in layer.strlora_mixture:
                yield name, layer.mixture(wanted)

    def statistics(self, adapter_name: str | None = None) -> InstructionStatistics:
        """Returns the carried statistics of one adapter, by default the active one."""
        wanted = adapter_name or self.active_adapters[0]
        return cast(InstructionStatistics, self.strlora_statistics[wanted])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the base model through __call__, so that its hooks run as they do in generate."""
        return self.model(*args, **kwargs)

    def _after_embedding(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        ids = args[0] if args else None
        # A single token is a decoding step: the prompt's instruction stays. Ids that are not 2-d
        # are models looking up a placeholder's embedding.
        if isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] > 1:
            self.routing.see_prompt(ids, output)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        if mask is None and len(args) > 1 and isinstance(args[1], Tensor):
            mask = args[1]
        mask = mask if isinstance(mask, Tensor) else None
        self.routing.begin_forward(mask, self.training)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.routing.end_forward()

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
        """Removes an adapter, its statistics included."""
        super().delete_adapter(adapter_name)
        del self.strlora_statistics[adapter_name]
        del self.routing.configs[adapter_name]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        _check_adapter_tensors(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_adapter_tensors(model: StrLoraModel, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Raises ValueError when tensors of a loaded adapter are missing, unknown or of another shape.

    PEFT loads with strict=False and only warns; this runs before anything is copied, so that
    nothing is half loaded, modules_to_save included.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict(prefix=prefix).items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    for name in model.peft_config:
        marks = [f".{part}.{name}." for part in ("strlora_mixture", "strlora_statistics")]
        found, expected = (_of_adapter(keys, marks) for keys in (given, own))
        if not found:
            continue
        whole = {k: v for k, v in given.items() if k in own and f".modules_to_save.{name}." in k}
        problems = differences(expected | {k: own[k] for k in whole}, found | whole)
        if problems:
            raise ValueError(not_fitting(f"adapter {name!r}", problems))


def _of_adapter(shapes: Mapping[str, Shape], marks: list[str]) -> dict[str, Shape]:
    """Returns the shapes of one adapter's tensors, names as PEFT saves them."""
    result = {}
    for key, shape in shapes.items():
        for mark in marks:
            if mark in key:
                result[key.replace(mark, mark[: mark.index(".", 1) + 1])] = shape
    return result


@torch.no_grad()
def _start_missing_teachers(model: nn.Module, incompatible: Any) -> None:
    """A loaded adapter that carries no teacher gets one: a copy of its routers."""
    assert isinstance(model, StrLoraModel)
    for name in model.strlora_statistics:
        steps = model.statistics(name).teacher_steps
        if steps.device.type == "meta" or steps.item() > 0:
            continue
        for _, mixture in model.mixtures(name):
            if mixture.query.numel() and mixture.query.device.type != "meta":
                mixture.start_teacher()


register()
