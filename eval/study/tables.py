"""Markdown out of a study: scores, leads with tests, machines, and the finding in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from eval.charts.figure import counted, percent, ratio
from eval.compare.comparison import SIGNIFICANT
from eval.metrics import SCORE
from eval.significance import Interval
from eval.study.groups import RANKED_BY, Group, Lead, Pair, Study, by_stream, leads, shared_runs

NOTHING = "No run is committed yet."
FEW = ("last", RANKED_BY, "forgetting", "lost")
ALL = (*FEW, "maf", "backward", "forward")
RANKS = (RANKED_BY, "last")
LEAD_HEADS = [f"{SCORE[key].title}: {word}" for key in RANKS
              for word in ("difference", "95 % interval", "p (Holm)")]  # fmt: skip
UNKNOWN = percent(None)


def scores(study: Study, whole: bool = False) -> str:
    """Return the table of scores: mean and standard deviation over the runs of each method.

    Args:
        study: the runs.
        whole: with every score, the intervals of the means of Last and Avg, sizes and time.
    """
    if not study.groups:
        return NOTHING
    keys = ALL if whole else FEW
    head = ["method", "keeps old data", "n", *(SCORE[key].title for key in keys)]
    head += ["trained, M", "stored, M", "minutes"] if whole else []
    rows = []
    for group in study.groups:
        row = [group.name, group.keeps or "no", str(group.n)]
        row += [_with_spread(group, key, whole and key in RANKS) for key in keys]
        if whole:
            costs = [(run.trained, run.stored, run.seconds / 60) for run in group.runs]
            trained, stored, minutes = np.mean(costs, axis=0).tolist()
            row += [ratio(trained, 2), ratio(stored, 2), ratio(minutes, 1)]
        rows.append(row)
    more = (
        " In brackets: 95 % t interval of the mean. Minutes: of a run as it ran, beside whatever"
        " else ran."
    )
    return f"{markdown(head, rows)}\n\n{provenance(study)}{more if whole else ''}"


def _with_spread(group: Group, key: str, interval: bool) -> str:
    mean, spread = group.mean(key), group.spread(key)
    n = len(by_stream(group.scores(key)))
    fewer = f" (n = {n})" if 0 < n < group.n else ""  # no task there that came and was tested
    if math.isnan(spread.std):
        return percent(mean) + fewer
    low, high = map(percent, spread.interval)
    whole = f"{percent(mean)} ± {percent(spread.std)}" + (f" [{low}, {high}]" if interval else "")
    return whole + fewer


def provenance(study: Study) -> str:
    """Return what n and ± are, with seeds, commits, machines and hours."""
    alone = any(group.n == 1 for group in study.groups)
    several = any(group.n < len(group.runs) for group in study.groups)
    seeds = _ranges(sorted({run.stream_seed for run in study.runs}))
    runs = _ranges(sorted({run.seed for run in study.runs}))
    machines = "; ".join(sorted({run.machine for run in study.runs}))
    commits = ", ".join(sorted({_short(run.git) for run in study.runs}))
    hours = sum(run.seconds for run in study.runs) / 3600
    when = sorted({run.evaluated for run in study.runs if not run.has_no_stream})
    seldom = "; ".join(_ranges(chunks) for chunks in when if len(chunks) < chunks[-1])
    spread = (
        "In percent; ±: standard deviation over n "
        + ("streams, of each the mean over its runs" if several else "runs")
        + (" (n = 1: no spread is known)." if alone else ".")
    )
    return (
        f"{spread} Stream seeds {seeds}, seeds {runs}; {len(study.runs)} runs, {hours:.1f} hours "
        f"one after the other; machine: {machines}; commit: {commits}."
        + (
            f" Evaluated after chunks {seldom} alone, which every mean over chunks is over."
            if seldom
            else ""
        )
    )


def _short(git: str) -> str:
    sha, changed = git.removesuffix("+"), git.endswith("+")
    return f"{sha[:7]}{' with changes' if changed else ''}"


def _ranges(numbers: Sequence[int]) -> str:
    """Return "0-4, 7"."""
    parts = []
    for _, part in groupby(enumerate(numbers), lambda each: each[1] - each[0]):
        run = [number for _, number in part]
        parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(parts)


def lead_table(study: Study) -> str:
    """Return the best method without data against every other: difference, interval, p."""
    ranked = study.ranked()
    others = [group for group in study.groups if ranked and group is not ranked[0]]
    if not others:
        return "One method: nothing to compare it with." if study.groups else NOTHING
    columns = {key: leads(ranked[0], others, key) for key in RANKS}
    head = ["against", "pairs", *LEAD_HEADS]
    rows = []
    for each in zip(*columns.values(), strict=True):
        cells = [part for lead in each for part in lead_cells(lead)]
        rows.append([each[0].other.name, str(max(lead.pairs for lead in each)), *cells])
    note = (
        f"{ranked[0].name} minus the other, in points, over runs that share the seeds of stream "
        f"and model; paired t tests, {corrected_over(columns, 'method')}."
    )
    return f"{markdown(head, rows)}\n\n{note}"


def corrected_over(columns: Mapping[str, Sequence[Lead]], unit: str) -> str:
    """Return over how many tests p was corrected: those that had two pairs and more."""
    counts = {key: sum(math.isfinite(lead.p) for lead in column) for key, column in columns.items()}
    if not any(counts.values()):
        return "of one pair there is none"
    if len(set(counts.values())) == 1:
        return f"p corrected over {counted(max(counts.values()), unit)} (Holm)"
    each = (f"{counted(count, unit)} in {SCORE[key].title}" for key, count in counts.items())
    return f"p corrected over {', '.join(each)} (Holm)"


def lead_cells(lead: Lead) -> list[str]:
    """Return difference, interval and corrected p, as far as there are any."""
    if not lead.pairs:
        # No shared runs, or the score is not defined of one of the two.
        return [UNKNOWN, UNKNOWN, UNKNOWN]
    if lead.pairs == 1:
        return [signed(lead.difference), "n = 1: no interval", UNKNOWN]
    return [signed(lead.difference), ends(lead.interval), p_value(lead.adjusted)]


def p_value(p: float) -> str:
    """Return a p value with three decimals; a dash where there is none."""
    return UNKNOWN if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def ends(interval: Interval) -> str:
    """Return "+1.0 to +2.0", in points."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def signed(value: float) -> str:
    """Return points with their sign."""
    text = percent(value)
    return f"+{text}" if value > 0 and text != "0.0" else text


def spread_of_seeds(study: Study) -> str:
    """Return how far runs lie apart that share a stream: what the model's seed alone changes.

    Of each method with such runs the standard deviation within streams, pooled; empty: none has.
    """
    said = []
    for group in study.groups:
        if group.n == len(group.runs):
            continue
        apart = [percent(_within(group.scores(key))) for key in reversed(RANKS)]
        said.append(f"{group.name} {' and '.join(apart)}")
    return (
        "Runs on one stream that differ in the model's seed: standard deviation of Last and of "
        f"Avg, in points, pooled over the streams: {'; '.join(said)}."
        if said
        else ""
    )


def _within(scores: Mapping[Pair, float]) -> float:
    of_stream: dict[int, list[float]] = defaultdict(list)
    for (stream, _), value in scores.items():
        of_stream[stream].append(value)
    squares = sum(len(values) * float(np.var(values)) for values in of_stream.values())
    free = len(scores) - len(of_stream)
    return math.sqrt(squares / free) if free else math.nan


def winner(study: Study) -> str:
    """Return one line: the best method that keeps no data, its lead over the next, how sure.

    Where other methods ran, too, the best one's own variants stand in the tables alone.
    """
    where, ranked = study.folder.name, study.ranked()
    if not ranked:
        return f"{where}: no method without data has a score over a stream yet"
    best, rivals = ranked[0], ranked[1:]
    method = best.runs[0].method
    rivals = [group for group in rivals if group.runs[0].method != method] or rivals
    if not rivals:
        return f"{where}: {best.name} is the only method without data, nothing to compare it with"
    said = []
    for key in RANKS:
        # Holm over the same family as in `lead_table`, so that both say the same p.
        found = leads(best, [group for group in study.groups if group is not best], key)
        found = [lead for lead in found if lead.other in rivals]
        nearest = min(found, key=lambda lead: lead.difference)
        difference, interval, p = lead_cells(nearest)
        sure = interval
        if nearest.pairs > 1:
            sure = f"95 % interval {interval}, p {p}{'' if _shown(nearest) else ': not shown'}"
        text = f"{SCORE[key].title} {difference} ({sure}) against {nearest.other.name}"
        over = sum(lead.difference > 0 and _shown(lead) for lead in found)
        said.append(text + (f", shown over {over} of {len(found)}" if len(found) > 1 else ""))
    n = min(best.n, rivals[0].n)
    full = [group for group in ranked if group.n >= n]
    more = " or more" if any(group.n > n for group in full) else ""
    return (
        f"{where}: {best.name} has the highest Avg of the {counted(len(full), 'method')} without "
        f"data that ran on {counted(n, 'stream')}{more}, {percent(best.mean(RANKED_BY))}, and Last "
        f"{percent(best.mean('last'))}; nearest of other methods: {'; '.join(said)}"
    )


def _shown(lead: Lead) -> bool:
    return lead.adjusted <= SIGNIFICANT


def keepers(study: Study) -> str:
    """Return a sentence on the best method that keeps old data, beside the best that keeps none."""
    ranked = study.ranked()
    keeping = [g for g in study.groups if g.keeps and g.scores(RANKED_BY)]
    if not ranked or not keeping:
        return "no method that keeps old data has a score over a stream here"
    other, said = max(keeping, key=lambda group: group.mean(RANKED_BY)), []
    for key in RANKS:
        (lead,) = leads(ranked[0], [other], key)
        interval = lead_cells(lead)[1]
        sure = f"95 % interval {interval}" if lead.pairs > 1 else interval
        said.append(f"{SCORE[key].title} {lead_cells(lead)[0]} ({sure})")
    return (
        f"the best of those that keep old data, {other.name} ({other.keeps}), has Avg "
        f"{percent(other.mean(RANKED_BY))}, Last {percent(other.mean('last'))} (n = "
        f"{other.n}); the leader's difference: {', '.join(said)}"
    )


def below(study: Study, name: str) -> str:
    """Return which methods that were given no task end below one of them in Avg and in Last.

    Each over the runs that share the seeds of stream and run, with the differences.
    """
    reference = next((group for group in study.groups if group.name == name), None)
    if reference is None:
        return NOTHING
    others = [g for g in study.groups if g is not reference and not g.runs[0].given_task]
    columns = [leads(reference, others, key) for key in RANKS]
    found = [
        f"{average.other.name} ({signed(-average.difference)} and {signed(-last.difference)}, "
        f"n = {average.pairs})"
        for average, last in zip(*columns, strict=True)
        if min(average.difference, last.difference) > 0
    ]
    said = f"Mean Avg and mean Last below {reference.name}'s on the same streams, untested"
    return f"{said}: {', '.join(found)}."


def machines(first: Study, second: Study) -> str:
    """Return what another machine or library changes: the same runs under two configurations."""
    others = {group.name: group for group in second.groups}
    rows, means = [], []
    for group in first.groups:
        other = others.get(group.name)
        both = shared_runs(group, other) if other else []
        if not both:
            continue
        means.append(np.mean([[run.score(RANKED_BY) for run in pair] for pair in both], axis=0))
        each = np.mean([np.nanmean(np.abs(a.values[1:] - b.values[1:])) for a, b in both])
        row = [group.name, str(len(both)), percent(float(each))]
        for key in reversed(RANKS):
            gaps = np.array([b.score(key) - a.score(key) for a, b in both])
            row += [percent(float(np.mean(np.abs(gaps)))), signed(float(gaps.mean()))]
        rows.append(row)
    if not rows:
        return NOTHING
    head = ["method", "n", "each score", "Last of a run", "mean Last", "Avg of a run", "mean Avg"]
    one, two = np.argsort(means, axis=0).T.tolist()
    order = "the same" if one == two else "not the same"
    configurations = " and ".join(
        "; ".join(sorted({run.machine for run in study.runs})) for study in (first, second)
    )
    note = (
        "Mean absolute difference of the score of a task after a chunk, of a run's Last and of its "
        "Avg, in points; mean Last, mean Avg: by how much the mean over runs moves. The order of "
        f"the methods by Avg is {order}. Configurations: {configurations}."
    )
    return f"{markdown(head, rows)}\n\n{note}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a table whose first columns are `words`, the others numbers."""
    lines = [head, [*["---"] * words, *["--:"] * (len(head) - words)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
