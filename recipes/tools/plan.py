"""`plan`: what a run will take. Every figure is counted or measured; others are "not known"."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from data_prep.check.lengths import spread
from data_prep.files import numbered_jsonl, read_jsonl
from data_prep.mini.mixtures import SIZES
from data_prep.stream import Stream, StreamError
from recipes.baselines.mr_lora.pool import router_lines
from recipes.baselines.replay import mixture_of
from recipes.baselines.start_adapter import will_replay
from recipes.config.blocks import Data
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import CountError, Shape, adapter_size, model_shape
from recipes.config.sizes.stored import BYTES, left_by_all, left_by_chunk, sizes_by_chunk
from recipes.run.chunk_data import open_recipe_stream
from recipes.run_folder.layout import RunLayout
from recipes.tools.measured import Measured, find_measured
from recipes.tools.memory.prediction import MemoryPlan, heavy_rows, plan_memory
from recipes.tools.method_sizes import MethodSize
from recipes.tools.token_counts import count_tokens

COUNTED_LINES = 200  # of a chunk's file, to find what a sample of it holds on average
COUNTED_TOKENS = 100  # samples of the whole stream whose tokens the host counts
GIB = 2**30


@dataclass(frozen=True)
class ChunkPlan:
    """What one training reads and does; None where the stream is not here to be counted.

    `samples` are the chunk's own; read besides are `replayed` ones, `fisher` for EWC's Fisher
    information, and `routed` by a router. `steps`, `tokens` (of pictures, too) and `images` are
    of all of them.
    """

    chunk: int
    evaluated: bool
    samples: int | None = None
    replayed: int = 0
    fisher: int = 0
    routed: int = 0
    steps: int | None = None
    tokens: int | None = None
    images: int | None = None


@dataclass(frozen=True)
class TokenPlan:
    """Tokens of a sample of the stream by the host's template; `too_long`: over max_length."""

    counted: int
    mean: float
    longest: int
    too_long: int
    max_length: int


@dataclass(frozen=True)
class ModelPlan:
    """Parameters of the base model, those that are trained, and those of the last chunk's files."""

    parameters: int
    trained_parameters: int
    stored_parameters: int
    trained_share: float
    adapters_gib: float


@dataclass(frozen=True)
class Seconds:
    """Seconds of one training, of one evaluation and of the whole run, from measured means."""

    train: float
    evaluate: float
    run: float


@dataclass(frozen=True)
class Plan:
    """A whole plan; what is None is not known.

    `evaluations` counts those of the base model and of both sets of weights, `questions` are those
    of one. `budget` holds what it asked for and what it derived. `memory` is that of one process
    while it trains. `sources` says of each group of figures where it comes from.
    """

    recipe: str
    method: str
    run: str
    chunks_in_all: int
    processes: int
    chunks: list[ChunkPlan]
    evaluations: int
    questions: int | None
    tokens: TokenPlan | None
    model: ModelPlan | None
    budget: dict[str, Any] | None
    memory: MemoryPlan | None
    measured: Measured | None
    seconds: Seconds | None
    gpu_hours: float | None
    methods: list[MethodSize] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def make_plan(recipe: Recipe, methods: Sequence[MethodSize] = (), count: bool = False) -> Plan:
    """Returns the plan of a recipe; :func:`recipes.tools.plan_text.as_text` turns it into tables.

    Args:
        methods: what all methods would train and store, from sizes_of_methods.
        count: have the host count tokens and run a step's shapes, in processes that take seconds
            to start.
    """
    stream: Stream | None = None
    with suppress(StreamError):
        stream = open_recipe_stream(recipe)
    counted, memory, unknown = (
        _ask_host(recipe, stream) if count else _unknown("not counted (--quick)")
    )
    chunks = [_chunk(recipe, stream, index, counted) for index in recipe.trained_chunks]
    shape = model_shape(recipe)
    matched = None if recipe.matched is None else recipe.matched.model_dump()
    measured = find_measured(recipe, {c.chunk: c.steps for c in chunks if c.steps is not None})
    evaluations = 1 + sum(c.evaluated for c in chunks) * (2 if recipe.other_weights else 1)
    seconds = None if measured is None else _seconds(chunks, evaluations, measured)
    on_gpus = seconds is not None and not recipe.launcher.cpu
    return Plan(
        recipe=recipe.name,
        method=recipe.title,
        run=recipe.folder,
        chunks_in_all=recipe.data.chunks,
        processes=recipe.processes,
        chunks=chunks,
        evaluations=evaluations,
        questions=_questions(recipe, stream),
        tokens=counted,
        model=None if shape is None else _model(recipe, shape),
        budget=matched and {"asked": recipe.budget, **matched},
        memory=memory,
        measured=measured,
        seconds=seconds,
        gpu_hours=seconds.run / 3600 * recipe.processes if seconds and on_gpus else None,
        methods=list(methods),
        sources=_sources(recipe, stream, shape, measured) | unknown,
    )


Asked = tuple[TokenPlan | None, MemoryPlan | None, dict[str, str]]


def _unknown(why: str) -> Asked:
    return None, None, {"tokens": why, "memory": why}


def _ask_host(recipe: Recipe, stream: Stream | None) -> Asked:
    """Tokens of samples that are spread evenly over the stream, and the memory of its worst batch.

    The last is why tokens or memory are not known, where they are not.
    """
    if stream is None:
        return _unknown("not known until the stream is here")
    chunks = [i for chunk in recipe.trained_chunks for i in recipe.data_chunks(chunk)]
    each = -(-COUNTED_TOKENS // max(len(chunks), 1))
    rows = []
    for chunk in chunks:
        samples = read_jsonl(stream.chunk_file(chunk))
        rows += [samples[number] for number in spread(len(samples), each)]
    if not rows:
        return _unknown("nothing is trained")
    everything = (row for chunk in chunks for row in read_jsonl(stream.chunk_file(chunk)))
    candidates = rows + heavy_rows(everything, stream.root)
    try:
        lengths = count_tokens(recipe, candidates, stream.root)
    except CountError as error:
        return _unknown(f"not known: {error}")
    most, sample = recipe.model.max_length, lengths[: len(rows)]
    long = sum(tokens > most for tokens in sample)
    tokens = TokenPlan(len(rows), fmean(sample), max(lengths), long, most)
    try:
        memory = plan_memory(recipe, candidates, lengths, stream.root)
    except CountError as error:
        return tokens, None, {"memory": f"not known: {error}"}
    why = {} if memory else {"memory": "not known: all samples are over model.max_length"}
    return tokens, memory, why


def _chunk(
    recipe: Recipe, stream: Stream | None, index: int, counted: TokenPlan | None
) -> ChunkPlan:
    evaluated = recipe.evaluates_after(index)
    chunks = recipe.data_chunks(index)
    counts = [_samples(recipe, stream, chunk) for chunk in chunks]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return ChunkPlan(index, evaluated)
    samples = sum(known)
    trained, replayed, steps = _trained(recipe, index, samples)
    fisher = 0  # samples that are read once more, one at a time
    if recipe.ewc is not None and recipe.ewc.fisher:
        fisher = min(samples, recipe.ewc.samples or samples)
    routed, router_steps = _router(recipe, stream, index)
    read = trained + fisher + routed
    images = _images(stream, chunks, known) if stream else None
    return ChunkPlan(
        chunk=index,
        evaluated=evaluated,
        samples=samples,
        replayed=replayed,
        fisher=fisher,
        routed=routed,
        steps=steps + router_steps,
        tokens=None if counted is None else round(read * counted.mean),
        images=None if images is None else round(read * images),
    )


def _samples(recipe: Recipe, stream: Stream | None, chunk: int) -> int | None:
    """Samples of a chunk; of one that is not made yet only where the miniature's size tells."""
    if stream is not None:
        return stream.chunk(chunk).samples
    return SIZES[recipe.data.size].samples if _is_known_mini(recipe.data) else None


def _is_known_mini(data: Data) -> bool:
    return data.source == "mini" and data.size in SIZES


def _trained(recipe: Recipe, index: int, samples: int) -> tuple[int, int, int]:
    """Samples that training reads in all epochs, how many are replayed, and optimizer steps."""
    epochs = recipe.schedule.epochs
    if will_replay(recipe, RunLayout(Path(recipe.folder)), index):
        batches = list(mixture_of(recipe).batches(samples * epochs))
        replayed = sum(count for _, count in batches)
        read, steps = _one_pass(recipe, sum(own for own, _ in batches) + replayed)
        return read, replayed, steps
    read, steps = _one_pass(recipe, samples)
    return read * epochs, 0, steps * epochs


def _one_pass(recipe: Recipe, lines: int) -> tuple[int, int]:
    """Lines of a training file that the host reads, and its optimizer steps.

    It leaves out the end of a file that the processes do not divide.
    """
    read = lines - lines % recipe.processes
    return read, -(-read // recipe.schedule.global_batch)


def _router(recipe: Recipe, stream: Stream | None, index: int) -> tuple[int, int]:
    """Samples that a router reads after chunk `index`, with all its passes, and its steps."""
    counts = [_samples(recipe, stream, c) or 0 for c in range(1, index + 1)]
    lines = router_lines(recipe, counts)
    epochs = recipe.pool.epochs if recipe.pool else 0
    read, steps = _one_pass(recipe, lines)
    return read * epochs, steps * epochs


def _images(stream: Stream, chunks: Sequence[int], counts: Sequence[int]) -> float:
    """Mean images of a sample."""
    total = 0.0
    for chunk, count in zip(chunks, counts, strict=True):
        first = islice((row for _, row in numbered_jsonl(stream.chunk_file(chunk))), COUNTED_LINES)
        images = [len(row.get("images") or []) for row in first]
        total += count * fmean(images or [0])
    return total / max(sum(counts), 1)


def _questions(recipe: Recipe, stream: Stream | None) -> int | None:
    """Test questions of one evaluation, of one set of weights."""
    limit = recipe.eval.limit or 10**9
    if stream is not None:
        tasks = recipe.eval.tasks or stream.tasks
        return sum(min(limit, stream.task(task).test.samples) for task in tasks)
    if not _is_known_mini(recipe.data):
        return None
    size = SIZES[recipe.data.size]
    return len(recipe.eval.tasks or size.tasks(recipe.data.seed)) * min(size.test, limit)


def _model(recipe: Recipe, shape: Shape) -> ModelPlan:
    size = adapter_size(recipe, shape)
    return ModelPlan(
        parameters=shape.parameters,
        trained_parameters=size.trained,
        stored_parameters=left_by_chunk(recipe, size),
        trained_share=size.trained / shape.parameters,
        adapters_gib=left_by_all(recipe, sizes_by_chunk(recipe, shape)) * BYTES / GIB,
    )


def _seconds(chunks: Sequence[ChunkPlan], evaluations: int, measured: Measured) -> Seconds | None:
    if not chunks or any(chunk.steps is None for chunk in chunks):
        return None
    train = measured.step_seconds * sum(chunk.steps or 0 for chunk in chunks)
    run = train + measured.evaluation_seconds * evaluations
    return Seconds(train / len(chunks), measured.evaluation_seconds, run)


def _sources(
    recipe: Recipe, stream: Stream | None, shape: Shape | None, measured: Measured | None
) -> dict[str, str]:
    """Where each group of figures comes from, or why it is not known."""
    sources = {}
    if stream is not None:
        sources["samples"] = f"counted in {stream.root}/stream.json"
        sources["images"] = f"mean of the first {COUNTED_LINES} samples of each chunk"
        sources["tokens"] = "counted by the host's template on samples spread over the stream"
        sources["memory"] = "the host's own step over shapes, on the longest samples found"
    elif _is_known_mini(recipe.data):
        sources["samples"] = f"as data_prep.mini will make {recipe.data.stream}"
        sources["images"] = "not known until the stream is made"
    else:
        sources["samples"] = f"not known: the stream {recipe.data.stream} is not here"
    if shape is None:
        sources["model"] = f"not known: {recipe.model.path} is not here and in no table"
    else:
        sources["model"] = f"{shape.source}; adapter counted in its own modules"
    if measured is None:
        sources["time"] = (
            "not known: this machine has finished no chunk of this run, nor of a comparable one "
            f"in {Path(recipe.folder).parent}/"
        )
    else:
        sources["time"] = (
            f"measured: mean of {measured.chunks} trained chunks and {measured.evaluations} "
            f"evaluations in {measured.folder}"
        )
    return sources
