"""What every routed tuner of this package stores in adapter_config.json."""

from __future__ import annotations

import copy
import importlib
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import peft
from packaging.version import Version
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType
from typing_extensions import Self

from strlora_tuner.options import AdapterOptions
from strlora_tuner.saved import SavedAdapter, read_saved


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
    # An enumeration's own __setattr__ refuses names that are members, and this one is by now.
    type.__setattr__(PeftType, name, member)


def _newer_peft(saved_by: str | None) -> bool:
    """Whether `saved_by`, as PEFT writes its version, is newer than the installed PEFT."""
    return saved_by is not None and Version(saved_by.split("@")[0]) > Version(peft.__version__)


def _peft_name(option: Field[Any]) -> str:
    """The name of an option in PEFT's configuration; three have one of PEFT's own."""
    return option.metadata["peft"] or option.name


def _stored(options: type[AdapterOptions]) -> list[Field[Any]]:
    """The options that an adapter's configuration holds; the others are about a training run."""
    return [item for item in fields(options) if item.metadata["stored"]]


@dataclass
class RoutedConfig(PeftConfig):
    """Fields that all routed adapters share. A method's `Config` derives from it.

    The method's options become fields by themselves, under PEFT's names, with their defaults and
    descriptions: they are declared in its `options.py` and nowhere else.

    Raises:
        ValueError: an option out of its bounds, with its value and what is allowed.
    """

    # The method's name, and the dataclass that explains and checks its options: by the folder.
    method: ClassVar[str]
    options_class: ClassVar[type[AdapterOptions]]
    # What the shared parts ask for, where a method does not make an option of it.
    # Without annotations: no fields, which adapter_config.json would hold.
    num_experts = 1
    gate_scale = "one"
    instruction_norm = "none"
    instruction_turns = "so_far"
    instruction_text = "prompt"
    dropout_masks = "shared"
    padding = "mask"
    sentence_vectors = False

    if TYPE_CHECKING:  # options of every method, which become fields below
        r: int = 0
        lora_alpha: float = 0.0
        lora_dropout: float = 0.0
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
    turn_start_also: list[list[int]] = field(
        default_factory=list,
        metadata={
            "help": "For each id of turn_start others that may stand in its place; empty: none."
        },
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
        """Makes fields of the options and the configuration known to PEFT, as the class is made."""
        super().__init_subclass__(**kwargs)
        folder = cls.__module__.rpartition(".")[0]
        cls.method = folder.rpartition(".")[2]
        cls.options_class = importlib.import_module(f"{folder}.options").Options
        for item in _stored(cls.options_class):
            name, help_text = _peft_name(item), {"help": item.metadata["description"]}
            # @dataclass runs on the class after this, and makes fields of what it finds here.
            cls.__annotations__[name] = item.type
            setattr(cls, name, field(default=item.default, metadata=help_text))
        _add_peft_type(cls.method.upper())
        PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(cls.method.upper())] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses keys of adapter_config.json that this version of the tuner does not know.

        And, of a new adapter, layers_to_transform where PEFT would ignore it.

        Here, since every way to read that file ends in a call of the class with all that it holds.
        Fields that a newer PEFT added to all configurations are not ours to refuse: PEFT drops them
        and warns.
        """
        targets = kwargs.get("target_modules")
        if (
            "peft_type" not in kwargs  # adapters of before keep loading
            and isinstance(targets, str)
            and targets != "all-linear"
            and kwargs.get("layers_to_transform") is not None
        ):
            raise ValueError(
                f"layers_to_transform={kwargs['layers_to_transform']} beside "
                f"target_modules={targets!r}: PEFT ignores it beside a regular expression; give "
                "target_modules as a list of names, or write the layers' numbers into the "
                "expression"
            )
        unknown = sorted(kwargs.keys() - {item.name for item in fields(cls)})
        if "peft_type" in kwargs and "expert_num" in unknown:
            raise ValueError(
                "adapter_config.json was written by the published StrLoRA code: convert the "
                "adapter with python -m strlora_tuner.convert --from DIR --to DIR"
            )
        if "peft_type" in kwargs and unknown and not _newer_peft(kwargs.get("peft_version")):
            raise ValueError(
                f"adapter_config.json holds unknown options {', '.join(unknown)}, and PEFT "
                f"{kwargs.get('peft_version') or '(no version given)'}, which saved it, is not "
                f"newer than the installed {peft.__version__}: the adapter was saved by a newer "
                "version of strlora_tuner; update it"
            )
        return super().__new__(cls)

    @classmethod
    def model_class(cls) -> type[BaseTuner]:
        """Returns the method's PEFT model, from model.py beside config.py; PEFT then knows it."""
        folder = cls.__module__.rpartition(".")[0]
        model: type[BaseTuner] = importlib.import_module(f"{folder}.model").Model
        peft_type = PeftType(cls.method.upper())
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model
        PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = model.prefix
        return model

    def __post_init__(self) -> None:
        super().__post_init__()
        # No field: PEFT stores all fields, and this is about the file that was read.
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
        if self.turn_start_also and len(self.turn_start_also) != len(self.turn_start):
            raise ValueError(
                f"turn_start_also has {len(self.turn_start_also)} lists, turn_start "
                f"{len(self.turn_start)} ids: give a list for each id, or none at all"
            )
        self.options()  # checks every value, alone and together
        self.model_class()  # PEFT asks for the model of a configuration that it has

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Returns the configuration of a saved adapter and keeps in `saved` what its file holds.

        Raises:
            ValueError: an option that this version does not know, a damaged file, or an adapter of
                another method.
        """
        name = pretrained_model_name_or_path
        config = super().from_pretrained(name, subfolder=subfolder, **kwargs)
        if not isinstance(config, cls):  # PEFT makes what the file names, whoever is asked
            found = str(config.peft_type.value).lower()
            raise ValueError(
                f"{name}: adapter_config.json is of an adapter of {found}, expected "
                f"{cls.method}: load it as what it is (ms-swift: --tuner_type {found}), or name an "
                f"adapter of {cls.method}"
            )
        config.saved = read_saved(Path(name) / (subfolder or ""))
        config.was_read(name)
        return config

    def was_read(self, name: str) -> None:
        """Called with what was asked for, once a saved adapter was read."""

    @property
    def kept_experts(self) -> int:
        """How many experts a prompt can use: all, where it chooses none."""
        return int(getattr(self, "top_k", self.num_experts))

    @property
    def side_loss_reduction(self) -> str:
        """How side losses add up: mean over the tokens of the global batch, or sum."""
        return "mean"

    def possible(self, given: dict[str, Any]) -> dict[str, Any]:
        """Returns what of a chunk's options the saved adapter can follow; of another it says so."""
        return given

    def begin_chunk(self) -> None:
        """Notes, in what is saved, that another chunk trains the adapter now."""

    def at_chunk(self, chunk: int) -> Self:
        """Returns a fresh adapter's configuration as it is while chunk `chunk` (from 1) trains."""
        config = copy.copy(self)
        for _ in range(1, chunk):
            config.begin_chunk()
        return config

    def options(self) -> Any:
        """Returns the method's options (checked again, so edits are caught).

        An option that is about a training run, not about an adapter, is not stored and has its
        default here.
        """
        stored = _stored(self.options_class)
        return self.options_class(**{item.name: getattr(self, _peft_name(item)) for item in stored})

    @classmethod
    def from_options(cls, options: AdapterOptions, **others: Any) -> Self:
        """Returns the configuration with these options; `others` are PEFT's own fields."""
        return cls(**cls.as_config(options), **others)

    @classmethod
    def of_options(cls, module: str) -> type[Self]:
        """Returns the configuration of a method that stores its options and nothing else."""
        return dataclass(type("Config", (cls,), {"__module__": module}))

    @classmethod
    def as_config(cls, options: AdapterOptions) -> dict[str, Any]:
        """Returns the options that are stored, under the configuration's names."""
        values = asdict(options)
        return {_peft_name(item): values[item.name] for item in _stored(cls.options_class)}
