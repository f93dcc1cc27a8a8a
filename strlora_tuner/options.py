"""Options that all tuners share: fields, defaults, bounds, presets, and where values come from.

Each method declares its own in `methods/NAME/options.py`, once: recipes check their ``tuner:``
block with that dataclass, the plug-in checks ``--model_kwargs`` with it, and the method's PEFT
configuration takes its fields from it. Nothing here imports torch, so that a laptop can check a
recipe, nor anything beyond the standard library, so that an adapter loads wherever PEFT does.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

PREFIX = "strlora_"
# Environment variables that begin like options and are none.
# Of training and inference: the task of every text, for a method that is given it (SMoLoRA).
TASKS_FILE = "STRLORA_TASKS_FILE"
# Of an inference run: where its routing record goes, which instructions belong to which task, what
# to switch off, and the folder for the plain LoRA of its first prompt's instruction.
ROUTING_FILE, PROBE_FILE = "STRLORA_ROUTING_FILE", "STRLORA_PROBE_FILE"
ABLATION, LORA_FOLDER = "STRLORA_ABLATION", "STRLORA_LORA_FOLDER"
# Between the orchestrator and its plug-ins and job files (recipes/).
REMOTE_CODE, NEEDS_GPU = "STRLORA_REMOTE_CODE", "STRLORA_NEEDS_GPU"
SERVE_KEY, SERVE_FORM = "STRLORA_SERVE_KEY", "STRLORA_SERVE_FORM"
MAX_REQUEUES = "STRLORA_MAX_REQUEUES"
TOO_LONG, TOO_LONG_FILE = "STRLORA_TOO_LONG", "STRLORA_TOO_LONG_FILE"
OPTIMIZER_STATE = "STRLORA_OPTIMIZER_STATE"
NO_OPTIONS = {value for value in list(vars().values()) if str(value).startswith(PREFIX.upper())}


def option(
    default: Any,
    *,
    description: str,
    peft: str | None = None,
    host: str | None = None,
    stored: bool = True,
    **bounds: float,
) -> Any:
    """Returns a dataclass field that declares an option.

    Args:
        default: its value where none is given.
        description: what it does.
        peft: its name in PEFT's configuration, where PEFT's tools expect another one.
        host: the argument of ms-swift that it goes through; None: `--model_kwargs`.
        stored: whether it is about the adapter and not about one training run.
        bounds: ge, gt, le, lt.
    """
    names = {"peft": peft, "host": host, "stored": stored}
    metadata = {"description": description, "bounds": bounds, **names}
    return field(default=default, metadata=metadata)


# Decoder layers as transformers and remote code name them, alone and inside a multimodal model.
_DECODER_LAYERS = r"(?:language_model\.)?model\.(?:language_model\.)?layers\.\d+"
_TARGETS = {  # Qwen3.5 has linear attention in three of four layers
    "attention": r"self_attn\.[qkvo]_proj|linear_attn\.(?:in_proj_\w+|out_proj)",
    "mlp": r"mlp\.(?:gate|up|down)_proj",
    "gate_up": r"mlp\.(?:gate|up)_proj",
}


def dropout_masks_option() -> Any:
    """Returns the option of methods whose experts each have an A of their own."""
    return option(
        "shared",
        description="What dropout leaves of the input. shared: the same for all experts of a "
        "layer. expert: each draws its own (published), which reads the input once an expert.",
    )


def sentence_option() -> Any:
    """Returns the option of methods whose instruction a sentence embedder reads."""
    return option(
        "prompt",
        description="What is embedded. prompt: each prompt's own text. template: what all texts of "
        "its task share, as SMoLoRA's published code has it; the task is looked up by the text, "
        "also at evaluation, and reports say so. task: its name, likewise.",
    )


class Size(NamedTuple):
    """Parameters: trained by the optimizer, and stored in the adapter's file."""

    trained: int
    stored: int


@dataclass
class AdapterOptions:
    """What every adapter has; alone, the options of plain LoRA.

    Raises:
        ValueError: names every value that is out of its bounds, and every broken rule over several.
    """

    rank: int = option(
        64,
        ge=1,
        peft="r",
        host="lora_rank",
        description="Total rank r; each expert gets r / num_experts (published: 64).",
    )
    alpha: float = option(
        128.0,
        gt=0,
        peft="lora_alpha",
        host="lora_alpha",
        description="LoRA alpha; the update is scaled by alpha / rank (published: 128).",
    )
    dropout: float = option(
        0.05,
        ge=0,
        lt=1,
        peft="lora_dropout",
        host="lora_dropout",
        description="Dropout on the experts' input, never on the routers' (published: 0.05).",
    )
    targets: Literal["all", "attention", "mlp", "gate_up"] = option(
        "all",
        host="target_regex",
        stored=False,  # PEFT keeps the layers themselves, as target_modules
        description="Which linear layers of the language model carry the adapter. all: every one. "
        "attention: the projections of attention. mlp: gate, up and down. gate_up: gate and up.",
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        problems = []
        for item in fields(self):
            value = getattr(self, item.name)
            expected = expected_value(hints[item.name], bounds_of(item))
            if not fits(value, hints[item.name], bounds_of(item)):
                problems.append(f"{item.name} = {value!r}: expected {expected}")
            elif hints[item.name] is float:
                setattr(self, item.name, float(value))
        # Rules over several options presume that each is valid alone (a rank divided by 0 experts).
        problems = problems or self.cross_field_problems(self)
        if problems:
            raise ValueError("; ".join(problems))

    # Options that shape the adapter's tensors or their meaning: fixed for the whole stream.
    structure: ClassVar[tuple[str, ...]] = ()
    # Whether every further chunk adds tensors to the adapter's file.
    grows: ClassVar[bool] = False
    # Options that a chunk's schedule may set; all others follow the adapter.
    scheduled: ClassVar[tuple[str, ...]] = ()
    # Named settings, as what they change; and the one that is meant where none is named, None
    # where there are no presets.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    default_preset: ClassVar[str | None] = None
    # {option: another one whose value it takes where neither it nor its preset says anything}.
    follows: ClassVar[Mapping[str, str]] = {}
    # From which chunk on a preset freezes the routers; one that is not named here never does.
    freeze_routers_from: ClassVar[Mapping[str, int]] = {}
    # What an adapter's file must hold (saved.py): tensors of every adapted layer, and those beside
    # the layers. None are asked of plain LoRA, which the host saves.
    layer_tensors: ClassVar[tuple[str, ...]] = ()
    state_tensors: ClassVar[tuple[str, ...]] = ()

    @property
    def loras(self) -> int:
        """How many LoRAs of the full rank a layer holds."""
        return 1

    def host_value(self, name: str) -> Any:
        """Returns what the host's argument of an option is given; None: the argument is left out.

        A regular expression stands for `targets`: the names of decoder layers, fully matched, so
        that no vision tower is among them.
        """
        value = getattr(self, name)
        if name != "targets":
            return value
        return None if value == "all" else rf"{_DECODER_LAYERS}\.(?:{_TARGETS[value]})"

    @classmethod
    def tensors_of_layer(cls, saved: Mapping[str, Any]) -> set[str]:
        """Returns which tensors each adapted layer must hold, by the adapter's stored options."""
        return set(cls.layer_tensors)

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        return []

    def idle_options(self) -> dict[str, str]:
        """Returns {option that does nothing here: the other option's value that makes it so}."""
        return {}


_COMPARISONS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}


def bounds_of(item: Field[Any]) -> dict[str, float]:
    """Returns the bounds of an option: ge, gt, le and lt, as far as it has them."""
    return dict(item.metadata.get("bounds", {}))


def fits(value: Any, kind: Any, bounds: dict[str, float]) -> bool:
    """Whether `value` is of an option's type (bool, int, float, str, Literal) and in its bounds."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    # In Python True is an integer, too: it must not pass for a rank of 1.
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and bool(value)
    if not isinstance(value, (int, float) if kind is float else int) or not math.isfinite(value):
        return False
    return all(_COMPARISONS[name][0](value, bound) for name, bound in bounds.items())


def expected_value(kind: Any, bounds: dict[str, float]) -> str:
    """Says in words what an option of this type and bounds accepts."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if kind is bool:
        return "True or False"
    if kind is str:
        return "a text"
    limits = " and ".join(f"{_COMPARISONS[name][1]} {bound}" for name, bound in bounds.items())
    return f"{'an integer' if kind is int else 'a number'} {limits}".rstrip()


def experts_problems(options: Any) -> list[str]:
    """Names the rule that `rank` and `num_experts` break, if they do."""
    if options.rank % options.num_experts == 0:
        return []
    below = max(options.rank // options.num_experts, 1) * options.num_experts
    return [
        f"rank = {options.rank} cannot be divided among num_experts = {options.num_experts}: "
        f"every expert gets rank / num_experts rows; use rank {below} or "
        f"{below + options.num_experts}"
    ]


def top_k_problems(options: Any) -> list[str]:
    """Names the rule that `top_k` and `num_experts` break, if they do."""
    if options.top_k <= options.num_experts:
        return []
    return [
        f"top_k = {options.top_k} exceeds num_experts = {options.num_experts}: "
        f"use top_k <= {options.num_experts}"
    ]


@dataclass
class MixtureOptions(AdapterOptions):
    """Options of a mixture of LoRA experts, whatever routes them, that share out the rank."""

    structure: ClassVar[tuple[str, ...]] = ("num_experts",)
    scheduled: ClassVar[tuple[str, ...]] = ("gate_scale",)
    num_experts: int = option(4, ge=1, description="Experts E a layer; each gets rank / E.")
    gate_scale: Literal["one", "num_experts"] = option(
        "one",
        description="What the gates of a token are multiplied with. one: as published. "
        "num_experts: E, so that uniform gates over all experts equal a plain LoRA of the rank.",
    )

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        return experts_problems(options)


OptionsT = TypeVar("OptionsT", bound=AdapterOptions)


def preset_options(options_class: type[AdapterOptions], name: str) -> dict[str, Any]:
    """Returns what a preset of a method changes; ValueError for a name that it does not have."""
    presets = options_class.presets
    if name not in presets:
        near = difflib.get_close_matches(str(name), presets, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"preset {name!r} is unknown, expected one of {sorted(presets)}{hint}")
    return dict(presets[name])


def preset_table(options_class: type[AdapterOptions], name: str) -> dict[str, Any]:
    """Returns every option that belongs to the method's presets, with its value in one of them.

    An option that any preset names belongs to all of them: it has its default where it is not
    named. ValueError for a preset that the method does not have.
    """
    changed = preset_options(options_class, name)
    owned = {option for preset in options_class.presets.values() for option in preset}
    defaults = {item.name: item.default for item in fields(options_class) if item.name in owned}
    return {**defaults, **changed}


def with_preset(options_class: type[AdapterOptions], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `given` over the options of the preset that it names; ValueError for an unknown one.

    An option given as None counts as not given.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if options_class.default_preset is None:
        return named
    preset = preset_options(options_class, named.pop("preset", options_class.default_preset))
    followed = {name: named[of] for name, of in options_class.follows.items() if of in named}
    return {**followed, **preset, **named}


def host_arguments(options_class: type[AdapterOptions]) -> dict[str, str]:
    """Returns {option: argument of ms-swift} for the options that the host has arguments for."""
    hosts = {item.name: item.metadata["host"] for item in fields(options_class)}
    return {name: host for name, host in hosts.items() if host is not None}


def options_from_host(
    model_kwargs: Mapping[str, Any] | None,
    options_class: type[OptionsT],
    **lora: int | float,
) -> OptionsT:
    """Builds a tuner's options from ms-swift's arguments.

    Args:
        model_kwargs: the host's `--model_kwargs`; keys that start with ``strlora_`` are ours, the
            rest belongs to the model and is left alone. ``strlora_preset`` gives the defaults.
        options_class: the tuner's options.
        **lora: rank, alpha and dropout as the host parsed them.

    Raises:
        ValueError: an unknown key or preset, or values out of bounds, all of them named.
    """
    given = {
        key[len(PREFIX) :]: value
        for key, value in (model_kwargs or {}).items()
        if key.startswith(PREFIX)
    }
    options = {**lora, **with_preset(options_class, given)}
    known = [item.name for item in fields(options_class)]
    for key in options.keys() - set(known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {PREFIX + near[0]!r}?" if near else ""
        raise ValueError(f"model_kwargs key {PREFIX + key!r} is no option of the tuner{hint}")
    return options_class(**options)
