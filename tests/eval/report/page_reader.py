"""Reads numbers back out of a page of ours, and writes a number as a page must show it."""

from __future__ import annotations

import math
import re
from html import unescape

Rows = list[list[str]]


def tables_of(page: str) -> dict[str, Rows]:
    """Return the tables of a page by caption in lower case: rows of text, the head first."""
    tables = {}
    for summary, body in re.findall(r"<summary>Table: (.*?)</summary>(.*?)</details>", page, re.S):
        rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.S)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
        name = unescape(summary).lower()
        assert name not in tables, f"two tables called {name!r}"
        tables[name] = [[unescape(cell) for cell in row] for row in cells]
    return tables


def cards_of(page: str) -> dict[str, tuple[str, str]]:
    """Return the headline numbers of a page: {name: (value, standard error)}."""
    pattern = (
        r'<dt>([^<]*)</dt>\s*<dd><span class="figure">([^<]*)</span>'
        r'(?: <span class="stderr">± ([^<]*)</span>)?'
    )
    return {name: (value, error) for name, value, error in re.findall(pattern, page)}


def shown(value: float) -> str:
    """Return a score in 0..1 in percent with one decimal."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}".replace("-", "\u2212")  # noqa: RUF001


def mean(values: list[float]) -> float:
    """Return the mean of numbers."""
    return sum(values) / len(values)
