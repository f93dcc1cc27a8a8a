"""Figures over the chunks of a stream: lines, their legend, and the table of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.charts.figure import Figure, Table, percent
from eval.charts.plots import Formatter, Series, legend, line_chart, short_percent


def over_chunks(
    heading: str,
    title: str,
    series: Sequence[Series],
    chunks: Sequence[int],
    y_label: str,
    caption: str,
    note: str = "",
    more: Mapping[str, Sequence[str]] | None = None,
    cell: Formatter = percent,
    show: Formatter = short_percent,
    height: float = 240.0,
    from_zero: bool = True,
) -> Figure:
    """Return a line chart over chunks with its legend and the table of its numbers.

    Args:
        heading, note: of the figure.
        title, series, y_label, show, height, from_zero: as for `line_chart`.
        chunks: the abscissae; 0 is the base model.
        caption: of the table.
        more: further columns of the table by their heads, ready for print.
        cell: turns a value into the text of the table.
    """
    chart = line_chart(title, series, chunks, "chunk", y_label, show, height, from_zero=from_zero)
    columns = [*([cell(float(v)) for v in s.values] for s in series), *(more or {}).values()]
    names = ["base model" if chunk == 0 else f"chunk {chunk}" for chunk in chunks]
    head = ["after", *(s.name for s in series), *(more or {})]
    table = Table(caption, head, [list(row) for row in zip(names, *columns, strict=True)])
    return Figure(heading, chart, [table], note, legend=legend(series))
