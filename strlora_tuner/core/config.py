"""What every routed tuner of this package stores in adapter_config.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peft import PeftConfig
from peft.utils import PeftType
from typing_extensions import Self

from strlora_tuner.options import AdapterOptions
from strlora_tuner.register import register

if TYPE_CHECKING:
    from strlora_tuner.saved import SavedAdapter

# PEFT spells three of the schema's names its own way, so that its tools understand our adapters.
_PEFT_NAMES = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}


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


def option_field(options: type[AdapterOptions], name: str) -> Any:
    """Returns a configuration field with the default and the meaning of an option."""
    found = {item.name: item for item in fields(options)}[name]
    return field(default=found.default, metadata={"help": found.metadata["description"]})


@dataclass
class RoutedConfig(PeftConfig):
    """Fields that all routed adapters share; a method adds its own options.

    Raises:
        ValueError: an option out of its bounds, with its value and what is allowed.
    """

    # The method's name, and the dataclass that explains and checks its options.
    method: ClassVar[str]
    options_class: ClassVar[type[AdapterOptions]] = AdapterOptions
    # What the shared parts ask for, where a method does not make an option of it.
    num_experts = 1
    gate_scale = "one"
    instruction_norm = "none"
    padding = "mask"

    r: int = option_field(AdapterOptions, "rank")
    lora_alpha: float = option_field(AdapterOptions, "alpha")
    lora_dropout: float = option_field(AdapterOptions, "dropout")
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _add_peft_type(cls.method.upper())

    def __post_init__(self) -> None:
        super().__post_init__()
        self.saved: SavedAdapter | None = None
        self.peft_type = PeftType(self.method.upper())
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if self.bias != "none":
            raise ValueError(f"bias = {self.bias!r}: no biases are trained, use bias='none'")
        if bool(self.turn_start) != bool(self.turn_end):
            raise ValueError(
                f"turn_start = {self.turn_start} and turn_end = {self.turn_end}: give both or none"
            )
        self.options()  # the schema checks every value, alone and together

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
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

    @property
    def kept_experts(self) -> int:
        """How many experts a prompt can use: all, where it chooses none."""
        return int(getattr(self, "top_k", self.num_experts))

    @property
    def side_loss_reduction(self) -> str:
        """How side losses add up: mean over the tokens of the global batch, or sum."""
        return "mean"

    def options(self) -> Any:
        """Returns the options as the schema sees them (checked again, so edits are caught).

        An option that is about a training run, not about an adapter, is not stored and has its
        default here.
        """
        stored = {item.name for item in fields(self)}
        named = {item.name: _config_name(item.name) for item in fields(self.options_class)}
        values = {name: getattr(self, own) for name, own in named.items() if own in stored}
        return self.options_class(**values)

    @classmethod
    def from_options(cls, options: AdapterOptions, **others: Any) -> Self:
        """Returns the configuration with these options; `others` are PEFT's own fields."""
        return cls(**cls.as_config(options), **others)

    @classmethod
    def as_config(cls, options: AdapterOptions) -> dict[str, Any]:
        """Returns the options under the names that the configuration gives them."""
        known = {item.name for item in fields(cls)}
        named = {_config_name(name): value for name, value in asdict(options).items()}
        return {name: value for name, value in named.items() if name in known}


def _config_name(option: str) -> str:
    return _PEFT_NAMES.get(option, option)


register()
