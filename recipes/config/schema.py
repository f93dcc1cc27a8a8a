"""A recipe as a whole: its blocks, and what follows from them and from its method.

Unknown keys are refused everywhere. :mod:`recipes.config.blocks` has the blocks. What needs more
than one key is checked when a recipe is loaded, so that every problem gets its file and line: the
`tuner` block by :mod:`recipes.config.tuner_block`, the `swift` block by
:mod:`recipes.config.swift_arguments`, rules over several keys by :mod:`recipes.config.rules`.
"""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from recipes.config.blocks import (
    RUN_NAME,
    Block,
    Data,
    Evaluation,
    Ewc,
    Launcher,
    Lwf,
    Matched,
    Model,
    Phase,
    Pool,
    Replay,
    Schedule,
    SlowWeights,
)
from recipes.config.method import FREEZE, Method, find_method, method_names
from recipes.config.protocol import StreamProtocol
from strlora_tuner.methods import LORA, is_routed, options_class
from strlora_tuner.methods.slow_weights.both_sets import other_kind
from strlora_tuner.methods.slow_weights.options import Kind
from strlora_tuner.options import AdapterOptions, preset_table, with_preset

if TYPE_CHECKING:
    MethodName = str
else:
    # pydantic lists the methods of the folder in its message; mypy cannot read a Literal that is
    # made while running.
    MethodName = Literal[method_names()]


class Recipe(Block):
    """One run: a method on a stream."""

    name: str = Field(pattern=RUN_NAME, description="names the run folder")
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="seed of initialisation, dropout and sample order; the "
        "stream's own is data.seed",
    )
    run_dir: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="null: runs/<name>, with -<method> behind it when method is not strlora"
    )
    start_from: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="a run folder (its newest adapter) or an adapter's folder that the first chunk "
        "goes on from, with what it carries; null: a fresh adapter",
    )
    method: MethodName = Field("strlora", description="a file of recipes/methods/")
    model: Model
    data: Data
    tuner: dict[str, Any] = Field(
        default_factory=dict,
        description="options of the method's tuner; for strlora also preset (paper, released, "
        "released_gemma), which sets all options that belong to it. "
        "Keys that only other methods have stay unused, so that one recipe serves all",
    )
    replay: Replay | None = Field(None, description="replay of past samples; null: none")
    ewc: Ewc | None = Field(None, description="elastic weight consolidation; null: none")
    lwf: Lwf | None = Field(None, description="learning without forgetting; null: none")
    slow_weights: SlowWeights | None = Field(
        None, description="a moving average of the adapter that answers; null: none"
    )
    pool: Pool | None = Field(
        None, description="the router over adapters of single chunks; method mr_lora has one"
    )
    budget: Annotated[str, Field(pattern=r"^match\(\w+\)$")] | None = Field(
        None,
        description="match(NAME): the rank is derived so that the method trains as many parameters "
        "as NAME does at the recipe's rank; null: the rank is taken as it is",
    )
    matched: Matched | None = Field(None, description="filled in by budget; leave it out")
    schedule: Schedule
    swift: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of `swift sft`, by their own names"
    )
    eval: Evaluation = Evaluation.model_validate({})
    launcher: Launcher = Launcher.model_validate({})

    @property
    def folder(self) -> str:
        """The run folder, as given or by default."""
        if self.run_dir is not None:
            return self.run_dir
        usual = self.method == type(self).model_fields["method"].default
        return f"runs/{self.name}" if usual else f"runs/{self.name}-{self.method}"

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps that make the global batch."""
        return self.schedule.global_batch // (self.schedule.per_device_batch * self.processes)

    @property
    def processes(self) -> int:
        """Training processes on all machines together."""
        return self.launcher.nproc * self.launcher.nodes

    def chunk_seed(self, chunk: int) -> int:
        """The seed of everything that is drawn for one chunk: below 2**32, NumPy's bound.

        Where seed * 1000 + chunk is above (a date as seed), the first four bytes of the sha256 of
        the text "seed/chunk", read from the left, take its place.
        """
        simple = self.seed * 1000 + chunk
        if simple < 2**32:
            return simple
        return int.from_bytes(sha256(f"{self.seed}/{chunk}".encode()).digest()[:4], "big")

    @property
    def host_seed(self) -> int:
        """The seed that the host is given and adds each rank to: every sum is below 2**32."""
        return min(self.seed, 2**32 - self.processes)

    @property
    def definition(self) -> Method:
        """What the method is, from its file."""
        return find_method(self.method)

    @property
    def protocol(self) -> StreamProtocol:
        """How the method goes through the chunks."""
        return self.definition.protocol

    @property
    def tuner_type(self) -> str | None:
        """The tuner that trains; None where nothing is trained."""
        return self.definition.tuner_type

    @property
    def routed(self) -> bool:
        """Whether our plug-in supplies the tuner, with experts whose use is recorded."""
        return self.tuner_type is not None and is_routed(self.tuner_type)

    @property
    def task_labels(self) -> str:
        """What the model is given of a question's task: `task`, `template` or nothing."""
        sentence = str(getattr(self.tuner_options, "sentence", "prompt"))
        return "" if sentence == "prompt" else sentence

    @property
    def options_class(self) -> type[AdapterOptions]:
        """The dataclass of the tuner's options; of plain LoRA's where nothing is trained."""
        return options_class(self.tuner_type or LORA)

    @property
    def tuner_options(self) -> AdapterOptions:
        """The tuner block over its preset, checked; the schedule's keys are not in it."""
        kind = self.options_class
        unused = self.unused_tuner_keys
        given = {key: value for key, value in self.tuner_given.items() if key not in unused}
        return kind(**with_preset(kind, given))

    @property
    def tuner_given(self) -> dict[str, Any]:
        """The tuner block, with what a budget derived."""
        return {**self.tuner, **(self.matched.tuner if self.matched else {})}

    @property
    def preset(self) -> str | None:
        """The preset of the tuner's options; None where the tuner has none, or nothing trains."""
        default = self.options_class.default_preset
        return default and str(self.tuner.get("preset") or default)

    @property
    def routers_frozen_from(self) -> int:
        """The chunk from which on the routers are frozen; 0: never."""
        given = self.schedule.later.freeze_routers_from_chunk
        if given is None:
            given = self.options_class.freeze_routers_from.get(self.preset or "", 0)
        return given

    @property
    def preset_changes(self) -> dict[str, Any]:
        """What the recipe changed of its preset, by key; empty where there are no presets."""
        if self.preset is None:
            return {}
        kind, options = self.options_class, self.tuner_options
        owned = preset_table(kind, self.preset)
        sizes = {item.name: getattr(options, item.name) for item in dataclasses.fields(kind)
                 if item.name not in owned}  # fmt: skip
        pure = kind(**with_preset(kind, {**sizes, "preset": self.preset}))
        pairs = {key: (getattr(pure, key), getattr(options, key)) for key in owned}
        frozen_from = kind.freeze_routers_from.get(self.preset, 0)
        pairs[FREEZE] = frozen_from, self.routers_frozen_from
        return {key: found for key, (expected, found) in pairs.items() if found != expected}

    @property
    def preset_label(self) -> str | None:
        """The preset's name, and behind it what the recipe changed; None without presets."""
        changes = ", ".join(f"{key}={value}" for key, value in self.preset_changes.items())
        return f"{self.preset}, modified: {changes}" if changes else self.preset

    @property
    def title(self) -> str:
        """The method for people, with its preset."""
        return self.method if self.preset is None else f"{self.method} ({self.preset_label})"

    @property
    def own_tuner_keys(self) -> set[str]:
        """Keys of the tuner block that this method's tuner has."""
        kind = self.options_class
        presets = set() if kind.default_preset is None else {"preset"}
        return {item.name for item in dataclasses.fields(kind)} | presets

    @property
    def unused_tuner_keys(self) -> list[str]:
        """Keys of the tuner block that this method's tuner does not have, sorted."""
        return sorted(self.tuner.keys() - self.own_tuner_keys)

    @property
    def unused_tuner_text(self) -> str:
        """The same as a sentence."""
        keys = ", ".join(f"tuner.{key}" for key in self.unused_tuner_keys)
        return f"not used by method {self.method}: {keys}"

    @property
    def trained_chunks(self) -> list[int]:
        """The chunks that leave an adapter."""
        return self.protocol.trained_chunks(self.data.chunks)

    @property
    def evaluation_points(self) -> list[int]:
        """The chunks after which scores can be taken: 0 (the base model), and up to the last."""
        return self.protocol.evaluation_points(self.data.chunks)

    def evaluates_after(self, chunk: int) -> bool:
        """Whether the recipe evaluates after `chunk`: always before training and after the last."""
        return chunk % self.eval.every == 0 or chunk == self.data.chunks

    @property
    def keeps_optimizer(self) -> bool:
        """Whether a chunk's optimizer goes on with the state of the chunk before."""
        return self.schedule.later.optimizer_state == "keep"

    @property
    def other_weights(self) -> Kind | None:
        """The set of weights that is evaluated beside the one that answers; None: it is not."""
        if not self.eval.both_weights or self.slow_weights is None:
            return None
        return other_kind(self.slow_weights.answer)

    def data_chunks(self, chunk: int) -> list[int]:
        """The chunks whose samples are trained on for the first time at `chunk`."""
        return self.protocol.data_chunks(chunk, self.data.chunks)

    def previous(self, chunk: int) -> int | None:
        """The chunk whose adapter `chunk` continues; None: it starts with a fresh one.

        0 is the adapter of `start_from`.
        """
        if chunk == 1 and self.start_from is not None:
            return 0
        return self.protocol.previous(chunk)

    def replays(self, chunk: int) -> bool:
        """Whether samples of past chunks are mixed into chunk `chunk`."""
        return self.replay is not None and self.previous(chunk) is not None

    def phase(self, chunk: int) -> Phase:
        """The settings of chunk `chunk`, counted from 1; one that starts afresh is a first."""
        first = self.previous(chunk) is None
        return self.schedule.first if first else self.schedule.later
