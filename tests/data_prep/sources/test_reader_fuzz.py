"""Readers, on samples that nobody wrote: read whole, or refused with a word; never half."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.chunk.__main__ import main as chunk
from data_prep.errors import DataError
from data_prep.sources.raw_forms import to_host

WORDS = st.integers(0, 99).map("word{:02d}".format)
PICTURES = st.integers(0, 9).map("pic{}.png".format)
PAIRS = [
    ("question", "answer"),
    ("instruction", "output"),
    ("query", "response"),
    ("prompt", "completion"),
]
ROLES = [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")]
MARKS = ["<image>", "<img>{}</img>", "<image_1>", "<|image_1|>", "<ImageHere>", "![]({})"]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(max_size=8)
    | PICTURES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def samples(draw: st.DrawFn) -> dict[str, Any]:
    """A sample in one of the published forms, its pictures and flaws in any place."""
    sample: dict[str, Any] = {}
    if draw(st.booleans()):
        ask, answer = draw(st.sampled_from(PAIRS))
        sample |= {ask: draw(WORDS), answer: draw(WORDS)}
        turns = [(sample, ask)]
    else:
        role, content, user, model = draw(st.sampled_from(ROLES))
        names = [user, model] * draw(st.integers(1, 3))
        rows = [{role: name, content: draw(WORDS)} for name in names]
        sample[draw(st.sampled_from(["messages", "conversations"]))] = rows
        turns = [(row, content) for row in rows[::2]]
    for holder, key in turns:
        if draw(st.integers(0, 2)) == 0:
            mark = draw(st.sampled_from(MARKS)).format(draw(PICTURES))
            holder[key] = f"{mark} {holder[key]}"
        elif draw(st.integers(0, 3)) == 0:
            part = {
                "type": "image",
                draw(st.sampled_from(["image", "path", "url"])): draw(PICTURES),
            }
            holder[key] = [part, {"type": "text", "text": holder[key]}]
    if draw(st.booleans()):
        column = draw(st.sampled_from(["image", "images", "image_path", "img", "image_1"]))
        sample[column] = draw(PICTURES | st.lists(PICTURES, max_size=2))
    if draw(st.integers(0, 3)) == 0:
        keys = st.sampled_from(["id", "task", "system", "objects", "options", "history", "loss"])
        sample[draw(keys | st.text(max_size=6))] = draw(JUNK)
    return sample


def _whole_or_refused(sample: dict[str, Any]) -> None:
    try:
        read = to_host(sample, str)
    except DataError:
        return
    marks = sum(str(turn["content"]).count("<image>") for turn in read["messages"])
    assert marks == len(read.get("images", [])), (sample, read)
    given_text, read_text = json.dumps(sample), json.dumps(read)
    for number in range(100):
        word = f"word{number:02d}"
        assert (word in given_text) <= (word in read_text), (word, sample, read)
    for number in range(10):
        name = f"pic{number}.png"
        assert (name in given_text) <= (name in read_text), (name, sample, read)


def _none_lost(records: list[Any]) -> None:
    """What goes into `chunk` comes out, or stands in left_out.jsonl."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(10):
            Image.new("RGB", (2, 2), (number, 0, 0)).save(root / f"pic{number}.png")
        source = root / "a.jsonl"
        lines = "".join(json.dumps(record) + "\n" for record in records)
        source.write_text(lines, encoding="utf-8")
        out = root / "s"
        words = ["--source", str(source), "--out", str(out), "--images", folder, "--workers", "1"]
        if chunk([*words, "--no-shuffle", "--skip-bad"]) != 0:
            return  # refused as a whole, in words
        kept = sum(len(p.read_text().splitlines()) for p in (out / "chunks").glob("*.jsonl"))
        left = out / "left_out.jsonl"
        told = len(left.read_text().splitlines()) if left.exists() else 0
        assert kept + told == len(records), records


@settings(max_examples=400)
@given(samples())
def test_a_sample_is_read_whole_or_refused(sample: dict[str, Any]) -> None:
    _whole_or_refused(sample)


@settings(max_examples=15)
@given(st.lists(samples() | JUNK, min_size=1, max_size=6))
def test_samples_in_are_samples_out_and_samples_told(records: list[Any]) -> None:
    _none_lost(records)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FULL_LONG") != "1", reason="FULL_LONG=1: minutes of examples")
@settings(max_examples=20_000)
@given(samples())
def test_whole_or_refused_for_long(sample: dict[str, Any]) -> None:
    _whole_or_refused(sample)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FULL_LONG") != "1", reason="FULL_LONG=1: minutes of examples")
@settings(max_examples=500)
@given(st.lists(samples() | JUNK, min_size=1, max_size=20))
def test_none_lost_for_long(records: list[Any]) -> None:
    _none_lost(records)
