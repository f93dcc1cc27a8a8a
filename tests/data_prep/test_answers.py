"""Gold answers against an independent look: at the pixels, or at the source's own table."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sqlite3

import numpy as np
import pytest
from PIL import Image

from data_prep.mini.assets import Assets
from data_prep.mini.draw import COLOURS
from data_prep.mini.tasks import sample_rng

COUNT = 60


def drawn(task, split="test"):
    """Yield (pixels (112, 112, 3) int, scene, question)."""
    for index in range(COUNT):
        rng = sample_rng(3, task.name, split, index)
        scene = task.draw(split, rng)
        yield np.asarray(scene.image).astype(int), scene, task.ask(scene, rng)


def nearest_colour(pixel, table):
    """Return the name of the colour of `table` nearest to `pixel`."""
    return min(table, key=lambda name: np.abs(np.array(table[name]) - pixel).sum())


def test_vqa_colour_is_in_the_picture(tasks):
    table = {
        "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
        "black": (0, 0, 0), "gray": (128, 128, 128), "teal": (0, 128, 128), "brown": (165, 42, 42),
    }  # fmt: skip
    asked = 0
    for pixels, _, question in drawn(tasks["VQAv2"]):
        if question.answer not in table:
            continue
        distance = np.abs(pixels - pixels[0, 0]).sum(axis=-1)
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        asked += 1
        assert nearest_colour(pixels[row, column], table) == question.answer
    assert asked > 15


def test_film_answers_are_in_the_films_table(tasks):
    path = Assets().extract("bokeh-sampledata", "bokeh_sampledata/_data/movies.db")
    with sqlite3.connect(path) as database:
        for _, scene, question in drawn(tasks["OCRVQA"]):
            film = scene.source.split("/")[1]
            query = "SELECT Year, Genre, Director FROM omdb WHERE imdbID = ?"
            year, genres, director = database.execute(query, (film,)).fetchone()
            truth = {
                "Who is": director.split()[-1].lower(),
                "What is": genres.split(",")[0].lower(),
                "When was": str(year),
            }
            assert truth[" ".join(question.prompt.split()[:2])] == question.answer


def test_trend_letter_follows_from_the_drawn_candles(tasks):
    for pixels, _, question in drawn(tasks["Fin"]):
        coloured = np.abs(pixels - pixels[0].max(axis=0)).sum(axis=-1) > 150
        middle = []
        for day in (0, 7, 15):  # body columns only, not the wick
            rows = np.flatnonzero(coloured[:, day * 7])
            up = pixels[rows[0], day * 7, 1] > pixels[rows[0], day * 7, 0]
            opening, closing = (rows[-1], rows[0]) if up else (rows[0], rows[-1])
            middle.append(opening if day == 0 else closing)
        halves = tuple(
            "up" if later < earlier else "down" for earlier, later in itertools.pairwise(middle)
        )
        letters = {
            ("up", "up"): "A", ("down", "down"): "B", ("up", "down"): "C", ("down", "up"): "D",
        }  # fmt: skip
        assert letters[halves] == question.answer


def test_prices_are_the_packages_own(tasks):
    raw = Assets().read("bokeh-sampledata", "bokeh_sampledata/_data/stocks.csv.gz").decode()
    rows = {
        tuple(row[n] for n in ("Open", "High", "Low", "Close"))
        for row in csv.DictReader(io.StringIO(raw))
    }
    real = {tuple(map(float, row)) for row in rows}
    for _, scene, _ in drawn(tasks["Fin"]):
        assert set(scene.facts["window"]) <= real


def test_box_is_where_the_named_colour_is(tasks):
    table = {name: COLOURS[name] for name in ("red", "green", "blue", "yellow", "purple", "black")}
    table["paper"] = (235, 235, 235)
    for pixels, _, question in drawn(tasks["Grounding"]):
        colour = question.prompt.split()[-2]
        names = sorted(table)
        distances = [np.abs(pixels - np.array(table[name])).sum(axis=-1) for name in names]
        own = np.argmin(distances, axis=0) == names.index(colour)
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 112
        assert np.abs(seen - json.loads(question.answer)).max() < 0.02
        assert question.extra == {"answer_bbox": question.answer, "size": [112, 112]}


def test_animal_is_the_label_of_its_silhouette(tasks):
    # The package lists 1,000 silhouettes of each class, in the order of its classes.
    order = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
    for _, scene, question in drawn(tasks["ImageNet"]):
        assert question.answer == order[int(scene.source.split("/")[1]) // 1000]


@pytest.mark.parametrize("kind", ["snowfield", "beach", "city", "forest"])
def test_scene_shows_what_it_says(tasks, kind):
    bottoms = []
    for pixels, scene, _ in drawn(tasks["Places365"]):
        if scene.facts["kind"] == kind:
            bottoms.append(pixels[108:].reshape(-1, 3).mean(axis=0))
    red, green, blue = np.mean(bottoms, axis=0)
    assert {
        "snowfield": min(red, green, blue) > 215,
        "beach": red > green > blue > 100,
        "city": abs(red - green) < 25,
        "forest": green > red and green > blue,
    }[kind]


def test_pictures_survive_png(tasks, tmp_path):
    for name, task in tasks.items():
        pixels, scene, _ = next(drawn(task))
        scene.image.save(tmp_path / f"{name}.png")
        assert (np.asarray(Image.open(tmp_path / f"{name}.png")) == pixels).all()
