"""A shop's photographs with a table of questions, as a new user has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

DAYS = [f"2026-{month:02d}-{day:02d}" for month in (1, 2, 3) for day in (3, 9, 15, 21, 27, 28)]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write shop.csv with 18 pictures in photos/; return the table's path.

    The columns are those of the heading; `{n}`, `{day}` and `{colour}` stand for a row's values.
    """

    def write(
        heading: str, row: str = "p{n}.png,What colour is it?,{colour},{day}", name: str = "shop"
    ) -> Path:
        (tmp_path / "photos").mkdir(exist_ok=True)
        lines = [heading]
        for n, day in enumerate(DAYS):
            colour = ("red", "blue", "green")[n % 3]
            Image.new("RGB", (8 + n, 9), colour).save(tmp_path / f"photos/p{n}.png")
            lines.append(row.format(n=n, day=day, colour=colour))
        path = tmp_path / f"{name}.csv"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write
