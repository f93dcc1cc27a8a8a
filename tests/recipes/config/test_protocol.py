"""The four protocols: what they train on, go on from and evaluate."""

from __future__ import annotations

import pytest

from recipes.config.protocol import PROTOCOLS


@pytest.mark.parametrize(
    ("name", "trained", "data", "previous", "points"),
    [
        ("stream", [1, 2, 3], [3], [None, 1, 2], [0, 1, 2, 3]),
        ("joint", [3], [1, 2, 3], [None, None, None], [0, 3]),
        ("zero_shot", [], [3], [None, None, None], [0, 3]),
        ("pool", [1, 2, 3], [3], [None, None, None], [0, 1, 2, 3]),
    ],
)
def test_a_protocol_on_three_chunks(
    name: str, trained: list[int], data: list[int], previous: list[int | None], points: list[int]
) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.trained_chunks(3) == trained
    assert protocol.data_chunks(3, 3) == data
    assert [protocol.previous(chunk) for chunk in (1, 2, 3)] == previous
    assert protocol.evaluation_points(3) == points
    assert protocol.continues == any(previous)
