"""Pictures that look alike: which pairs are found, and which of the two is named."""

from __future__ import annotations

from random import Random

import pytest
from PIL import Image

from data_prep.check.relations import near_pairs
from data_prep.images import dhash
from tests.data_prep.check.test_check import RGB, found, run, sample, stream
from tests.data_prep.trees import picture


def test_near_images_on_request(tmp_path):
    folder = tmp_path / "s"
    (folder / "images").mkdir(parents=True)
    RGB.resize((300, 200)).save(folder / "images/a.png")
    RGB.resize((300, 200)).save(folder / "images/b.jpg", quality=60)
    picture(folder / "images/c.png", size=(64, 64))
    train = [sample("1", "images/b.jpg"), sample("2", "images/c.png")]
    stream(folder, train, [sample("t", "images/a.png")])
    assert found(run(folder)[1]) == []
    assert found(run(folder, "--near")[1]) == ["leak-near"]


@pytest.mark.parametrize("flipped", [0, 1])
def test_of_two_near_images_the_training_sample_is_named(tmp_path, monkeypatch, flipped):
    hashes = {64: 0b100 ^ flipped, 65: 0b101 ^ flipped}  # by width; one bit apart, either is less
    monkeypatch.setattr("data_prep.images.dhash", lambda image: hashes[image.width])
    folder = tmp_path / "s"
    picture(folder / "images/a.png", size=(64, 64))
    picture(folder / "images/b.png", size=(65, 64))
    stream(folder, [sample("1", "images/b.png")], [sample("t", "images/a.png")])
    (problem,) = run(folder, "--near")[1]["problems"]
    assert problem["code"] == "leak-near"
    assert "/chunks/" in problem["where"]


def test_near_pairs_agree_with_all_pairs():
    draw = Random(0)
    values = [draw.getrandbits(64) for _ in range(300)]
    values += [v ^ 1 << draw.randrange(64) ^ 1 << draw.randrange(64) for v in values[:60]]
    expected = {
        (min(a, b), max(a, b))
        for a in values
        for b in values
        if a != b and (a ^ b).bit_count() <= 3
    }
    assert {(min(pair), max(pair)) for pair in near_pairs(set(values))} == expected
    assert dhash(RGB) != dhash(RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
