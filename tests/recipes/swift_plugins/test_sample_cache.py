"""The sample cache: what is read back is what the host encodes; another content, another name."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.run.layout import RunLayout
from recipes.swift_plugins.sample_cache import NotCacheable, SampleCache, cached, key_of, trim
from strlora_tuner.saved import WEIGHTS
from tests.recipes.real_host import BASE, gone_on, needs_host, sha256
from tests.recipes.toy import recipe_values, write_recipe, write_stream

pytestmark = needs_host
# Changes of a model's files, each of which changes what is encoded.
CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "processor_config.json": lambda c: c["image_processor"].update(image_mean=[0.4, 0.4, 0.4]),
    "tokenizer.json": lambda c: c["model"]["vocab"].update(
        a=c["model"]["vocab"]["b"], b=c["model"]["vocab"]["a"]
    ),
    "config.json": lambda c: c.update(dtype="bfloat16"),
}


def template_of(model: Path, mode: str = "train", **settings: Any) -> Any:
    """The host's template of a model; its processor only is loaded."""
    from swift.model import get_model_processor
    from swift.template import get_template

    _, processor = get_model_processor(str(model), load_model=False)
    template = get_template(processor, **{"max_length": 512, **settings})
    template.set_mode(mode)
    return template


@pytest.fixture(scope="module")
def template() -> Any:
    return template_of(BASE)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    stream = write_stream(tmp_path / "stream", chunks=1, samples=6)
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(stream))
    lines = (stream / "chunks" / "001.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def cache(tmp_path: Path) -> SampleCache:
    return SampleCache(tmp_path / "cache", 1e9)


def through(cache: SampleCache) -> Callable[..., Any]:
    """The host's encode behind a cache; called with a template first."""
    from swift.template import Template

    return cached(Template.encode, cache)


def same(one: Any, other: Any) -> bool:
    """Whether two encoded samples are equal, types and order too."""
    import torch

    if isinstance(one, torch.Tensor):
        return bool(one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def test_what_is_found_is_what_the_host_encodes(
    template: Any, rows: list[dict[str, Any]], cache: SampleCache
) -> None:
    encode = through(cache)
    expected = [template.encode(row, return_length=True) for row in rows]
    for turn in (0, 1):
        found = [encode(template, row, return_length=True) for row in rows]
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        assert (cache.found, cache.encoded) == (turn * len(rows), len(rows))


def test_a_question_keeps_what_the_engine_asks_of_it(
    rows: list[dict[str, Any]], cache: SampleCache
) -> None:
    from swift.infer_engine import InferRequest

    template, encode = template_of(BASE, "transformers"), through(cache)
    asked = {"messages": rows[0]["messages"][:1], "images": rows[0]["images"]}
    request = InferRequest(**asked)
    plain = template.encode(request, return_template_inputs=True)
    encode(template, request, return_template_inputs=True)
    found = encode(template, request, return_template_inputs=True)
    assert cache.found == 1
    one, other = plain.pop("template_inputs"), found.pop("template_inputs")
    assert same(plain, found)
    assert type(one) is type(other)
    assert one.messages[0]["role"] == other.messages[0]["role"] == "user"
    ids = [*template.tokenizer.encode("red"), template.tokenizer.eos_token_id]
    answers = [template.decode_generate_ids(ids, template_inputs=inputs) for inputs in (one, other)]
    assert answers[0] == answers[1] == "red"


def test_the_name_is_that_of_the_content(
    template: Any, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, stream = rows[0], Path(os.environ["ROOT_IMAGE_DIR"])
    name = key_of(template, row, True)
    moved = shutil.copytree(stream, tmp_path / "moved")
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(moved))
    shutil.rmtree(stream)
    copy = shutil.copytree(BASE, tmp_path / "model")
    assert key_of(template_of(copy), row, True) == name
    host_form = {**row, "images": [{"bytes": None, "path": str(moved / row["images"][0])}]}
    assert key_of(template, host_form, True) == name
    assert key_of(template, {**row, "dataset": "elsewhere/questions.jsonl"}, True) == name

    asked, answer = row["messages"]
    others = {
        "answer": key_of(template, {**row, "messages": [asked, {**answer, "content": "x"}]}, True),
        "without length": key_of(template, row, False),
        "no picture": key_of(template, {**row, "images": []}, True),
        "two pictures": key_of(template, {**row, "images": 2 * row["images"]}, True),
        "max_length": key_of(template_of(BASE, max_length=64), row, True),
        "max_pixels": key_of(template_of(BASE, max_pixels=1000), row, True),
        "system": key_of(template_of(BASE, default_system="Be brief."), row, True),
        "loss scale": key_of(template_of(BASE, loss_scale="all"), row, True),
        "mode": key_of(template_of(BASE, "transformers"), row, True),
        "environment": _with(monkeypatch, "MAX_PIXELS", lambda: key_of(template, row, True)),
    }
    for file, change in CHANGES.items():
        folder = shutil.copytree(BASE, tmp_path / file)
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
        others[file] = key_of(template_of(folder), row, True)
    picture = moved / row["images"][0]
    picture.write_bytes(picture.read_bytes() + b"\0")
    others["picture"] = key_of(template, row, True)
    by_name = {other: what for what, other in others.items()}
    assert by_name.get(name) is None
    assert sorted(by_name.values()) == sorted(others)  # no two alike


def _with(monkeypatch: pytest.MonkeyPatch, variable: str, act: Callable[[], str]) -> str:
    with monkeypatch.context() as context:
        context.setenv(variable, "1000")
        return act()


def test_a_damaged_file_is_encoded_again(
    template: Any, rows: list[dict[str, Any]], cache: SampleCache, caplog: pytest.LogCaptureFixture
) -> None:
    encode = through(cache)
    expected = encode(template, rows[0], return_length=True)
    (file,) = cache.folder.glob("??/*.sample")
    whole = file.read_bytes()
    damages = [whole[:-1], b"", whole[:100], bytes(len(whole)), whole[:200] + b"?" + whole[201:]]
    for turn, damage in enumerate(damages):
        file.write_bytes(damage)
        assert same(encode(template, rows[0], return_length=True), expected)
        assert cache.encoded == turn + 2
        assert file.read_bytes() == whole
    assert cache.found == 0


def test_what_was_drawn_is_not_kept(
    template: Any, rows: list[dict[str, Any]], cache: SampleCache
) -> None:
    def encode(self: Any, inputs: Any, *args: Any) -> dict[str, Any]:
        return {"input_ids": [random.randrange(100)]}

    for _ in range(2):
        cached(encode, cache)(template, rows[0])
    assert (cache.found, cache.encoded) == (0, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": ["https://example.org/a.png"]}, "from an address"),
        ({"images": ["images/none.png"]}, "images/none.png"),
        ({"videos": ["a.mp4"]}, "videos"),
        ({"tools": [object()]}, "cannot be told"),
    ],
)
def test_what_has_no_known_content_has_no_name(
    template: Any, rows: list[dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(NotCacheable, match=words):
        key_of(template, {**rows[0], **change}, True)


def test_a_template_of_elsewhere_has_no_name(rows: list[dict[str, Any]]) -> None:
    template = template_of(BASE)
    template.__class__ = type("Own", (type(template),), {"__module__": "plugin"})
    with pytest.raises(NotCacheable, match="plugin"):
        key_of(template, rows[0], True)


def test_a_full_cache_keeps_no_more_and_is_trimmed_at_the_next_start(
    template: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    cache = SampleCache(tmp_path / "cache", 500_000)  # three samples of 150 kB
    encode = through(cache)
    for row in rows:
        encode(template, row, return_length=True)
    files = sorted(cache.folder.glob("??/*.sample"))
    assert len(files) == 3
    for age, file in enumerate(files):
        os.utime(file, (1e9 - age, 1e9 - age))
    trim(cache.folder, 500_000)
    assert sorted(cache.folder.glob("??/*.sample")) == files
    trim(cache.folder, 400_000)  # to 320,000: the oldest, which is the last, goes
    assert sorted(cache.folder.glob("??/*.sample")) == files[:2]


def test_a_folder_that_cannot_be_written_is_told(
    template: Any, rows: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    cache = SampleCache(tmp_path / "cache", 1e9)
    encode = through(cache)
    with caplog.at_level("WARNING", logger="swift"):
        for row in rows:
            expected = template.encode(row, return_length=True)
            assert same(encode(template, row, return_length=True), expected)
    told = [record.message for record in caplog.records]
    assert told == [f"sample cache: samples cannot be kept in {cache.folder}: Not a directory"]


@pytest.mark.slow
def test_a_run_with_the_cache_ends_with_the_same_weights(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", chunks=2, samples=16)
    kept, runs = str(tmp_path / "kept"), {}
    for name, folder in (("plain", None), ("first", kept), ("then", kept)):
        values = recipe_values(stream, tmp_path / name, BASE, method="strlora")
        values["launcher"] |= {"sample_cache": folder, "resident": name != "first"}
        assert "finished" in gone_on(write_recipe(tmp_path / f"{name}.yaml", values))
        runs[name] = RunLayout(tmp_path / name)
    for chunk in (1, 2):
        assert len({sha256(run.adapter(chunk) / WEIGHTS) for run in runs.values()}) == 1
    assert len({run.matrix.read_bytes() for run in runs.values()}) == 1

    assert "sample cache" not in runs["plain"].train_log(1).read_text(encoding="utf-8")
    assert used(runs["first"].train_log(1)) < used(runs["first"].eval_log(1)) == 1.0
    assert used(runs["first"].eval_log(0)) < 1.0  # chunk 1 was asked the same
    assert used(runs["then"].train_log(1)) == used(runs["then"].eval_log(0)) == 1.0
    assert used(runs["then"].eval_log(2)) == 1.0


def used(log: Path) -> float:
    """The share of samples that a host process found in the cache, by what it says at its end."""
    found = re.findall(r"sample cache: (\d+) of (\d+) samples", log.read_text(encoding="utf-8"))
    ((count, total),) = found
    assert int(total) >= 8
    return int(count) / int(total)
