"""docs/tuner.md says what the schema says."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from docs.make_tuner_page import options_table, update_table
from strlora_tuner.methods.strlora.options import Options

ROOT = Path(__file__).parents[1]


def test_the_page_is_that_of_the_schema():
    page = (ROOT / "docs" / "tuner.md").read_text()
    assert update_table(page) == page, "run: python -m docs.make_tuner_page docs/tuner.md"
    assert "docs/tuner.md" in (ROOT / "README.md").read_text()


def test_the_table_has_every_option_with_both_values():
    rows = [line.split(" | ") for line in options_table().splitlines()[2:]]
    assert [row[0].strip("| `") for row in rows] == [item.name for item in fields(Options)]
    cells = {row[0].strip("| `"): [cell.strip("`") for cell in row[2:4]] for row in rows}
    assert cells["token_top_k"] == ["2", "1"]
    assert cells["task_router"] == ["prior", "frozen"]
    assert cells["padding"] == ["mask", "include"]
    assert cells["ema_decay"] == ["0.999", "0.999"]
    assert all(len(row[5]) > 20 for row in rows)


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="options: begin"):
        update_table("# nothing\n")
