"""The adapter's configuration as PEFT stores it in adapter_config.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from peft.utils import PeftType

from strlora_tuner.registration import register
from strlora_tuner.schema import TunerOptions

if TYPE_CHECKING:
    from strlora_tuner.saved import SavedAdapter

# PEFT spells three of the schema's names its own way, so that its tools understand our adapters.
_PEFT_NAMES = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
# Facts about a training run, not about an adapter: they are not stored.
_RUN_ONLY = {"require_teacher"}


def _add_peft_type(name: str) -> None:
    """Adds `name` to PEFT's closed enumeration of methods, as `enum` itself stores a member."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    values = {"_name_": name, "_value_": name, "__objclass__": PeftType}
    for attribute, value in {**values, "_sort_order_": len(PeftType._member_names_)}.items():
        setattr(member, attribute, value)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


_add_peft_type("STRLORA")


_OPTIONS = {option.name: option for option in fields(TunerOptions)}


def _option(name: str) -> Any:
    found = _OPTIONS[name]
    return field(default=found.default, metadata={"help": found.metadata["description"]})


@dataclass
class StrLoraConfig(PeftConfig):
    """Configuration of a StrLoRA adapter; :class:`TunerOptions` explains the options.

    Raises:
        ValueError: an option out of its bounds, with its value and what is allowed.
    """

    r: int = _option("rank")
    lora_alpha: float = _option("alpha")
    lora_dropout: float = _option("dropout")
    num_experts: int = _option("num_experts")
    top_k: int = _option("top_k")
    token_top_k: int = _option("token_top_k")
    unused_expert_gradient: bool = _option("unused_expert_gradient")
    router_dim: int = _option("router_dim")
    task_router: str = _option("task_router")
    instruction_norm: str = _option("instruction_norm")
    gate_scale: str = _option("gate_scale")
    ema_decay: float = _option("ema_decay")
    stability_weight: float = _option("stability_weight")
    stability_temperature: float = _option("stability_temperature")
    stability_reduction: str = _option("stability_reduction")
    padding: str = _option("padding")
    freeze_routers: bool = _option("freeze_routers")
    compile_routing: str = _option("compile_routing")
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Linear layers of the language model to wrap: names or one regex."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Layers that target_modules matches and must stay plain."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Wrap only the decoder layers with these indices."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of decoder layers, usually 'layers'."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved beside the adapter (the aligner)."},
    )
    bias: str = field(default="none", metadata={"help": "Only 'none': base biases never train."})
    turn_start: list[int] = field(
        default_factory=list,
        metadata={"help": "Token ids that open a user turn; empty: every real token counts."},
    )
    turn_end: list[int] = field(
        default_factory=list, metadata={"help": "Token ids that close a user turn."}
    )
    ignored_ids: list[int] = field(
        default_factory=list,
        metadata={"help": "Ids that are no instruction text: image placeholders, special tokens."},
    )
    pad_id: int | None = field(
        default=None,
        metadata={"help": "Padding id; with padding='include' its embedding enters the mean."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.saved: SavedAdapter | None = None
        self.peft_type = PeftType.STRLORA  # type: ignore[attr-defined]
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if self.bias != "none":
            raise ValueError(f"bias = {self.bias!r}: StrLoRA trains no biases, use bias='none'")
        if bool(self.turn_start) != bool(self.turn_end):
            raise ValueError(
                f"turn_start = {self.turn_start} and turn_end = {self.turn_end}: give both or none"
            )
        self.options()  # the schema checks every value, alone and together

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> StrLoraConfig:
        """Returns the configuration of a saved adapter and keeps in `saved` what its file holds.

        Raises:
            ValueError: an option that this version does not know, or a damaged file.
        """
        from strlora_tuner.saved import read_saved

        name = pretrained_model_name_or_path
        config = super().from_pretrained(name, subfolder=subfolder, **kwargs)
        config.saved = read_saved(Path(name) / (subfolder or ""))
        return config

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuses keys of adapter_config.json that no version of this tuner has written."""
        unknown = sorted(kwargs.keys() - {f.name for f in fields(cls)} - {"peft_version"})
        if "expert_num" in unknown:
            raise ValueError(
                "adapter_config.json was written by the published StrLoRA code: convert the "
                "adapter with python -m strlora_tuner.convert --from DIR --to DIR"
            )
        if unknown:
            raise ValueError(
                f"adapter_config.json holds unknown options {', '.join(unknown)}: the adapter was "
                "saved by a newer version of strlora_tuner; update it"
            )
        return super().check_kwargs(**kwargs)

    def options(self) -> TunerOptions:
        """Returns the options as the schema sees them (checked again, so edits are caught)."""
        return TunerOptions(
            **{
                name: getattr(self, _PEFT_NAMES.get(name, name))
                for name in _OPTIONS
                if name not in _RUN_ONLY
            }
        )

    @classmethod
    def from_options(cls, options: TunerOptions, **others: Any) -> StrLoraConfig:
        """Returns the configuration with these options; `others` are PEFT's own fields."""
        return cls(**options_as_config(options), **others)


def options_as_config(options: TunerOptions) -> dict[str, Any]:
    """Returns the options under the names that :class:`StrLoraConfig` gives them."""
    known = {f.name for f in fields(StrLoraConfig)}
    named = {_PEFT_NAMES.get(name, name): value for name, value in asdict(options).items()}
    return {name: value for name, value in named.items() if name in known}


register()
