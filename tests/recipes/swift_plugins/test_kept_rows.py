"""Rows that the host would drop after chunking stop the run, by their ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("swift")


def sample(name: str, **changes: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": name}]
    return {"messages": turns, "images": [], "id": name, **changes}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Returns a function: samples -> what the host's own loader makes of a file of them."""
    from swift.dataset import load_dataset
    from swift.dataset.preprocessor.core import RowPreprocessor

    from recipes.swift_plugins import kept_rows

    monkeypatch.setattr(RowPreprocessor, "batched_preprocess", kept_rows.preprocess_all)

    def loaded(samples: list[dict[str, Any]], strict: bool = True) -> Any:
        path = tmp_path / "chunk.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in samples), encoding="utf-8")
        options = {"split_dataset_ratio": 0.0, "strict": strict, "load_from_cache_file": False}
        return load_dataset([str(path)], **options)[0]

    return loaded


def test_whole_rows_are_read_as_before(read: Any) -> None:
    rows = read([sample("a"), sample("b")])
    assert [row["messages"][1]["content"] for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"messages": []}, "would be left out: it has no turns"),
        ({"objects": {"ref": ["x"], "bbox": [[1, 2, 3]]}}, r"cannot be read: len\(box\): 3"),
    ],
)
def test_a_row_that_would_be_dropped_stops_and_is_named(read: Any, broken: Any, why: str) -> None:
    rows = [sample("a"), sample("b-17", **broken), sample("c")]
    with pytest.raises(ValueError, match=rf"1 training samples \(id b-17\): the first {why}"):
        read(rows)
    assert len(read(rows, strict=False)) == 2  # what the host does by itself
