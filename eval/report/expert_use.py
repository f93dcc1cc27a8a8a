"""The section about routing: who uses which expert, how well the router tells tasks apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict

import numpy as np

from eval import metrics
from eval.charts.figure import Figure, Table, colour, counted, percent, ratio
from eval.charts.over_chunks import over_chunks
from eval.charts.plots import Bar, Series, bars, heat_map
from eval.questions import question_of
from eval.report.data import RunData
from eval.routing import diagnosis
from eval.routing.record import Routing

ABLATIONS = {
    "stage1_off": "stage 1 off: all experts",
    "stage2_uniform": "stage 2 off: equal weights",
}


class RoutingPart(TypedDict):
    """What the page says about routing; `lead` is empty without a routing record."""

    lead: str
    figures: list[Figure]
    gaps: list[str]


def routing_by_chunk(run: RunData) -> dict[int, Routing]:
    """Return the chunks with a routing record, in order."""
    return {chunk: run.routing[chunk] for chunk in sorted(run.routing) if run.routing[chunk].tasks}


def routing_section(run: RunData) -> RoutingPart | None:
    """Return the lead and the figures.

    None without any routing record or ablation; without a record alone there is no lead.
    """
    recorded = routing_by_chunk(run)
    figures = [_over_the_stream(run, recorded), _experts(recorded)] if recorded else []
    if run.ablation is not None and run.ablation["ablations"]:
        figures.append(_ablation(run))
    if not figures:
        return None
    lead = _lead(recorded) if recorded else ""
    return {"lead": lead, "figures": figures, "gaps": routing_gaps(run)}


def routing_gaps(run: RunData) -> list[str]:
    """Return sentences about what the routing record lacks."""
    gaps = []
    for chunk, routing in sorted(run.routing.items()):
        # A row is shared out among the tasks that use its text, in rounded shares.
        if routing.unknown_rows > 0.5:
            text = f"{routing.unknown_rows:.0f} rows had an instruction of no test set; left out"
            gaps.append(f"Chunk {chunk}: {text}.")
        asked = int(run.matrix.samples[chunk].sum()) if chunk < len(run.matrix.samples) else 0
        if asked and routing.rows < 0.99 * asked:
            asked = min(asked, _distinct_questions(run))  # equal ones are asked once
        if asked and routing.rows < 0.99 * asked:
            text = f"recorded for {routing.rows:.0f} of {asked} questions"
            gaps.append(f"Chunk {chunk}: {text} (the evaluation was interrupted and went on).")
    return gaps


def _distinct_questions(run: RunData) -> int:
    """Return how many different questions the evaluated tasks ask."""
    stream = run.stream
    if stream is None:
        return 0
    limit = run.manifest.block("eval").get("limit")
    sets = (stream.test_records(task, limit) for task in run.tasks)
    return len({question_of(record, stream.root) for records in sets for record in records})


def _lead(recorded: Mapping[int, Routing]) -> str:
    first, chunk = min(recorded), max(recorded)
    if len(recorded[chunk].tasks) == 1:
        return (
            f"Experts after chunk {chunk}, means over {len(recorded[chunk].layers)} layers."
            " With one task there are no tasks to tell apart: shown is which experts it uses."
        )
    text = (
        f"After chunk {chunk} the normalised mutual information between task and chosen expert set"
        f" is {ratio(_separation(recorded[chunk]), 2)} (mean over {len(recorded[chunk].layers)}"
        " layers; 0: the sets say nothing about the task, 1: they name it)."
    )
    if first != chunk:
        text += f" After chunk {first} it was {ratio(_separation(recorded[first]), 2)}."
    return text + " Measured on the test questions, the same after every chunk."


def _separation(routing: Routing) -> float:
    return float(metrics.mean_over(routing.nmi))


def _overlap(routing: Routing) -> float:
    return diagnosis.off_diagonal(diagnosis.overlap(routing.use))


def _similarity(routing: Routing) -> float:
    return diagnosis.off_diagonal(metrics.mean_over(routing.cka, axis=0))


def _entropies(routing: Routing) -> tuple[float, float]:
    stages = (routing.task_entropy, routing.token_entropy)
    return float(metrics.mean_over(stages[0].ravel())), float(metrics.mean_over(stages[1].ravel()))


def _over_the_stream(run: RunData, recorded: Mapping[int, Routing]) -> Figure:
    """Return separation, overlap, similarity and drift after each chunk; entropies in the table."""
    drift = diagnosis.drift(recorded, run.tasks)
    changes = diagnosis.kept_changes(recorded, run.tasks)
    columns = {
        "separation": [_separation(r) for r in recorded.values()],
        "overlap": [_overlap(r) for r in recorded.values()],
        "similarity": [_similarity(r) for r in recorded.values()],
        "drift": metrics.mean_over(drift).tolist(),
        "kept sets changed": metrics.mean_over(changes).tolist(),
    }
    if len(recorded[max(recorded)].tasks) == 1:  # the others compare tasks
        columns = {name: columns[name] for name in ("drift", "kept sets changed")}
    series = [Series(name, values, colour(i)) for i, (name, values) in enumerate(columns.items())]
    title = f"{', '.join(columns).capitalize()} of routing over {counted(len(recorded), 'chunk')}."
    note = (
        "Drift: a task's weight that went to other experts since the recorded chunk before. Kept"
        " sets changed: share of the expert sets that the same test instructions (up to 48 a task)"
        " no longer keep. Means over layers and tasks."
    )
    if "separation" in columns:
        note = (
            "Separation: mutual information of task and expert set; a falling line: the router"
            " loses the tasks. Overlap: expert weight that two tasks share. Similarity: linear CKA"
            f" of what the experts add for two tasks. {note}"
        )
    last = recorded[max(recorded)]
    note += (
        f" Entropies are at most {math.log(last.experts):.2f} (stage 1) and"
        f" {math.log(last.top_k):.2f} nats (stage 2)."
    )
    stages = zip(*(_entropies(routing) for routing in recorded.values()), strict=True)
    entropies = {f"stage {n} entropy, nats": [ratio(value) for value in values]
                 for n, values in enumerate(stages, start=1)}  # fmt: skip
    heading = "Routing over the stream"
    figure = over_chunks(heading, title, series, list(recorded), "Share", heading, note, entropies,
                         cell=ratio, show="{:.2g}".format)  # fmt: skip
    rows = [[f"chunk {c}", *map(percent, moved)] for c, moved in zip(recorded, drift, strict=True)]
    caption = "Drift of each task's routing since the chunk before, in percent"
    figure.tables.append(Table(caption, ["after", *run.tasks], rows))
    return replace(figure, half=True)


def _experts(recorded: Mapping[int, Routing]) -> Figure:
    """Return the weight of every expert by task after the last chunk; tables have all chunks."""
    chunk, last = max(recorded), recorded[max(recorded)]
    weight = metrics.mean_over(last.use, axis=1)
    experts = [f"E{e}" for e in range(last.experts)]
    title = f"Expert weight of {counted(len(last.tasks), 'task')} after chunk {chunk}, in percent."
    # Above 0, since colours are shares of it.
    high = max(float(np.nanmax(weight, initial=0.0)), 1e-9)
    chart = heat_map(title, weight, last.tasks, experts, "expert", high)
    note = "Share of the token weight (stage 2), mean over layers; every row sums to 100."
    tables = [_by_task(recorded), _by_layer(chunk, last)]
    if len(last.tasks) > 1:
        shared = zip(last.tasks, diagnosis.overlap(last.use), strict=True)
        rows = [[task, *map(percent, row)] for task, row in shared]
        caption = f"Overlap of tasks after chunk {chunk}, in percent"
        tables.append(Table(caption, ["task", *last.tasks], rows))
    return Figure("Experts by task", chart, tables, note, half=True)


def _by_task(recorded: Mapping[int, Routing]) -> Table:
    """Return stage-2 weight, stage-1 choice and entropies by task and chunk, means over layers."""
    most = max(routing.experts for routing in recorded.values())
    rows = []
    for chunk, routing in recorded.items():
        blank = ["–"] * (most - routing.experts)  # noqa: RUF001
        weight, kept = (metrics.mean_over(u, axis=1) for u in (routing.use, routing.selected))
        stages = [metrics.mean_over(e) for e in (routing.task_entropy, routing.token_entropy)]
        rows += [
            [f"{task}, chunk {chunk}", *map(percent, weight[i]), *blank, *map(percent, kept[i]),
             *blank, *(ratio(float(stage[i])) for stage in stages)]
            for i, task in enumerate(routing.tasks)
        ]  # fmt: skip
    head = ["task", *(f"E{e} weight" for e in range(most)), *(f"E{e} kept" for e in range(most))]
    head += ["stage 1 entropy", "stage 2 entropy"]
    return Table("Expert use by task and chunk, in percent", head, rows)


def _by_layer(chunk: int, routing: Routing) -> Table:
    """Return every layer's separation, entropies and expert weights, means over tasks."""
    use = metrics.mean_over(routing.use, axis=0)
    columns = {
        "separation": routing.nmi,
        "stage 1 entropy": metrics.mean_over(routing.task_entropy, axis=0),
        "stage 2 entropy": metrics.mean_over(routing.token_entropy, axis=0),
    }
    if len(routing.tasks) == 1:  # nothing to separate
        del columns["separation"]
    rows = [
        [_short(layer), *(ratio(float(v[i])) for v in columns.values()), *map(percent, use[i])]
        for i, layer in enumerate(routing.layers)
    ]
    head = ["layer", *columns, *(f"E{e} weight, %" for e in range(routing.experts))]
    return Table(f"Routing by layer after chunk {chunk}, means over tasks", head, rows)


def _short(layer: str) -> str:
    """Return a layer's name without what all layers share: "0 q_proj"."""
    parts = layer.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    return f"{number} {parts[-1]}".strip()


def ablation_name(name: str) -> str:
    """Return an ablation's name for people."""
    return ABLATIONS.get(name, name.replace("without_expert_", "without E"))


def _ablation(run: RunData) -> Figure:
    """Return what each part of the router is worth: score, cost and interval, cost by task."""
    content = run.ablation
    assert content is not None
    chunk, intact = content["chunk"], content["intact"]
    items = [
        Bar(ablation_name(e["name"]), *(math.nan if n is None else n for n in numbers))
        for e in content["ablations"]
        if (numbers := (e["cost"], e["low"], e["high"]))
    ]
    worst = max((i for i in items if not math.isnan(i.value)), key=lambda i: i.value, default=None)
    tail = f"; most: {worst.name}, {percent(worst.value)} points" if worst else ""
    title = f"What each part of the router is worth after chunk {chunk}{tail}."
    chart = bars(title, items, "points of the mean score lost without it")
    note = (
        f"The adapter of chunk {chunk} evaluated again with a part switched off; whiskers: 95 %"
        " bootstrap interval, paired on the same test samples."
    )
    tasks = list(intact["tasks"])
    rows = [["intact", percent(intact["score"]), "", "",
             *(percent(intact["tasks"][task]["score"]) for task in tasks)]]  # fmt: skip
    rows += [
        [e["name"].replace("_", " "), percent(e["score"]), percent(e["cost"]),
         f"{percent(e['low'])} to {percent(e['high'])}",
         *(percent(e["tasks"][task]["cost"]) for task in tasks)]
        for e in content["ablations"]
    ]  # fmt: skip
    head = ["switched off", "mean score", "cost", "95 % interval", *(f"{t}: cost" for t in tasks)]
    caption = f"Ablations after chunk {chunk}, in percent; first row: intact scores"
    return Figure("What each part is worth", chart, [Table(caption, head, rows)], note)
