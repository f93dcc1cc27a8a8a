"""The one schema of a recipe: every key, its default, its bounds, what it means.

Unknown keys are refused everywhere. The `tuner` block is checked by
:class:`strlora_tuner.schema.TunerOptions`, the `swift` block by :mod:`recipes.host_arguments`, both
from :mod:`recipes.loading`, which names file and line of every problem.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from strlora_tuner.presets import preset_options
from strlora_tuner.schema import TunerOptions, bounds_of
from strlora_tuner.schema import cross_field_problems as tuner_problems

# Keys of TunerOptions that the schedule decides chunk by chunk.
SCHEDULED_TUNER_KEYS = {
    "stability_weight": "set schedule.first.stability_weight and schedule.later.stability_weight",
    "freeze_routers": "set schedule.later.freeze_routers_from_chunk",
    "require_teacher": "set by itself: every chunk after the first must find its teacher",
}

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class _TunerRules(BaseModel):
    """The rules over several options of the `tuner` block."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _check_together(self) -> Any:
        problems = tuner_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _tuner_block() -> type[BaseModel]:
    """The tuner's options as a pydantic model: the same fields, bounds, words and rules."""
    hints = get_type_hints(TunerOptions)
    options: dict[str, Any] = {}
    for item in dataclasses.fields(TunerOptions):
        bounds: dict[str, Any] = bounds_of(item)
        info = Field(item.default, description=item.metadata["description"], **bounds)
        options[item.name] = (hints[item.name], info)
    return create_model("TunerBlock", __base__=_TunerRules, **options)


TunerBlock = _tuner_block()


class Block(BaseModel):
    """A block of a recipe: immutable, no unknown keys, floats must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Block):
    path: str = Field(min_length=1, description="local folder or hub id of the base model")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="bfloat16 and float16 train in mixed precision"
    )
    max_length: Positive = Field(
        4096, description="longest sample in tokens, image tokens included"
    )
    aligner: str | None = Field(
        None,
        description="name of the projector that is trained in full (multi_modal_projector for "
        "InternVL-HF and Gemma 3); null keeps it frozen",
    )
    download: str | None = Field(None, description="how to get it: shown when the model is missing")
    remote_code: bool = Field(
        False, description="run Python files that come with the model; only if you trust its source"
    )


class Data(Block):
    stream: str = Field(min_length=1, description="the stream's folder, with stream.json in it")
    source: Literal["mini", "folder"] = Field(
        "folder", description="mini: made by data_prep.mini when absent; folder: must exist"
    )
    size: str = Field("tiny", description="source mini: its size")
    seed: int = Field(0, ge=0, description="source mini: the seed that it is rendered from")
    chunks: Positive = Field(description="chunks to train, counted from the first")
    prepare: str | None = Field(None, description="how to get it: shown when the stream is missing")


class Phase(Block):
    """What the host is told in one phase of the stream."""

    learning_rate: Rate = Field(description="peak learning rate of the adapter")
    aligner_lr: Rate | None = Field(
        None, description="learning rate of the aligner, if it is trained"
    )
    lr_scheduler_type: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "polynomial", "inverse_sqrt"
    ] = Field("constant", description="restarts with every chunk")
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of a chunk's steps that warm up"
    )
    stability_weight: float | None = Field(
        None, ge=0, description="the tuner's stability_weight here; null: the preset's value"
    )


class LaterPhase(Phase):
    freeze_routers_from_chunk: Annotated[int, Field(ge=2)] | None = Field(
        None, description="from this chunk on the routers are frozen; null: never"
    )


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


# Words of sbatch and file names: nothing that a shell or sbatch could read as something else.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:,@%/+=-]*$")]
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./~-][^\s]*$")]


class Slurm(Block):
    """What a job asks for; names of partitions and accounts belong into your own recipe."""

    partition: Word | None = Field(None, description="null: the cluster's default")
    account: Word | None = Field(None, description="null: your default")
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d{1,2}){0,2}$")] = Field(
        "24:00:00", description="time limit of one job; the stream goes on in the next"
    )
    stop_before: Positive = Field(
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
    modules: list[Word] = Field(default_factory=list, description="environment modules to load")
    venv: Folder | None = Field(None, description="virtual environment; null: the repository's")
    container: Folder | None = Field(
        None, description="image in which apptainer runs the host; null: none"
    )


class Launcher(Block):
    kind: Literal["local", "torchrun", "slurm"] = Field(
        "local",
        description="local: this machine; torchrun: the same, but one process too goes through "
        "torchrun; slurm: a job, its host processes on all its nodes by srun",
    )
    nodes: Positive = Field(1, description="machines; more than one needs kind slurm")
    slurm: Slurm = Slurm.model_validate({})
    nproc: Positive = Field(1, description="processes on each machine, one a GPU")
    cpu: bool = Field(False, description="train and evaluate without a GPU")
    deepspeed: str | None = Field(None, description="zero2, zero3, ... or a DeepSpeed JSON file")
    omp_threads: Positive | None = Field(None, description="null: the cores shared out, 8 at most")


class Recipe(Block):
    """One run: a method on a stream."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    seed: int = Field(0, ge=0, description="seed of initialisation, dropout and sample order")
    run_dir: str | None = Field(
        None, description="null: runs/<name>, with -<method> behind it when method is not strlora"
    )
    method: Literal["strlora", "lora"] = "strlora"
    model: Model
    data: Data
    tuner: dict[str, Any] = Field(
        default_factory=dict, description="preset (released | paper) and keys of TunerOptions"
    )
    schedule: Schedule
    swift: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of `swift sft`, by their own names"
    )
    eval: Evaluation = Evaluation.model_validate({})
    launcher: Launcher = Launcher.model_validate({})

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        problems = cross_field_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def folder(self) -> str:
        """The run folder, as given or by default."""
        if self.run_dir is not None:
            return self.run_dir
        return (
            f"runs/{self.name}" if self.method == "strlora" else f"runs/{self.name}-{self.method}"
        )

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps that make the global batch."""
        return self.schedule.global_batch // (self.schedule.per_device_batch * self.processes)

    @property
    def processes(self) -> int:
        """Training processes on all machines together."""
        return self.launcher.nproc * self.launcher.nodes

    @property
    def tuner_options(self) -> TunerOptions:
        """The tuner block over its preset, checked; the schedule's keys are not in it."""
        options = dict(self.tuner)
        preset = preset_options(options.pop("preset", "paper"))
        return TunerOptions(**{**preset, **options})

    def phase(self, chunk: int) -> Phase:
        """The settings of chunk `chunk`, counted from 1."""
        return self.schedule.first if chunk == 1 else self.schedule.later


def cross_field_problems(recipe: Recipe) -> list[str]:
    """Names every rule over several keys that `recipe` breaks."""
    schedule, launcher = recipe.schedule, recipe.launcher
    problems = []
    step = schedule.per_device_batch * recipe.processes
    if schedule.global_batch % step:
        below = max(schedule.global_batch // step, 1) * step
        problems.append(
            f"schedule.global_batch = {schedule.global_batch} cannot be made of per_device_batch "
            f"{schedule.per_device_batch} x {recipe.processes} processes (launcher.nproc"
            f"{' x launcher.nodes' if launcher.nodes > 1 else ''}) x a whole "
            f"accumulation: use a global batch of {below} or {below + step}, or change the others"
        )
    for phase, name in ((schedule.first, "first"), (schedule.later, "later")):
        if phase.aligner_lr is not None and recipe.model.aligner is None:
            problems.append(
                f"schedule.{name}.aligner_lr = {phase.aligner_lr} has nothing to act on: set "
                "model.aligner (multi_modal_projector) or remove the rate"
            )
    problems += _backend_problems(recipe)
    if launcher.nodes > 1 and launcher.kind != "slurm":
        problems.append(
            f"launcher.nodes = {launcher.nodes} needs something that starts processes on other "
            "machines: set launcher.kind to slurm"
        )
    if launcher.cpu and recipe.model.dtype == "float16":
        problems.append("model.dtype = float16 needs a GPU: with launcher.cpu use float32")
    if recipe.data.source == "mini" and not re.fullmatch(r"[a-z0-9_-]+", recipe.data.size):
        problems.append(f"data.size = {recipe.data.size!r} is no size of the mini stream")
    return problems


# Methods whose adapter can be merged into the base weights, which is all that vLLM is given.
MERGEABLE = ("lora",)


def _backend_problems(recipe: Recipe) -> list[str]:
    if recipe.eval.backend != "vllm":
        return []
    problems = []
    if recipe.method not in MERGEABLE:
        problems.append(
            f"eval.backend = vllm cannot serve method = {recipe.method}: its expert weights depend "
            "on instruction and token, so the adapter cannot be merged into the model, and vLLM "
            "knows plain LoRA only; use eval.backend: transformers"
        )
    if recipe.launcher.cpu:
        problems.append(
            "eval.backend = vllm needs a GPU: with launcher.cpu use eval.backend: transformers"
        )
    return problems
