"""The verdict in words: every p is that of the two methods it stands with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from eval.compare.comparison import Cell, Column, Comparison, Difference
from eval.compare.verdict import sentences

LAST = Column("last", "Last", "headline", True, "%")


def said(keeps: dict[str, str], *tests: Difference) -> str:
    """The verdict on methods that keep this data, "a" leading with 80.0."""
    cells = {("a", "last"): Cell(0.8)}
    seeds: Any = {name: [(1, 0), (2, 0)] for name in keeps}
    methods: Any = [SimpleNamespace(name=name, keeps_data=data) for name, data in keeps.items()]
    found = Comparison(list(keeps), [LAST], cells, list(tests), seeds, ["VQAv2"], methods=methods)
    return " ".join(sentences(found))


def against(other: str, gap: float, adjusted: float) -> Difference:
    return Difference("last", "a", other, gap, "welch", adjusted / 2, adjusted)


def test_the_p_beside_a_method_is_its_own() -> None:
    """The nearest method need not be the one with the largest p."""
    near, far = against("b", 0.01, 0.088), against("c", 0.014, 0.231)
    nothing = {"a": "", "b": "", "c": ""}
    told = said(nothing, near, far)
    assert "80.0, 1.0 points above b; this may be chance (p = 0.088)." in told
    holds = against("b", 0.01, 0.002), against("c", 0.014, 0.04)
    assert "above b; this holds (p = 0.002)." in said(nothing, *holds)
    mixed = said(nothing, holds[0], far, against("d", 0.3, float("nan")))
    assert "above b; this may be chance against c (p = 0.231) and d (no test was" in mixed


def test_others_that_keep_nothing_are_named_where_there_are_any() -> None:
    test = against("b", 0.01, 0.02)
    assert "a (9 samples) keeps past data, the others none." in said(
        {"a": "9 samples", "b": ""}, test
    )
    told = said({"a": "9 samples", "b": "all data"}, test)
    assert "a (9 samples), b (all data) keep past data." in told
