"""The PEFT model of all routed tuners: wraps layers, takes the prompt, checks what is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from strlora_tuner.core.config import RoutedConfig
from strlora_tuner.core.expert_bank import ExpertBank
from strlora_tuner.core.fit import (
    check_fit,
    check_loaded,
    keep_to_language_model,
    matched_layers,
    read_tensors,
)
from strlora_tuner.core.instruction.context import RoutingContext
from strlora_tuner.core.instruction.generation import unwrap_generate, wrap_generate
from strlora_tuner.core.instruction.joined_text import JoinedText, picture_ids
from strlora_tuner.core.instruction.passes import EmbeddingHook
from strlora_tuner.core.instruction.turns import sample_starts
from strlora_tuner.core.layer import CANNOT_MERGE, RoutedLinear
from strlora_tuner.saved import STATE

# The attribute of a transformers model that holds the tuner, where no PeftModel does.
TUNER = "strlora_tuner"


_READ = ("input_ids", "attention_mask", "past_key_values")


class RoutedModel(BaseTuner):
    """A base model whose chosen linear layers carry banks of LoRA experts.

    The instruction comes from the ids that the input embedding sees: every path (a plain forward,
    generate, a host that passes inputs_embeds after embedding ids itself) goes through it.

    A method derives from it and names its bank, a class that is made from (d_in, d_out, hidden,
    config), and, where the adapter carries state beside its layers, the module that holds it, made
    from (hidden, config). Parameters and buffers of both are saved, loaded and checked.

    It is made by PeftModel, which then holds it, or by transformers (`model.load_adapter`,
    `from_pretrained(ADAPTER)`, `pipeline`), which throws it away: the model itself keeps it then,
    and the adapter's state. All adapters of a model share one routing context.
    """

    bank_class: type[ExpertBank]
    state_class: type[nn.Module] | None = None
    # Whether after_optimizer_step changes parameters of the banks.
    moves_parameters = False
    # PEFT saves only what has this in its name: all state of an adapter begins with it.
    prefix = "strlora_"
    tuner_layer_cls = RoutedLinear
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(
        self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any
    ) -> None:
        # PeftModel gives a dictionary.
        self._inside = isinstance(peft_config, PeftConfig)
        super().__init__(model, peft_config, adapter_name, **kwargs)

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        # PEFT's constructor wraps the layers, which need the context: it cannot be made later.
        self._tokenizer: Any = None
        first = model.__dict__.get(TUNER) if self._inside else None
        if first is not None and type(first) is not type(self):
            raise ValueError(
                f"the model carries adapters of {type(first).__module__}, which one of "
                f"{type(self).__module__} cannot join: load it into a base model of its own"
            )
        self._joins = first is not None
        self.routing: RoutingContext = first.routing if first is not None else RoutingContext()
        if first is None:
            holder = model if self._inside else self
            holder.strlora_statistics = nn.ModuleDict()  # type: ignore[assignment]
            self.routing.statistics = self.strlora_statistics
            self.routing.embed = self._embed
            self.routing.text_reader = self._text_reader
        self.register_load_state_dict_post_hook(_after_load)

    def _embed(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.model.get_input_embeddings()(ids))  # type: ignore[operator]

    def _text_reader(self, adapter: str) -> JoinedText:
        pictures = picture_ids(self.model.config)
        return JoinedText(self.tokenizer, pictures, self.routing.configs[adapter].ignored_ids)

    def _check_new_adapter_config(self, config: RoutedConfig) -> None:  # type: ignore[override]
        super()._check_new_adapter_config(config)
        if config.target_modules is None:
            raise ValueError(
                "target_modules is not set: give the linear layers of the language model to wrap, "
                "by name or as one regex, for example ['q_proj', 'v_proj']"
            )

    def _prepare_model(self, peft_config: RoutedConfig, model: nn.Module) -> None:  # type: ignore[override]
        # Called before any layer is wrapped: what is refused here leaves the model as it was.
        if peft_config.saved is None and not peft_config.inference_mode:
            keep_to_language_model(peft_config, model)
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
        make_bank = partial(self.new_bank, hidden=self._hidden_size(), config=peft_config)
        if isinstance(target, RoutedLinear):
            target.update_layer(adapter_name, peft_config, make_bank)
        else:
            linear = cast(nn.Linear, target)
            layer = RoutedLinear(linear, adapter_name, peft_config, self.routing, make_bank)
            if adapter_name not in self.active_adapters:
                # As with PEFT's LoRA: an adapter beside the active one does not train by itself.
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
        # PEFT asks once for each layer; the state belongs to the adapter.
        if self.routing.configs.get(adapter_name) is config:
            return
        self.routing.configs[adapter_name] = config
        state = self.new_state(self._hidden_size(), config)
        if state is not None:
            device = self.model.get_input_embeddings().weight.device  # type: ignore[operator]
            # With low_cpu_mem_usage PEFT makes an adapter on meta, from where nothing can be moved.
            meta = any(value.device.type == "meta" for value in state.state_dict().values())
            self.strlora_statistics[adapter_name] = state if meta else state.to(device)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Puts an adapter's banks on the layers of `model`."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._injected(model, self.peft_config[adapter_name], adapter_name)

    def _injected(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        """Called with every adapter, once its fresh banks are there.

        PEFT's own hook after the injection is called with a model's first adapter alone.
        """

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not self._joins:
            self._handles = self._register_hooks(model)
        if self._inside:
            # Not as an attribute: the tuner would become a module inside its own model.
            model.__dict__[TUNER] = self
            model.__dict__["_load_pretrained_model"] = self._load_inside
        self._count_layers()

    def _register_hooks(self, model: nn.Module) -> list[RemovableHandle]:
        wrap_generate(model, self.routing, self._reads_states)
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        return [
            embedding.register_forward_hook(EmbeddingHook(self)),
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            # Always: after a pass that raised, the next must not find its ids or generation.
            model.register_forward_hook(self._after_forward, always_call=True),
        ]

    @property
    def active_adapters(self) -> list[str]:
        """The names of the active adapters; a transformers model sets those of its layers alone."""
        if self._inside and self.model.__dict__.get(TUNER) is self:
            return next(layer for _, layer in self.routed_layers()).active_adapters
        return super().active_adapters

    @property
    def own_config(self) -> Any:
        """The configuration of the active adapter, a :class:`RoutedConfig`."""
        return self.peft_config[self.active_adapters[0]]

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
                # Layers of one model may lie on several devices (device_map).
                sums[name] = value + sums[name].to(value.device) if name in sums else value
        return sums

    def after_optimizer_step(self) -> None:
        """What the method does after every optimizer step; routers are whole, under ZeRO too."""

    def after_load(self, adapter_name: str) -> None:
        """What the method does once tensors of an adapter were loaded."""

    def begin_chunk(self) -> None:
        """Makes a loaded adapter ready for another chunk: its configuration, then its banks."""
        self.own_config.begin_chunk()
        for _, bank in self.mixtures():
            bank.begin_chunk()

    def check_alive(self) -> None:
        """Raises RuntimeError if a part of the method had no effect in the first training step."""

    def check_instructions(self) -> None:
        """Raises RuntimeError when no prompt of the first batch has an instruction."""
        empty = self.routing.empty_rows
        if empty is not None and int(empty) == int(self.routing.instructions):
            markers = self.own_config.turn_start
            raise RuntimeError(
                "no row of the first batch holds an instruction: the user turn's markers "
                f"{markers} were not found in the input ids; check the template, or max_length if "
                "prompts are cut"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the base model through __call__, so that its hooks run as they do in generate."""
        return self.model(*args, **kwargs)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        given = dict(zip(_READ[:2], args, strict=False)) | kwargs
        ids, mask, cache = (given.get(name) for name in _READ)
        ids = ids if isinstance(ids, Tensor) else None
        read = given.get("inputs_embeds") if ids is None else ids
        starts = None
        if mask is None and cache is None and isinstance(read, Tensor):
            starts = sample_starts(given, read.shape[1])
        mask = mask if isinstance(mask, Tensor) else None
        self.routing.begin_forward(mask, module.training, cache, ids, starts)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.routing.end_forward(getattr(output, "past_key_values", None))

    def _reads_states(self) -> bool:
        """Whether the active adapter chooses experts by the states of the whole prompt."""
        return self.bank_class.reads_states

    def keep_rows(self, keep: Tensor) -> None:
        """Keeps only the rows `keep` (indices) of a batch that is being decoded: the others ended.

        For a generation that takes rows out of its key-value cache one by one.
        """
        self.routing.keep_rows(keep)

    def chosen_chunks(self) -> list[int] | None:
        """Returns the chunk, from 1, whose router each row of the last prompt took.

        None for a method with one router. Several beams of a row are several rows.
        """
        return None

    def unload(self) -> nn.Module:
        """Returns the base model without adapters and without our hooks."""
        for handle in self._handles:
            handle.remove()
        unwrap_generate(self.model)
        return super().unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError: a routed mixture has no single weight to merge."""
        raise ValueError(CANNOT_MERGE)

    merge_adapter = merge_and_unload

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter with all that it carries."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.strlora_statistics:
            del self.strlora_statistics[adapter_name]
        del self.routing.configs[adapter_name]

    def _load_inside(
        self,
        model: nn.Module,
        state_dict: Mapping[str, Tensor] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        expected_keys: list[str] | None = None,
    ) -> Any:
        """Loads the adapter that transformers has just added, in the place of its own loader.

        That one looks for an adapter's state inside the model and drops, with a remark in its log,
        what it does not find a place for.

        Raises:
            ValueError: tensors are missing, unknown, of another shape or not finite; the adapter is
                then taken out of the model again.
        """
        from peft.utils import set_peft_model_state_dict
        from transformers import modeling_utils

        # transformers adds an adapter before it loads it: the last one is meant.
        name, config = list(model.peft_config.items())[-1]  # type: ignore[operator, union-attr]
        if not isinstance(config, RoutedConfig):
            return type(model)._load_pretrained_model(  # type: ignore[attr-defined]
                model, state_dict, checkpoint_files, load_config, expected_keys
            )
        try:
            tensors, saved = read_tensors(state_dict or {}, checkpoint_files or [])
            layers = {k: m for k, m in self.routed_layers() if name in m.strlora_mixture}
            check_fit(saved, model, config, layers, self.new_bank, self.new_state)
        except ValueError:
            model.delete_adapter(name)  # type: ignore[operator]
            raise
        self._cast_adapter_dtype(name)  # as PeftModel does: what trains is float32
        inside = {f"model.{key}": value for key, value in tensors.items()}
        set_peft_model_state_dict(self, inside, adapter_name=name)
        nothing: dict[str, Any] = {"error_msgs": [], "conversion_errors": {}}
        nothing |= {f"{kind}_keys": set() for kind in ("missing", "unexpected", "mismatched")}
        return modeling_utils.LoadStateDictInfo(**nothing, skipped_pp_keys=set()), None

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if not self._inside:
            # A file of a model that transformers saved: there the state lies inside the model.
            for key in [key for key in state_dict if key.startswith(f"{prefix}model.{STATE}")]:
                state_dict[prefix + key.removeprefix(f"{prefix}model.")] = state_dict.pop(key)
        check_loaded(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@torch.no_grad()
def _after_load(model: nn.Module, incompatible: Any) -> None:
    assert isinstance(model, RoutedModel)
    for name in model.routing.configs:
        model.after_load(name)
