"""The blocks of a recipe: every key, its default, its bounds, what it means."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticKnownError

from strlora_tuner.methods.ewc import options as ewc
from strlora_tuner.methods.lwf import options as lwf
from strlora_tuner.methods.slow_weights import options as slow_weights
from strlora_tuner.methods.slow_weights.options import Kind
from strlora_tuner.options import bounds_of

# What a text must look like, and how to say so.
WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.:,@%/+=-]*$"
BIND = r"^/[^\s:,]*(:/[^\s:,]*(:r[ow])?)?$"
FOLDER = r"^[A-Za-z0-9_./~-][^\s]*$"
TIME_LIMIT = r"^(\d+-)?\d+(:\d{1,2}){0,2}$"
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FORMS = {
    WORD: "one word of letters, digits and _ . : , @ % / + = -",
    BIND: "FOLDER, FROM:TO or FROM:TO:ro, each an absolute path",
    FOLDER: "a path without blanks",
    TIME_LIMIT: "minutes, H:MM:SS or D-H:MM:SS",
    RUN_NAME: "letters, digits and . _ -, the first a letter or a digit",
}

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation such as Annotated[int, ...] | None is made of."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


class Block(BaseModel):
    """A block of a recipe: immutable, no unknown keys, floats must be finite, 8.0 is no integer.

    A text that says a number is one: `${oc.env:X}` gives texts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, (bool, float)) and info.field_name is not None:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if isinstance(value, bool) and bool not in kinds and float in kinds:
                raise PydanticKnownError("float_type")
            if int in kinds and not kinds & {type(value), float}:
                raise PydanticKnownError("int_type")
        return value


class Model(Block):
    path: str = Field(min_length=1, description="local folder or hub id of the base model")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="bfloat16 and float16 train in mixed precision"
    )
    max_length: Positive = Field(
        4096, description="longest sample in tokens, image tokens included"
    )
    aligner: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="name of the projector that is trained in full (multi_modal_projector for "
        "InternVL-HF and Gemma 3); null keeps it frozen",
    )
    download: str | None = Field(None, description="how to get it: shown when the model is missing")
    remote_code: bool = Field(
        False, description="run Python files that come with the model; only if you trust its source"
    )

    @property
    def is_local(self) -> bool:
        """Whether it is a folder: it exists, is written as a path, or is downloaded to one."""
        return Path(self.path).exists() or self.path[0] in "./~" or self.download is not None


class Data(Block):
    stream: str = Field(
        min_length=1,
        description="the stream's folder, with stream.json in it; source mini: left out, the "
        "folder is named by size and seed",
    )
    source: Literal["mini", "folder"] = Field(
        "folder", description="mini: made by data_prep.mini when absent; folder: must exist"
    )
    size: str = Field("tiny", description="source mini: its size")
    seed: int = Field(
        0,
        ge=0,
        description="source mini: the seed that it is rendered from; the recipe's own seed changes "
        "nothing in it",
    )
    chunks: Positive = Field(
        description="chunks to train, counted from the first; left out: all that the stream holds"
    )
    prepare: str | None = Field(None, description="how to get it: shown when the stream is missing")
    too_long: Literal["skip", "cut", "stop"] = Field(
        "skip",
        description="a training sample of more than model.max_length tokens: skip (published) "
        "takes the next one in its place, cut leaves out its end, stop ends the run; each is named "
        "in chunks/NNN/too_long.jsonl and in the report",
    )


class Phase(Block):
    """Settings of one phase of the stream."""

    learning_rate: Rate = Field(description="peak learning rate of the adapter")
    aligner_lr: Rate | None = Field(
        None, description="learning rate of the aligner, if it is trained"
    )
    lr_scheduler_type: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt"
    ] = Field("constant", description="restarts with every chunk")
    warmup_ratio: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a chunk's steps that warm up, the first at a rate of 0; one step at "
        "least is none of them",
    )
    stability_weight: float | None = Field(
        None, ge=0, description="the tuner's stability_weight here; null: the preset's value"
    )

    @property
    def peak_rates(self) -> dict[str, float]:
        """The learning rates that the host is given, by its arguments."""
        rates = {"learning_rate": self.learning_rate, "aligner_lr": self.aligner_lr}
        return {name: rate for name, rate in rates.items() if rate is not None}


class LaterPhase(Phase):
    rate_factor: float = Field(
        1.0, gt=0, description="what both rates are multiplied with; for baselines that step less"
    )
    optimizer_state: Literal["fresh", "keep"] = Field(
        "fresh",
        description="what a chunk's optimizer begins with: nothing, or the moments that the chunk "
        "before ended with (not under DeepSpeed)",
    )
    freeze_routers_from_chunk: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="from this chunk on the routers are frozen, 0: never; null: as the preset says",
    )

    @property
    def peak_rates(self) -> dict[str, float]:
        """The learning rates that the host is given; six digits, so that 0.1 x 3 is 0.3."""
        rates, factor = super().peak_rates, self.rate_factor
        return {
            k: rate if factor == 1 else float(f"{rate * factor:.6g}") for k, rate in rates.items()
        }


class Schedule(Block):
    global_batch: Positive = Field(description="samples an optimizer step, over all processes")
    per_device_batch: Positive = Field(description="samples a forward pass on one process")
    epochs: Positive = Field(1, description="passes over a chunk")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay")
    save_steps: Positive = Field(50, description="steps between checkpoints inside a chunk")
    keep_checkpoints: Positive = Field(2, description="checkpoints kept while a chunk is trained")
    first: Phase = Field(description="the first chunk")
    later: LaterPhase = Field(description="every chunk after the first")


class Evaluation(Block):
    tasks: list[str] | None = Field(None, min_length=1, description="null: all tasks of the stream")
    limit: Positive | None = Field(None, description="test samples a task; null: all of them")
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm: method lora only, on a GPU; merges each adapter first"
    )
    batch_size: Positive = Field(8, description="prompts generated together, on one process")
    max_new_tokens: Positive = Field(100, description="longest answer (published: 100)")
    every: Positive = Field(1, description="evaluate after every n-th chunk, and after the last")
    both_weights: bool = Field(
        False,
        description="with slow_weights: the set that does not answer is evaluated, too, into "
        "chunks/NNN/fast (or slow) and matrix-fast.csv, which report and status show beside it",
    )
    scorer: str | dict[str, str] | None = Field(
        None,
        description="a function of your own, my_scorer.py:score, or a built-in scorer (python -m "
        "eval.score --list), for all tasks or by task; null: the stream's. Another one, or a "
        "changed file, scores the recorded answers of the run again",
    )


class Replay(Block):
    memory: Positive = Field(500, description="samples kept of all past chunks (a reservoir)")
    share: Rate = Field(0.5, description="share of every global batch that is drawn from them")
    samples: Literal["more", "equal"] = Field(
        "more",
        description="more: replayed samples come beside all of a chunk's own; equal: in their "
        "place, so that a chunk takes as many samples and steps as without replay, and a share of "
        "its own, drawn at random, is not trained on",
    )

    def replayed(self, global_batch: int) -> int | None:
        """Replayed samples of a global batch; None when `share` gives no whole number of them."""
        count = round(self.share * global_batch)
        if abs(count - self.share * global_batch) > 1e-6 or not 0 < count < global_batch:
            return None
        return count


def declared(options: type[Any], base: type[Block] = Block) -> Any:
    """The options of a tuner or a callback as a block: the same fields, defaults and bounds.

    Fields without a description are no keys of a recipe; the run gives them.
    """
    hints = get_type_hints(options)
    keys: dict[str, Any] = {}
    for item in (item for item in dataclasses.fields(options) if "description" in item.metadata):
        bounds: Any = bounds_of(item)
        if hints[item.name] is str:
            bounds["min_length"] = 1
        default = ... if item.default is dataclasses.MISSING else item.default
        info = Field(default, description=item.metadata["description"], **bounds)
        keys[item.name] = (hints[item.name], info)
    return create_model(base.__name__, __base__=base, **keys)


if TYPE_CHECKING:  # mypy cannot follow classes that are made while running

    class Ewc(Block, ewc.Options): ...

    class Lwf(Block, lwf.Options): ...

    class _Average(Block, slow_weights.Options): ...
else:
    Ewc, Lwf, _Average = map(declared, (ewc.Options, lwf.Options, slow_weights.Options))


class SlowWeights(_Average):
    answer: Kind = Field(
        "slow", description="which of the two sets of weights is evaluated and is the adapter"
    )
    start_next_from: Kind = Field("fast", description="which of them the next chunk trains on")


class Pool(Block):
    samples: Positive = Field(
        20, description="samples of a chunk that every later router is trained on (published: 20)"
    )
    learning_rate: Rate | None = Field(
        None, description="the router's; null: a quarter of schedule.first's, as published"
    )
    epochs: Positive = Field(
        5,
        description="passes of the router over its samples (published: 40 for the five domains, "
        "35 for the four abilities)",
    )
    router_start: Literal["fresh", "merged"] = Field(
        "fresh",
        description="what a router is trained from: a fresh adapter, or the mean of the chunks' "
        "adapters so far (published)",
    )
    fallback: Literal["newest", "largest"] = Field(
        "newest",
        description="whose adapter answers when the router names none: the newest chunk's, or that "
        "of the chunk with most steps",
    )
    descriptions: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="what each chunk's adapter is for, one text a chunk, shown to the router "
        "beside its letter (published, for a task or domain a chunk); empty: letters only",
    )

    def described(self, count: int) -> list[str]:
        """What the router is shown of the first `count` chunks beside their letters."""
        return self.descriptions[:count] or [""] * count

    def router_rate(self, first: Phase) -> float:
        """The router's learning rate (published: 5e-6 beside 2e-5 for the experts)."""
        return self.learning_rate or first.learning_rate / 4


class Matched(Block):
    """What `budget` derived; the loader fills it in."""

    tuner: dict[str, Any] = Field(description="the derived options, over those of the tuner block")
    trained: int = Field(ge=0, description="trainable parameters that they give, aligner left out")
    wanted: int = Field(ge=1, description="those of the method that was to be matched")

    @property
    def gap(self) -> float:
        """How far `trained` is from `wanted`, as a part of it."""
        return abs(self.trained - self.wanted) / self.wanted


# Words of sbatch and file names: nothing that a shell or sbatch could read as something else.
Word = Annotated[str, Field(pattern=WORD)]
Bind = Annotated[str, Field(pattern=BIND)]
Folder = Annotated[str, Field(pattern=FOLDER)]


class Slurm(Block):
    """What a job asks for; names of partitions and accounts belong into your own recipe."""

    partition: Word | None = Field(None, description="null: the cluster's default")
    account: Word | None = Field(None, description="null: your default")
    time: Annotated[str, Field(pattern=TIME_LIMIT)] = Field(
        "24:00:00", description="time limit of one job; the next one continues the stream"
    )
    stop_before: Annotated[int, Field(ge=1, le=65535)] = Field(
        300, description="seconds before the limit at which a job saves and requeues itself"
    )
    gpus_per_node: Annotated[int, Field(ge=0)] | None = Field(
        None, description="null: launcher.nproc, or none with launcher.cpu"
    )
    cpus_per_task: Positive | None = Field(None, description="cores a node; null: the default")
    memory: Word | None = Field(None, description="memory a node, such as 200G; null: the default")
    logs: Folder = Field("logs", description="folder of the job logs")
    options: list[Word] = Field(
        default_factory=list, description="further sbatch options without --, e.g. constraint=h100"
    )
    srun_options: list[Word] = Field(
        default_factory=list, description="further srun options without --, e.g. mpi=none"
    )
    eval_jobs: bool = Field(
        False,
        description="--slurm submits two jobs: one trains all chunks, the next evaluates them",
    )
    modules: list[Word] = Field(default_factory=list, description="environment modules to load")
    venv: Folder | None = Field(None, description="virtual environment; null: the repository's")
    container: Folder | None = Field(
        None, description="image in which apptainer runs the host; null: none"
    )
    binds: list[Bind] = Field(
        default_factory=list,
        description="further folders that the image sees, as FOLDER, FROM:TO or FROM:TO:ro, such "
        "as that of a cache; the checkout, model, stream and run are seen anyway",
    )


class Launcher(Block):
    kind: Literal["local", "torchrun", "slurm"] = Field(
        "local",
        description="local: this machine; torchrun: the same, but one process too goes through "
        "torchrun; slurm: a job, its host processes on all its nodes by srun",
    )
    nodes: Positive = Field(1, description="machines; more than one needs kind slurm")
    # Not Slurm(): without its plug-in for pydantic mypy takes fields that have a default for
    # required ones.
    slurm: Slurm = Slurm.model_validate({})
    nproc: Positive = Field(1, description="processes on each machine, one a GPU")
    cpu: bool = Field(False, description="train and evaluate without a GPU")
    gpu_gib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GiB of a GPU, for `plan`; null: of the smallest GPU here"
    )
    deepspeed: str | None = Field(None, description="zero2, zero3, ... or a DeepSpeed JSON file")
    omp_threads: Positive | None = Field(None, description="null: the cores shared out, 8 at most")
    portable_kernels: bool = Field(
        False,
        description="only instructions that every x86-64 processor has: slower on the CPU, but the "
        "same numbers on another machine (same libraries, omp_threads and layout of processes)",
    )
    resident: bool = Field(
        False, description="keep host and base model in memory between chunks; on one machine"
    )
