"""Results of accept.sh: one JSON a step, the table of them, and a new one against the stored one.

    python benchmarks/gpu/results.py table [--write]         # --write: into benchmarks/README.md
    python benchmarks/gpu/results.py compare FOLDER          # a folder that accept.sh wrote

The end of a figure's name says its unit, and how far a new value may be worse than the stored one:
`_gib` 1 % more; `_s` and `_ms` 15 % more; `_per_s` and `_times` 15 % less. Others are not compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

HERE = Path(__file__).resolve().parent
STORED = HERE / "results"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
FORMAT = "strlora-gpu/1"
NONE_YET = "No step has run on a GPU yet, so there is no result to show."
# End of a name -> (greatest ratio worse : stored, whether less is better); the first that fits.
LIMITS = {
    "_per_s": (1.15, False),
    "_times": (1.15, False),
    "_gib": (1.01, True),
    "_ms": (1.15, True),
    "_s": (1.15, True),
}


class Goal(TypedDict):
    """A figure that should be at most, or at least, `limit`."""

    figure: str
    sense: str  # "at most" | "at least"
    limit: float
    met: bool


class Result(TypedDict):
    """What a step leaves. `complete` is false when the step was stopped before its end."""

    format: str
    step: str
    date: str
    seconds: float
    complete: bool
    card: dict[str, object]
    versions: dict[str, str | None]
    commit: dict[str, object]
    settings: dict[str, object]
    figures: dict[str, float]
    goals: list[Goal]
    details: dict[str, object]


def goal(figure: str, value: float, sense: str, limit: float) -> Goal:
    """Returns the goal with whether `value` meets it; a figure that is not a number misses it."""
    met = value <= limit if sense == "at most" else value >= limit
    return {"figure": figure, "sense": sense, "limit": limit, "met": bool(met)}


def read(folder: Path) -> list[Result]:
    """Returns the results in a folder and its folders, by card and step.

    Raises:
        ValueError: a file is of another format.
    """
    found: list[Result] = []
    for path in sorted(folder.rglob("*.json")):
        result: Result = json.loads(path.read_text("utf-8"))
        if result.get("format") != FORMAT:
            raise ValueError(f"{path}: format {result.get('format')!r}, expected {FORMAT!r}")
        found.append(result)
    return sorted(found, key=lambda r: (str(r["card"]["name"]), r["step"]))


def number(value: float) -> str:
    """Returns a value in four figures or so, thousands with commas."""
    if not math.isfinite(value):
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def table(results: Iterable[Result]) -> str:
    """Returns a Markdown table, one row a figure; what goal a figure has, and whether it is met."""
    lines = []
    card = None
    for result in results:
        if result["card"]["name"] != card:
            card = result["card"]["name"]
            driver = result["card"].get("driver")
            about = [str(driver)] if driver else []
            about += [f"{n} {v}" for n, v in result["versions"].items() if v]
            lines += ["" if lines else None, f"{card} ({', '.join(about)})", ""]
            lines += ["| step | figure | value | goal | |", "| --- | --- | --- | --- | --- |"]
        goals = {each["figure"]: each for each in result["goals"]}
        title = f"{result['step']}, {result['date'][:10]}"
        title += "" if result["complete"] else " (stopped early)"
        for name, value in result["figures"].items():
            wanted = goals.get(name)
            asked = f"{wanted['sense']} {number(wanted['limit'])}" if wanted else ""
            verdict = ("met" if wanted["met"] else "**missed**") if wanted else ""
            words = name.replace("_", " ")
            lines.append(f"| {title} | {words} | {number(value)} | {asked} | {verdict} |")
            title = ""
    return "\n".join(line for line in lines if line is not None) or NONE_YET


def compare(new: Result, stored: Result) -> list[str]:
    """Returns one line a figure that is worse than the stored one by more than its limit allows."""
    worse = []
    for name, before in stored["figures"].items():
        limit = next((value for end, value in LIMITS.items() if name.endswith(end)), None)
        now = new["figures"].get(name)
        if limit is None or not math.isfinite(before) or before <= 0:
            continue
        if now is None or not math.isfinite(now) or now <= 0:
            worse.append(f"{new['step']}: {name} was {number(before)}, now there is none")
            continue
        most, less_is_better = limit
        ratio = now / before if less_is_better else before / now
        if ratio > most:
            allowed = f"{100 * (most - 1):.0f} %"
            worse.append(
                f"{new['step']}: {name} was {number(before)}, now {number(now)}: "
                f"{100 * (ratio - 1):.1f} % worse, allowed {allowed}"
            )
    return worse


def compare_folders(new: Path, stored: Path) -> tuple[list[str], list[str]]:
    """Returns what is worse, and which results have none of their card and step to compare with."""
    known = {(r["card"]["name"], r["step"]): r for r in read(stored)}
    worse, alone = [], []
    for result in read(new):
        key = (result["card"]["name"], result["step"])
        if key in known:
            worse += compare(result, known[key])
        else:
            alone.append(f"{key[1]} on {key[0]}: nothing stored to compare with")
    return worse, alone


def with_table(text: str, rendered: str) -> str:
    """Returns the page with `rendered` between its two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{rendered}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Command line; exit status 1 when something is worse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    showing = commands.add_parser("table", help="print the table")
    showing.add_argument("folder", type=Path, nargs="?", default=STORED)
    showing.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    comparing = commands.add_parser("compare", help="compare new results with the stored ones")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("--stored", type=Path, default=STORED)
    options = parser.parse_args()
    if options.command == "table":
        rendered = table(read(options.folder))
        print(rendered)
        if options.write:
            README.write_text(with_table(README.read_text("utf-8"), rendered), encoding="utf-8")
        return 0
    worse, alone = compare_folders(options.folder, options.stored)
    print("\n".join([*alone, *worse]) or "nothing is worse than stored")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
