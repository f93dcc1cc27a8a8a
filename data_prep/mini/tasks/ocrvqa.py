"""OCRVQA: covers of real films (Wikidata, CC0) with director, year and genre to be read."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from random import Random

from data_prep.mini.assets import Assets
from data_prep.mini.draw import COLOURS, canvas, jitter, text
from data_prep.mini.tasks.base import SHORT, Question, Scene, Task, partition

GENRES = ("comedy", "drama", "horror", "musical", "romance", "thriller", "war", "western")
DIRECTORS = 24  # most frequent surnames that fit on a cover; a closed list that can be learnt
LONGEST = 8  # letters in one line
PAPERS = ("white", "yellow")
INKS = ("black", "blue", "purple")
QUERY = "SELECT imdbID, Year, Genre, Director FROM omdb WHERE Year IS NOT NULL ORDER BY imdbID"
QUESTIONS = {
    "director": "Who is the director of this movie?",
    "genre": "What is the genre of this movie?",
    "year": "When was this movie released?",
}


class OCRVQA(Task):
    """Read one of three lines from a film cover."""

    name = "OCRVQA"
    scorer = "exact"
    head = "sheet"
    packages = ("bokeh-sampledata",)

    def load(self, assets: Assets) -> None:
        films = self._films(assets)
        shares = {"pretrain": 0.5, "train": 0.3, "validation": 0.05, "test": 0.15}
        self.sources: dict[str, dict[str, list[dict[str, str]]]] = {}
        taken: set[str] = set()  # the table lists some films twice: the first split keeps them
        for split, rows in partition(films, shares, "films").items():
            self.sources[split] = defaultdict(list)
            for film in rows:
                if film["id"] not in taken:
                    self.sources[split][film["genre"]].append(film)
                    taken.add(film["id"])

    def _films(self, assets: Assets) -> list[dict[str, str]]:
        """Return films of the frequent directors whose first genre is one of GENRES."""
        path = assets.extract("bokeh-sampledata", "bokeh_sampledata/_data/movies.db")
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            rows = database.execute(QUERY).fetchall()
        films = []
        for film, year, genres, director in rows:
            genre = (genres or "").split(", ")[0].lower()
            surname = (director or "").split(" ")[-1].lower()
            plain = surname.isascii() and surname.isalpha() and 3 <= len(surname) <= LONGEST
            if genre in GENRES and plain and "," not in director:
                films.append({"id": film, "year": str(year), "genre": genre, "director": surname})
        counts = Counter(film["director"] for film in films)
        ranked = sorted(counts, key=lambda name: (-counts[name], name))[:DIRECTORS]
        return [film for film in films if film["director"] in ranked]

    def draw(self, split: str, rng: Random) -> Scene:
        by_genre = self.sources[split]
        film = rng.choice(by_genre[rng.choice(sorted(by_genre))])
        paper = jitter(COLOURS[rng.choice(PAPERS)], rng)
        ink = jitter(COLOURS[rng.choice(INKS)], rng)
        image, _ = canvas(paper)
        x, y = rng.randint(4, 6), rng.randint(0, 2)
        text(image, (x, y + 3), film["director"].upper(), 2, ink)
        text(image, (x + 2, y + 32), film["year"], 4, ink)
        text(image, (x, y + 85), film["genre"].upper(), 2, ink)
        return Scene(image, film, f"film/{film['id']}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        line = rng.choice(list(QUESTIONS))
        return Question(QUESTIONS[line] + SHORT, scene.facts[line])

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        return Question(QUESTIONS["genre"], scene.facts["genre"])

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        film = scene.facts
        return [("upper", film["director"]), ("digits", film["year"]), ("lower", film["genre"])]
