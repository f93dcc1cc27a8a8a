"""Writes the table of options in a page: `python -m docs.make_tuner_page docs/tuner.md`.

options.py explains every option once; the page repeats it, and a test holds them together.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.options import PREFIX, bounds_of, expected_value, preset_options

BEGIN, END = "<!-- options: begin -->\n", "<!-- options: end -->\n"


def options_table() -> str:
    """Returns a Markdown table: option, name for the host, value in both presets, effect."""
    paper = asdict(Options())
    released = {**paper, **preset_options(Options, "released")}
    kinds = get_type_hints(Options)
    lines = [
        "| option | for ms-swift | `paper` | `released` | takes | what it does |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for item in fields(Options):
        name = item.name
        argument = item.metadata["host"]
        host = f"`--{argument}`" if argument else f"`{PREFIX}{name}`"
        takes = expected_value(kinds[name], bounds_of(item))
        values = (_show(paper[name]), _show(released[name]))
        cells = (f"`{name}`", host, *values, takes, item.metadata["description"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _show(value: Any) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def update_table(page: str) -> str:
    """Returns the page with its table as the schema says; ValueError without the two marks."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page lacks the lines {BEGIN.strip()} and {END.strip()}")
    before, rest = page.split(BEGIN, 1)
    return before + BEGIN + options_table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(update_table(file.read_text(encoding="utf-8")), encoding="utf-8")
