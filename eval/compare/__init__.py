"""Several runs in one table: methods x scores, with intervals, and marks only where they hold.

    python -m eval.compare runs/tiny runs/tiny-lora --out runs/compare

In Python: `comparison = compare([Path("runs/tiny"), Path("runs/tiny-lora")])`, then
`comparison.cell(method, column.key)` for every method in `comparison.names` and every column in
`comparison.columns`. `eval.compare.tables` makes text, Markdown, LaTeX and CSV of it.
"""

from __future__ import annotations

from eval.compare.comparison import Cell, Column, Comparison, Difference, compare
from eval.compare.runs import Entry, Method, load_methods

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Difference",
    "Entry",
    "Method",
    "compare",
    "load_methods",
]
