"""`plan`: what a run will take, before it takes it. Says of every figure where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.mini.mixtures import SIZES
from data_prep.stream import Stream, StreamError
from recipes.baselines.mr_lora.pool import router_lines
from recipes.baselines.replay import mixture_of
from recipes.config.blocks import Data
from recipes.config.model_sizes import adapter_size, model_shape
from recipes.config.schema import Recipe
from recipes.processes.machine import gpus
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.terminal import duration
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.manifest import RunChanged, check_same_run
from recipes.run_folder.state import load_state
from recipes.tools.cost import (
    ANSWER_TOKENS,
    DECODE_SHARE,
    START_SECONDS,
    UTILISATION,
    Gpu,
    evaluation_seconds,
    find_gpu,
    memory_parts,
    train_seconds,
)
from recipes.tools.method_sizes import MethodSize, sizes_text
from strlora_tuner.options import Size

# Used only while the stream is not here: StrCVIT's chunks, and a usual length of its samples.
ASSUMED_SAMPLES, ASSUMED_TESTS, ASSUMED_TEXT = 2000, 11000, 80
COUNTED_LINES = 200  # of a file, to find the mean length of its samples
TEMPLATE_TOKENS = 16  # turn markers around question and answer


def make_plan(
    recipe: Recipe,
    gpu: str | None = None,
    price: float | None = None,
    methods: Sequence[MethodSize] = (),
) -> dict[str, Any]:
    """Returns the plan as plain values; `as_text` turns it into tables.

    Args:
        methods: what all methods would train and store, from sizes_of_methods.
        gpu: a name such as H100; None takes this machine's, else H100.
        price: what a GPU hour costs, in any currency; None leaves the cost out.
    """
    stream: Stream | None = None
    with suppress(StreamError):
        stream = open_recipe_stream(recipe)
    chunks = [_chunk(recipe, stream, index) for index in recipe.trained_chunks]
    plan: dict[str, Any] = {"recipe": recipe.name, "method": recipe.method, "run": recipe.folder}
    plan["chunks_in_all"] = recipe.data.chunks
    plan["chunks"], plan["methods"] = chunks, list(methods)
    plan["budget"] = None
    if recipe.matched is not None:
        plan["budget"] = {"asked": recipe.budget, **recipe.matched.model_dump()}
    plan["questions"] = _questions(recipe, stream)
    plan["sources"] = _data_sources(recipe, stream)
    _add_model(plan, recipe)
    _add_time(plan, recipe, None if recipe.launcher.cpu else _gpu(gpu), price)
    return plan


def _chunk(recipe: Recipe, stream: Stream | None, index: int) -> dict[str, Any]:
    chunks = recipe.data_chunks(index)
    counts = [_samples(recipe, stream, chunk) for chunk in chunks]
    samples = sum(counts)
    trained, steps = _trained(recipe, index, samples)
    each = [
        _mean_tokens(recipe, stream.chunk_file(chunk)) if stream else _assumed_tokens(recipe)
        for chunk in chunks
    ]
    mean = sum(n * tokens for n, tokens in zip(counts, each, strict=True)) / max(samples, 1)
    fisher = _fisher_samples(recipe, samples)
    routed, router_steps = _router(recipe, stream, index)
    return {
        "chunk": index,
        "samples": samples,
        "replayed": trained - samples * recipe.schedule.epochs,
        "fisher": fisher,
        "routed": routed,
        "steps": steps + router_steps,
        "tokens": round((trained + fisher + routed) * mean),
        "evaluated": recipe.evaluates_after(index),
    }


def _samples(recipe: Recipe, stream: Stream | None, chunk: int) -> int:
    return stream.chunk(chunk).samples if stream else _planned_samples(recipe.data)


def _trained(recipe: Recipe, index: int, samples: int) -> tuple[int, int]:
    """Samples that training reads, with replayed ones and all epochs, and optimizer steps."""
    epochs = recipe.schedule.epochs
    if recipe.replays(index):
        mixture = mixture_of(recipe)
        return mixture.lines(samples * epochs), mixture.steps(samples * epochs)
    return samples * epochs, -(-samples // recipe.schedule.global_batch) * epochs


def _router(recipe: Recipe, stream: Stream | None, index: int) -> tuple[int, int]:
    """Samples that a router reads after chunk `index`, with all its passes, and its steps."""
    lines = router_lines(recipe, [_samples(recipe, stream, c) for c in range(1, index + 1)])
    epochs = recipe.pool.epochs if recipe.pool else 0
    return lines * epochs, -(-lines // recipe.schedule.global_batch) * epochs


def _fisher_samples(recipe: Recipe, samples: int) -> int:
    """Samples of a chunk that are read once more, one at a time, for EWC's Fisher information."""
    if recipe.ewc is None or recipe.ewc.released:
        return 0
    return min(samples, recipe.ewc.samples or samples)


def _planned_samples(data: Data) -> int:
    """Samples of a chunk that is not made yet: known for the miniature, else assumed."""
    if data.source == "mini" and data.size in SIZES:
        return SIZES[data.size].samples
    return ASSUMED_SAMPLES


def _assumed_tokens(recipe: Recipe) -> float:
    shape = model_shape(recipe)
    image = shape.image_tokens if shape else 256
    return min(recipe.model.max_length, image + ASSUMED_TEXT + TEMPLATE_TOKENS)


def _mean_tokens(recipe: Recipe, file: Path) -> float:
    """Mean tokens a sample: text by the model's tokenizer (else 4 characters a token), images."""
    tokenizer = _tokenizer(recipe)
    shape = model_shape(recipe)
    image_tokens = shape.image_tokens if shape else 256
    total, count = 0.0, 0
    with file.open(encoding="utf-8") as lines:
        for line in islice(lines, COUNTED_LINES):
            sample = json.loads(line)
            text = " ".join(str(turn["content"]) for turn in sample["messages"])
            length: float = len(tokenizer.encode(text).ids) if tokenizer else len(text) / 4
            length += TEMPLATE_TOKENS + image_tokens * len(sample.get("images") or [])
            total += min(length, recipe.model.max_length)
            count += 1
    return total / max(count, 1)


def _tokenizer(recipe: Recipe) -> Any:
    path = Path(recipe.model.path) / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _questions(recipe: Recipe, stream: Stream | None) -> int:
    """Test questions of one evaluation."""
    if stream is None and recipe.data.source == "mini" and recipe.data.size in SIZES:
        size = SIZES[recipe.data.size]
        tasks = recipe.eval.tasks or size.tasks(recipe.data.seed)
        return len(tasks) * min(size.test, recipe.eval.limit or size.test)
    if stream is None:
        return ASSUMED_TESTS
    limit = recipe.eval.limit or 10**9
    tasks = recipe.eval.tasks or stream.tasks
    return sum(min(limit, stream.task(task).test.samples) for task in tasks)


def _data_sources(recipe: Recipe, stream: Stream | None) -> dict[str, str]:
    if stream is None and recipe.data.source == "mini":
        text = f"as data_prep.mini will make them; {recipe.data.stream} is not made yet"
        return {"samples": text, "tokens": "assumed: an image and a short question"}
    if stream is None:
        text = f"assumed, the stream {recipe.data.stream} is not here: {ASSUMED_SAMPLES} samples"
        return {"samples": f"{text} a chunk, {ASSUMED_TESTS} questions", "tokens": "assumed"}
    how = "the model's tokenizer" if _tokenizer(recipe) else "4 characters a token"
    tokens = f"estimated from the first {COUNTED_LINES} samples of each chunk by {how}, plus images"
    return {"samples": f"counted in {stream.root}/stream.json", "tokens": tokens}


def _add_model(plan: dict[str, Any], recipe: Recipe) -> None:
    shape = model_shape(recipe)
    plan["model"] = plan["memory_gib"] = None
    if shape is None:
        plan["sources"]["model"] = f"unknown: {recipe.model.path} is not here and in no table"
        return
    size = adapter_size(recipe, shape)
    plan["model"] = {
        "parameters": shape.parameters,
        "trained_parameters": size.trained,
        "stored_parameters": _stored(recipe, size),
        "trained_share": size.trained / shape.parameters,
        "adapters_gib": _stored_by_all(recipe, size) * 4 / 2**30,
    }
    plan["memory_gib"] = memory_parts(recipe, shape, size)
    plan["sources"]["model"] = f"{shape.source}; adapter counted (recipes/config/model_sizes.py)"
    plan["sources"]["memory"] = (
        "estimated for the longest sample allowed (model.max_length), formula in tools/cost.py"
    )


def _stored_by_all(recipe: Recipe, size: Size) -> int:
    """Numbers that all chunks leave; a pool's first chunk has no router."""
    total = len(recipe.trained_chunks) * _stored(recipe, size)
    return total if recipe.pool is None else total - size.stored


def _stored(recipe: Recipe, size: Size) -> int:
    """Numbers that a chunk leaves: adapter, a pool's router, EWC's theta* and F of what trains."""
    if recipe.pool is not None:
        return 2 * size.stored
    if recipe.ewc is None:
        return size.stored
    return size.stored + size.trained * (1 if recipe.ewc.released else 2)


def _gpu(name: str | None) -> Gpu:
    here = gpus()
    found = find_gpu(name or (here[0] if here else "H100"))
    return found or Gpu(name or here[0], 0, 312, 2039)  # an unknown one is taken for an A100


def _add_time(plan: dict[str, Any], recipe: Recipe, gpu: Gpu | None, price: float | None) -> None:
    """Adds seconds a chunk and for the whole run: measured ones where there are, else estimated."""
    world = recipe.launcher.nproc * recipe.launcher.nodes
    plan["processes"], plan["gpu"] = world, gpu.name if gpu else None
    seconds = _measured(recipe) or _estimated(plan, recipe, gpu)
    evaluations = 1 + sum(chunk["evaluated"] for chunk in plan["chunks"])
    plan["seconds"], plan["gpu_hours"], plan["cost"] = seconds, None, None
    if seconds is None:
        plan["sources"]["time"] = (
            "unknown without a GPU until a chunk was done here; then it is measured"
        )
        return
    plan["sources"]["time"] = seconds.pop("source")
    seconds["run"] = seconds["train"] * len(plan["chunks"]) + seconds["evaluate"] * evaluations
    if gpu is not None:
        plan["gpu_hours"] = seconds["run"] / 3600 * world
        plan["cost"] = None if price is None else plan["gpu_hours"] * price


def _measured(recipe: Recipe) -> dict[str, Any] | None:
    """Mean seconds of the run's finished chunks, when it has some and is of this very recipe."""
    layout = RunLayout(Path(recipe.folder))
    try:
        check_same_run(layout, recipe)
    except RunChanged:
        return None
    records = load_state(layout.state).chunks
    train = [r.train_seconds for r in records if r.trained]
    evaluate = [r.eval_seconds for r in records if r.evaluated]
    if not train or not evaluate:
        return None
    return {
        "train": sum(train) / len(train),
        "evaluate": sum(evaluate) / len(evaluate),
        "source": f"measured: mean of {len(train)} trained chunks and {len(evaluate)} evaluations "
        f"in {recipe.folder}",
    }


def _estimated(plan: dict[str, Any], recipe: Recipe, gpu: Gpu | None) -> dict[str, Any] | None:
    shape = model_shape(recipe)
    if shape is None or gpu is None:
        return None
    chunks = plan["chunks"]
    tokens = sum(chunk["tokens"] for chunk in chunks) / max(len(chunks), 1)
    read = sum(chunk["samples"] * recipe.schedule.epochs + chunk["replayed"] + chunk["fisher"]
               + chunk["routed"]
               for chunk in chunks)  # fmt: skip
    each = tokens * len(chunks) / read if read else _assumed_tokens(recipe)
    size = adapter_size(recipe, shape)
    return {
        "train": train_seconds(recipe, shape, size, gpu, tokens),
        "evaluate": evaluation_seconds(recipe, shape, gpu, plan["questions"], each),
        "source": f"estimated: operations / ({gpu.tflops:g} TFLOP/s x {UTILISATION:g} assumed), "
        f"answers of {ANSWER_TOKENS} tokens at {DECODE_SHARE:g} of the bandwidth, "
        f"{START_SECONDS:g} s a process start; formulas in recipes/tools/cost.py, not measured",
    }


def as_text(plan: dict[str, Any]) -> Iterator[str]:
    """Yields the plan as tables, each followed by where its figures come from."""
    yield f"{plan['recipe']}: {plan['method']}, {plan['chunks_in_all']} chunks, into {plan['run']}/"
    yield "\n chunk   samples   steps      tokens   evaluated"
    for chunk in plan["chunks"]:
        yield _chunk_line(f"{chunk['chunk']:6d}", chunk, "yes" if chunk["evaluated"] else "no")
    keys = ("samples", "steps", "tokens")
    total = {key: sum(chunk[key] for chunk in plan["chunks"]) for key in keys}
    evaluations = 1 + sum(chunk["evaluated"] for chunk in plan["chunks"])
    yield _chunk_line("   all", total, f"{evaluations} x {plan['questions']} questions")
    yield from _extra_text(plan["chunks"])
    yield from _model_text(plan)
    yield from sizes_text(plan["methods"])
    yield from _time_text(plan)
    yield "\nwhere the figures come from"
    yield from (f"  {name:<8} {text}" for name, text in plan["sources"].items())


def _extra_text(chunks: list[dict[str, Any]]) -> Iterator[str]:
    """What steps and tokens hold beside the chunks' own samples."""
    replayed = sum(chunk["replayed"] for chunk in chunks)
    fisher = sum(chunk["fisher"] for chunk in chunks)
    routed = sum(chunk["routed"] for chunk in chunks)
    if routed:
        yield f"steps and tokens hold {routed:,} samples read by the routers, all their passes"
    if replayed:
        yield f"steps and tokens hold {replayed:,} replayed samples"
    if fisher:
        yield f"tokens hold {fisher:,} samples read once more for the Fisher information of EWC"


def _chunk_line(name: str, counts: dict[str, Any], last: str) -> str:
    return f"{name} {counts['samples']:9,} {counts['steps']:7,} {counts['tokens']:11,}   {last}"


def _model_text(plan: dict[str, Any]) -> Iterator[str]:
    model, memory = plan["model"], plan["memory_gib"]
    if model is None:
        return
    yield f"\nparameters {model['parameters'] / 1e6:,.1f} M"
    share = 100 * model["trained_share"]
    yield f"  trained  {model['trained_parameters'] / 1e6:,.2f} M ({share:.2f} %)"
    yield (
        f"  stored   {model['stored_parameters'] / 1e6:,.2f} M a chunk; "
        f"{model['adapters_gib']:.2f} GiB of adapters (float32)"
    )
    if plan["budget"] is not None:
        budget = plan["budget"]
        found = ", ".join(f"{key} {value:g}" for key, value in budget["tuner"].items())
        yield (
            f"  budget   {budget['asked']}: {found}; the adapter trains {budget['trained']:,} "
            f"for {budget['wanted']:,}"
        )
    parts = ", ".join(f"{name} {value:.2f}" for name, value in memory.items())
    what = "GPU" if plan["gpu"] else "process"
    yield f"memory     {sum(memory.values()):.1f} GiB a {what} (estimated): {parts}"


def _time_text(plan: dict[str, Any]) -> Iterator[str]:
    seconds = plan["seconds"]
    if seconds is None:
        return
    yield f"\ntime       {duration(seconds['run'])} in all"
    yield f"  a chunk  train {duration(seconds['train'])}, evaluate {duration(seconds['evaluate'])}"
    if plan["gpu_hours"] is not None:
        cost = "" if plan["cost"] is None else f", cost {plan['cost']:,.0f}"
        gpus_text = f"{plan['processes']} x {plan['gpu']}"
        yield f"  GPUs     {gpus_text}: {plan['gpu_hours']:.1f} GPU hours{cost}"
