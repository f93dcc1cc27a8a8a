"""Writes the table of options in a page: `python -m strlora_tuner.options_page docs/tuner.md`.

The schema explains every option once; the page repeats it, and a test holds them together.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from strlora_tuner.methods.strlora.presets import preset_options
from strlora_tuner.options import PREFIX, TunerOptions, bounds_of, expected_value

BEGIN, END = "<!-- options: begin -->\n", "<!-- options: end -->\n"
# Host arguments that the three options of plain LoRA go through.
_HOST = {"rank": "--lora_rank", "alpha": "--lora_alpha", "dropout": "--lora_dropout"}


def options_table() -> str:
    """Returns a Markdown table: option, name for the host, value in both presets, effect."""
    paper = asdict(TunerOptions())
    released = {**paper, **preset_options("released")}
    kinds = get_type_hints(TunerOptions)
    lines = [
        "| option | for ms-swift | `paper` | `released` | takes | what it does |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for item in fields(TunerOptions):
        name = item.name
        host = f"`{_HOST.get(name, PREFIX + name)}`"
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
