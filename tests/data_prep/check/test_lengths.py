"""data_prep.check --recipe: which samples are counted, and those that are too long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_prep.check.__main__ import main
from data_prep.check.checking import Check, Settings
from data_prep.check.findings import as_json
from data_prep.check.lengths import Lengths, spread
from data_prep.check.stream_folder import read_layout
from tests.data_prep.check.test_check import REPO, found, run, sample, stream
from tests.data_prep.trees import picture


def test_a_recipe_that_is_not_there(tmp_path, capsys):
    folder = stream(tmp_path / "s", [sample("a")])
    assert main([str(folder), "--recipe", "tinny"]) == 2
    assert "--recipe tinny: command line: RECIPE: no recipe is called" in capsys.readouterr().err
    assert main([str(folder), "--model", str(tmp_path / "none")]) == 2
    assert "none is not there" in capsys.readouterr().err


def checked(folder: Path, most: int | None, policy: str = "skip") -> Check:
    """A check of a folder, its samples read, tokens not counted yet."""
    settings = Settings(decode=True)
    check = Check(read_layout(folder), settings)
    check.run()
    check.settings = replace(settings, lengths=Lengths("tiny", (), 512, policy, most))
    return check


def test_which_samples_are_counted(tmp_path):
    rows = [sample(str(n), question=f"word {n}?") for n in range(40)]
    rows[13]["messages"][0]["content"] += " long" * 50
    picture(tmp_path / "s/images/a.png")
    rows[7] = sample("7", "images/a.png")
    folder = stream(tmp_path / "s", rows)
    even, likely = checked(folder, 8)._counted(8)
    assert even == [0, 10, 20, 30]
    assert (13 in likely[:2], 7 in likely[2:], len(likely)) == (True, True, 4)
    assert checked(folder, None)._counted(None) == ([*range(40)], [])
    assert spread(5, 3) == [0, 1, 3]


@pytest.mark.parametrize(
    ("policy", "severity", "words"),
    [
        ("skip", "warning", "the run takes the next in its place (data.too_long: skip)"),
        ("cut", "warning", "the run leaves out its end (data.too_long: cut)"),
        ("stop", "error", "the run would stop (data.too_long): shorten it"),
    ],
)
def test_a_sample_that_is_too_long(tmp_path, policy, severity, words):
    folder = stream(tmp_path / "s", [sample("a")], [sample("q", question="Where is b?")])
    check = checked(folder, None, policy)
    for each in check.result.samples:
        check._judge_length(each, 600, check.settings.lengths)
    train, test = (p for p in check.result.problems if p.code == "too-long")
    assert train.text == f"600 tokens, model.max_length is 512; {words}"
    assert (train.severity, test.severity) == (severity, "error")
    assert "the evaluation would stop" in test.text
    place = {"file": str(folder / "chunks/001.jsonl"), "line": 1, "id": "a"}
    first, second = as_json(check.result)["too_long"]
    assert first == {**place, "tokens": 600, "max_length": 512, "done": policy}
    assert (second["id"], second["line"], second["done"]) == ("q", 1, "stop")


@pytest.mark.slow
def test_lengths_are_the_hosts(tmp_path, capsys):
    """Against the processor and chat template of the model itself."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(REPO / "assets/tiny_base")
    with Image.open(picture(tmp_path / "s/images/a.png")) as image:
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a red car"}]},
        ]
        text = processor.apply_chat_template(turns, tokenize=False)
        exact = len(processor(images=[image.convert("RGB")], text=text)["input_ids"][0])
    short = sample("a", "images/a.png", "What?", answer="a red car")
    folder = stream(tmp_path / "s", [short, sample("b", question="word " * 600)])
    code, content = run(folder, "--recipe", "tiny")
    assert (code, found(content)) == (0, ["too-long"])
    assert content["by_code"]["too-long"]["severity"] == "warning"
    (place,) = [each["where"] for each in content["problems"]]
    assert place.endswith("chunks/001.jsonl:2")
    tokens = content["tokens"]
    assert (tokens["counted"], tokens["mean"]) == (2, (exact + tokens["longest"]) / 2)
    assert tokens["longest"] > 600
    assert "(2 of 2 samples counted)" in capsys.readouterr().out
