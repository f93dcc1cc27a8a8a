"""What a check found, as JSON and as a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import fmean, median
from typing import Any

from data_prep.check.checking import Result
from data_prep.check.sample_rules import Sample
from data_prep.errors import ERROR, Problem, listing

MOST_LISTED = 10_000


def as_json(result: Result) -> dict[str, Any]:
    """Return the report: counts, statistics by task, lengths, and the problems themselves."""
    errors = len(result.errors)
    return {
        "format": "strlora-check/1",
        "folder": str(result.layout.root),
        "verdict": "bad" if errors else "good",
        "errors": errors,
        "warnings": len(result.problems) - errors,
        "samples": sum(sum(counts.values()) for counts in result.seen.values()),
        "images": len(result.pictures),
        "seconds": round(result.seconds, 2),
        "by_code": by_code(result.problems),
        "tasks": task_statistics(result),
        "tokens": _lengths(result),
        "too_long": result.too_long,
        "problems": [problem.as_json() for problem in result.problems[:MOST_LISTED]],
        "problems_not_listed": max(0, len(result.problems) - MOST_LISTED),
    }


def by_code(problems: list[Problem]) -> dict[str, dict[str, Any]]:
    """Return for each code its severity, how often it was found, and the first place."""
    codes: dict[str, dict[str, Any]] = {}
    for problem in problems:
        entry = codes.setdefault(
            problem.code, {"severity": problem.severity, "count": 0, "first": problem.where}
        )
        entry["count"] += 1
    return dict(sorted(codes.items(), key=lambda item: (item[1]["severity"], -item[1]["count"])))


def task_statistics(result: Result) -> dict[str, dict[str, Any]]:
    """Return for each task: samples in training and test, and how its answers are spread."""
    groups: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    files = result.layout.files
    for sample in result.samples:
        part = "train" if files[sample.file].task is None else "test"
        groups[sample.task or "(none)", part].append(sample)
    out: dict[str, dict[str, Any]] = {}
    for (task, part), samples in sorted(groups.items()):
        out.setdefault(task, {})[part] = _answers(samples)
    return out


def _answers(samples: list[Sample]) -> dict[str, Any]:
    counts = Counter(sample.answer for sample in samples)
    most, count = counts.most_common(1)[0]
    return {
        "samples": len(samples),
        "images": len({image for sample in samples for image in sample.images}),
        "answers": len(counts),
        "questions": len({sample.question for sample in samples}),
        "most_common": next(sample.shown for sample in samples if sample.answer == most),
        "most_common_share": round(count / len(samples), 4),
    }


def _lengths(result: Result) -> dict[str, Any] | None:
    """Return mean and median of evenly spread samples, and the longest of all that were counted."""
    if not result.tokens:
        return None
    return {
        "counted": len(result.tokens),
        "mean": round(fmean(result.typical), 1),
        "median": median(result.typical),
        "longest": max(result.tokens),
    }


def as_text(result: Result, shown: int = 20) -> str:
    """Return the report for people: problems first, then the tables."""
    content = as_json(result)
    order = sorted(result.problems, key=lambda problem: problem.severity != ERROR)
    lines = [listing(order, shown)] if order else []
    if result.problems:
        lines += ["", f"{'severity':9} {'count':>6}  {'problem':22} first"]
        for code, entry in content["by_code"].items():
            line = f"{entry['severity']:9} {entry['count']:6}  {code:22} {entry['first']}"
            lines.append(line)
    lines += [
        "",
        f"{'task':14} {'part':5} {'samples':>7} {'images':>7} {'answers':>7}  most common",
    ]
    for task, parts in content["tasks"].items():
        for part, entry in parts.items():
            share = f"{entry['most_common']!r} {entry['most_common_share']:.0%}"
            counts = f"{entry['samples']:7} {entry['images']:7} {entry['answers']:7}"
            lines.append(f"{task:14} {part:5} {counts}  {share}")
    if content["tokens"]:
        tokens = content["tokens"]
        longest = f"median {tokens['median']}, longest {tokens['longest']}"
        of = f"{tokens['counted']} of {len(result.samples)} samples counted"
        lines.append(f"\ntokens a sample: mean {tokens['mean']}, {longest} ({of})")
    lines.append(
        f"\n{content['folder']}: {content['samples']} samples, {content['images']} images, "
        f"{content['errors']} errors, {content['warnings']} warnings ({content['seconds']} s)"
    )
    return "\n".join(lines)
