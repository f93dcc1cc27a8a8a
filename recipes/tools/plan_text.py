"""A plan as tables, each figure followed by where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eval.charts.figure import duration
from recipes.tools.memory.prediction import RESERVE
from recipes.tools.method_sizes import sizes_text
from recipes.tools.plan import ChunkPlan, Plan

UNKNOWN = "-"


def as_text(plan: Plan) -> Iterator[str]:
    """Yields the plan line by line."""
    yield f"{plan.recipe}: {plan.method}, {plan.chunks_in_all} chunks, into {plan.run}/"
    yield "\n chunk   samples   steps      tokens    images   evaluated"
    for chunk in plan.chunks if any(c.samples is not None for c in plan.chunks) else ():
        counts = [chunk.samples, chunk.steps, chunk.tokens, chunk.images]
        yield _chunk_line(f"{chunk.chunk:6d}", counts, "yes" if chunk.evaluated else "no")
    columns = zip(*((c.samples, c.steps, c.tokens, c.images) for c in plan.chunks), strict=True)
    sums = [None if None in column else sum(column) for column in columns] or [0] * 4
    asked = "" if plan.questions is None else f" x {plan.questions} questions"
    yield _chunk_line("   all", sums, f"{plan.evaluations}{asked}")
    yield from _extra_text(plan.chunks)
    if (tokens := plan.tokens) is not None:
        over = f"{tokens.too_long} over model.max_length ({tokens.max_length:,})"
        yield (
            f"tokens of a sample: {tokens.mean:,.0f} on average, {tokens.longest:,} the longest of "
            f"{tokens.counted:,} counted; {over}"
        )
    yield from _model_text(plan)
    yield from sizes_text(plan.methods)
    yield from _time_text(plan)
    yield "\nwhere the figures come from"
    yield from (f"  {name:<8} {text}" for name, text in plan.sources.items())


def _chunk_line(name: str, counts: Sequence[int | None], last: str) -> str:
    texts = [UNKNOWN if value is None else f"{value:,}" for value in counts]
    samples, steps, tokens, images = texts
    return f"{name} {samples:>9} {steps:>7} {tokens:>12} {images:>9}   {last}"


def _extra_text(chunks: Sequence[ChunkPlan]) -> Iterator[str]:
    """What is read besides the chunks' own samples."""
    if routed := sum(chunk.routed for chunk in chunks):
        yield f"steps and tokens include {routed:,} samples read by the routers, all their passes"
    if replayed := sum(chunk.replayed for chunk in chunks):
        yield f"steps and tokens include {replayed:,} replayed samples"
    if fisher := sum(chunk.fisher for chunk in chunks):
        yield f"tokens include {fisher:,} samples read once more for the Fisher information of EWC"


def _model_text(plan: Plan) -> Iterator[str]:
    model = plan.model
    if model is None:
        return
    yield f"\nparameters {model.parameters / 1e6:,.1f} M"
    share = 100 * model.trained_share
    yield f"  trained  {model.trained_parameters / 1e6:,.2f} M ({share:.2f} %)"
    yield (
        f"  stored   {model.stored_parameters / 1e6:,.2f} M by the last chunk; "
        f"{model.adapters_gib:.2f} GiB of adapters in all (float32)"
    )
    if plan.budget is not None:
        derived = ", ".join(f"{key} {value:g}" for key, value in plan.budget["tuner"].items())
        sizes = "{trained:,} for {wanted:,}".format_map(plan.budget)
        yield f"  budget   {plan.budget['asked']}: {derived}; the adapter trains {sizes}"
    if (memory := plan.memory) is not None:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in memory.parts.items())
        yield f"memory     {memory.verdict}"
        yield f"  a step   {memory.total:.2f} GiB a process at its worst: {parts}; besides, up to"
        yield f"           {RESERVE:.0f} for CUDA itself (an allowance, not measured)"
    if plan.measured is not None:
        gpu, main = plan.measured.gpu_memory_gib, plan.measured.main_memory_gib
        peaks = [f"{gpu:.1f} GiB of a GPU"] if gpu else []
        peaks += [f"{main:.1f} GiB of main memory"] if main else []
        if peaks:
            yield f"  measured {' and '.join(peaks)}, the peak of one process"


def _time_text(plan: Plan) -> Iterator[str]:
    seconds = plan.seconds
    if seconds is None:
        yield "\ntime       not known"
        return
    yield f"\ntime       {duration(seconds.run)} in all"
    yield f"  a chunk  train {duration(seconds.train)}, evaluate {duration(seconds.evaluate)}"
    if plan.gpu_hours is not None:
        yield f"  GPUs     {plan.processes}: {plan.gpu_hours:.1f} GPU hours"
