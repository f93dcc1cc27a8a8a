"""The one schema of the tuner's options: fields, defaults, bounds, and where values come from.

Recipes check their ``tuner:`` block with it, the plug-in checks ``--model_kwargs`` with it, and
:class:`~strlora_tuner.methods.strlora.config.StrLoraConfig` takes its defaults from it. It imports
no torch, so that a laptop can validate a recipe, and nothing beyond the standard library, so that
an adapter loads wherever PEFT does.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

PREFIX = "strlora_"
# Environment variables that are no options. Of an inference run: where its routing record goes,
# which instructions belong to which task, what to switch off. Of the orchestrator: see recipes/.
ROUTING_FILE = "STRLORA_ROUTING_FILE"
PROBE_FILE = "STRLORA_PROBE_FILE"
ABLATION = "STRLORA_ABLATION"
# Of training and inference: the task of every text, for a method that is told it (SMoLoRA).
TASKS_FILE = "STRLORA_TASKS_FILE"
NO_OPTIONS = (
    ROUTING_FILE,
    PROBE_FILE,
    TASKS_FILE,
    ABLATION,
    "STRLORA_REMOTE_CODE",
    "STRLORA_MAX_REQUEUES",
)


def option(default: Any, *, description: str, **bounds: float) -> Any:
    """Returns a dataclass field with its meaning; `bounds` are ge, gt or lt."""
    return field(default=default, metadata={"description": description, "bounds": bounds})


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
        description="Total rank r; each expert gets r / num_experts (published: 64).",
    )
    alpha: float = option(
        128.0,
        gt=0,
        description="LoRA alpha; the update is scaled by alpha / rank (published: 128).",
    )
    dropout: float = option(
        0.05,
        ge=0,
        lt=1,
        description="Dropout on the experts' input, never on the routers' (published: 0.05).",
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
        problems = problems or self.cross_field_problems(self)
        if problems:
            raise ValueError("; ".join(problems))

    # Options that shape the adapter's tensors or their meaning: fixed for the whole stream.
    structure: ClassVar[tuple[str, ...]] = ()
    # Options that a chunk's schedule may set; all others follow the adapter.
    scheduled: ClassVar[tuple[str, ...]] = ()
    # The preset whose options are meant where none is named; None: there are no presets.
    default_preset: ClassVar[str | None] = None

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        return []

    def layer_size(self, d_in: int, d_out: int, hidden: int) -> Size:
        """Counts one adapted linear layer; `hidden` is the width of the instruction vector."""
        pair = self.rank * (d_in + d_out)
        return Size(pair, pair)

    def layer_growth(self, d_in: int, d_out: int, hidden: int) -> int:
        """Counts what every chunk after the first adds to a layer's part of the file."""
        return 0

    def model_growth(self, hidden: int) -> int:
        """Counts what every chunk after the first adds beside the layers."""
        return 0

    def model_size(self, hidden: int) -> Size:
        """Counts what an adapter has once, beside its layers."""
        return Size(0, 0)


_COMPARISONS = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "above"),
    "lt": (lambda value, bound: value < bound, "below"),
}


def bounds_of(item: Field[Any]) -> dict[str, float]:
    """Returns the bounds of an option: ge, gt and lt, as far as it has them."""
    return dict(item.metadata["bounds"])


def fits(value: Any, kind: Any, bounds: dict[str, float]) -> bool:
    """Whether `value` is of an option's type (bool, int, float, str, Literal) and in its bounds."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
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
class TunerOptions(AdapterOptions):
    """Options of one StrLoRA adapter. The defaults are the `paper` preset."""

    structure: ClassVar[tuple[str, ...]] = ("num_experts", "router_dim", "instruction_norm")
    scheduled: ClassVar[tuple[str, ...]] = (
        "ema_decay",
        "stability_weight",
        "stability_temperature",
        "stability_reduction",
        "freeze_routers",
        "task_router",
        "top_k",
        "token_top_k",
        "unused_expert_gradient",
        "gate_scale",
        "padding",
    )
    default_preset: ClassVar[str | None] = "paper"
    num_experts: int = option(4, ge=1, description="Experts E a layer (published: 4).")
    top_k: int = option(
        2, ge=1, description="Experts that stage 1 keeps for an instruction, k <= E (published: 2)."
    )
    token_top_k: int = option(
        2,
        ge=1,
        description="Experts that stage 2 keeps for a token, <= top_k; top_k keeps the weights "
        "soft (released: 1, hard weights with a straight-through gradient).",
    )
    unused_expert_gradient: bool = option(
        True,
        description="With token_top_k < top_k: whether the gates of an expert that no token of the "
        "micro-batch uses get a gradient (the released code skips such an expert: false).",
    )
    router_dim: int = option(
        64, ge=1, description="Width D of stage 2's query and key (published: 64)."
    )
    task_router: Literal["frozen", "straight_through", "prior"] = option(
        "prior",
        description="How stage 1 learns. frozen: a random projection, as released. "
        "straight_through: gates times one, with the gradient of p. prior: log p_e is added to "
        "stage 2's scores inside the kept set.",
    )
    instruction_norm: Literal["none", "layernorm", "running"] = option(
        "running",
        description="What stage 1 and 2 see of the instruction vector t. none: t (released). "
        "layernorm: LayerNorm(t). running: (t - m) / sigma with running statistics of the "
        "instructions seen so far, carried with the adapter; it is what lets stage 1 separate "
        "tasks.",
    )
    gate_scale: Literal["one", "num_experts"] = option(
        "one",
        description="What the gates of a token sum to. one: as published. num_experts: E, so that "
        "uniform gates over all experts equal a plain LoRA of the same rank.",
    )
    ema_decay: float = option(
        0.999,
        gt=0,
        lt=1,
        description="Decay b of the teacher routers, an exponential moving average taken after "
        "every optimizer step (published: 0.999).",
    )
    stability_weight: float = option(
        0.1,
        ge=0,
        description="Weight lambda of KL(teacher || student) over stage 2; 0 switches the term and "
        "the moving average off (published: 0 in the first chunk, then 0.1).",
    )
    stability_temperature: float = option(
        1.0, gt=0, description="Temperature tau of both distributions in the term (published: 1)."
    )
    stability_reduction: Literal["mean", "sum"] = option(
        "mean",
        description="mean: the term is the mean over the tokens of the global batch, so that "
        "lambda means the same on 1 and on 64 processes. sum: the means of all micro-batches and "
        "processes are added up, as the released code does (effective weight 1.6 there).",
    )
    padding: Literal["mask", "include"] = option(
        "mask",
        description="mask: only real tokens count. include: in training the instruction vector and "
        "the stability term also average over padding, as the released code does.",
    )
    freeze_routers: bool = option(
        False,
        description="Freeze both stages' routers (released: from chunk 5, Gemma 4). The stability "
        "term then has no effect and is switched off.",
    )
    compile_routing: Literal["auto", "on", "off"] = option(
        "auto",
        description="Whether training fuses the routing arithmetic of a layer with torch.compile. "
        "auto: on CUDA only. It changes the speed, not the result (float32 rounding aside).",
    )
    require_teacher: bool = option(
        False,
        description="Refuse to train from an adapter that carries no moving average.",
    )

    @staticmethod
    def cross_field_problems(options: Any) -> list[str]:
        """Names every rule over several fields that `options` (any object with them) breaks."""
        problems = [*experts_problems(options), *top_k_problems(options)]
        if options.token_top_k > options.top_k:
            problems.append(
                f"token_top_k = {options.token_top_k} exceeds top_k = {options.top_k}: "
                f"use token_top_k <= {options.top_k}"
            )
        return problems

    def layer_size(self, d_in: int, d_out: int, hidden: int) -> Size:
        """Counts A, B, query (D, d_in), key (D, hidden), prototypes, task router; averages too."""
        pair = self.rank * (d_in + d_out)
        routers = self.router_dim * (d_in + hidden + self.num_experts)
        task = self.num_experts * hidden
        trained = pair + (0 if self.freeze_routers else routers)
        if self.task_router != "frozen" and not self.freeze_routers:
            trained += task
        return Size(trained, pair + 2 * routers + task)

    def model_size(self, hidden: int) -> Size:
        """Counts the instruction statistics: mean (hidden), count, spread, teacher steps."""
        return Size(0, hidden + 3)


def with_preset(options_class: type[AdapterOptions], given: dict[str, Any]) -> dict[str, Any]:
    """Returns `given` over the options of the preset that it names; ValueError for an unknown one.

    An option given as None counts as not given.
    """
    from strlora_tuner.methods.strlora.presets import preset_options

    named = {name: value for name, value in given.items() if value is not None}
    if options_class.default_preset is None:
        return named
    preset = preset_options(named.pop("preset", options_class.default_preset))
    return {**preset, **named}


def options_from_host(
    model_kwargs: dict[str, Any] | None,
    options_class: type[AdapterOptions],
    **lora: Any,
) -> Any:
    """Builds a tuner's options from ms-swift's arguments.

    Args:
        model_kwargs: the host's `--model_kwargs`; keys that start with ``strlora_`` are ours, the
            rest belongs to the model and is left alone. ``strlora_preset`` gives the defaults.
        options_class: the tuner's options, :class:`TunerOptions` for StrLoRA.
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
