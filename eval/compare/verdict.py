"""The verdict of a comparison in words: who is ahead on what, by how much, how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.compare.comparison import SIGNIFICANT, Column, Comparison, Difference
from eval.compare.names import printed

_KINDS = {
    "welch": "Welch's test over the runs, whose seeds are not the same",
    "samples": "paired on the same test samples",
    "mcnemar": "McNemar's test on the same test samples",
}


def sentences(comparison: Comparison) -> list[str]:
    """Return one sentence a headline score, then who keeps data, and how sure all this is."""
    headline = [c for c in comparison.columns if c.group == "headline"]
    if len(comparison.methods) < 2:
        return [f"One method, {printed(comparison.methods[0].name)}: nothing to compare it with."]
    tests = [test for c in headline for test in comparison.tests if test.column == c.key]
    said = [s for c in headline if (s := _on(comparison, c, comparison.tests)) is not None]
    keeping = [f"{printed(m.name)} ({m.keeps_data})" for m in comparison.methods if m.keeps_data]
    if keeping:
        verb = "keeps" if len(keeping) == 1 else "keep"
        others = "" if len(keeping) == len(comparison.methods) else ", the others none"
        said.append(f"{', '.join(keeping)} {verb} past data{others}.")
        columns = [c for c in headline if _leader_keeps(comparison, c)]
        alone = [
            s for c in columns if (s := _on(comparison, c, comparison.without_data)) is not None
        ]
        said += [f"Without past data: {s[0].lower()}{s[1:]}" for s in alone]
        tests += comparison.without_data
    if kinds := list(
        dict.fromkeys(_how(comparison, t) for t in tests if math.isfinite(t.adjusted))
    ):
        said.append(f"p is corrected for the number of tests (Holm): {'; '.join(kinds)}.")
    if all(comparison.n(name) == 1 for name in comparison.seeds):
        said.append("Every method has one run: another seed may say otherwise.")
    return said


def _leader_keeps(comparison: Comparison, column: Column) -> bool:
    leaders = {test.leader for test in comparison.tests if test.column == column.key}
    return any(method.keeps_data for method in comparison.methods if method.name in leaders)


def _on(comparison: Comparison, column: Column, tests: Sequence[Difference]) -> str | None:
    against = [test for test in tests if test.column == column.key]
    if not against:
        return None
    nearest = min(against, key=lambda test: _gap(test.difference))
    leader, value = printed(nearest.leader), comparison.cell(nearest.leader, column.key).value
    if all(test.difference == 0 for test in against):
        return f"{column.title}: all have {100 * value:.1f}."
    ahead = f"{100 * abs(nearest.difference):.1f} points"
    relation = (
        f"{leader} is ahead with {100 * value:.1f}, {ahead} above {printed(nearest.other)}"
        if column.higher_is_better
        else f"{leader} loses least, {100 * value:.1f} points, {ahead} less than"
        f" {printed(nearest.other)}"
    )
    # Not `>`: where no test was possible p is NaN, and the lead doubtful, too.
    doubtful = [test for test in against if not test.adjusted <= SIGNIFICANT]
    if not doubtful:
        return f"{column.title}: {relation}; this holds ({_p(nearest)})."
    # The p of the method that stands beside it.
    if len(doubtful) == len(against):
        return f"{column.title}: {relation}; this may be chance ({_p(nearest)})."
    return f"{column.title}: {relation}; this may be chance against {_names(doubtful)}."


def _gap(difference: float) -> float:
    return math.inf if math.isnan(difference) else abs(difference)


def _names(tests: Sequence[Difference]) -> str:
    *others, last = [f"{printed(test.other)} ({_p(test)})" for test in tests]
    return f"{', '.join(others)} and {last}" if others else last


def _p(test: Difference) -> str:
    if math.isnan(test.adjusted):
        return "no test was possible"
    return "p < 0.001" if test.adjusted < 0.001 else f"p = {test.adjusted:.3f}"


def _how(comparison: Comparison, test: Difference) -> str:
    if test.kind == "paired":
        n, runs = comparison.n(test.leader), len(comparison.seeds[test.leader])
        if n < runs:
            return f"paired over {n} streams, of each the mean of runs with the same seeds"
        return f"paired over {n} runs with the same seeds"
    return _KINDS[test.kind]
