"""Pictures of the sizes that the published data sets have, drawn, so that nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

Size = tuple[int, int]

# Width and height; then the tiles of 448 pixels that InternVL makes of each, the whole included.
SIZES: dict[str, Size] = {
    "coco": (640, 480),
    "imagenet": (500, 375),
    "textcaps": (1024, 683),
    "places": (256, 256),
    "aerial": (512, 512),
    "scan": (3000, 4000),
    "icon": (20, 20),
}
TILES = {"coco": 13, "imagenet": 13, "textcaps": 7, "places": 1, "aerial": 1, "scan": 13, "icon": 1}


def draw(path: Path, size: Size, seed: str) -> Path:
    """Writes a picture of coloured boxes and lines of text; another for every `seed`."""
    rng = Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    picture = Image.new("RGB", size, _colour(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        left, top = rng.randrange(width), rng.randrange(height)
        right, low = left + rng.randint(1, width // 3 + 1), top + rng.randint(1, height // 3 + 1)
        pen.rectangle([left, top, right, low], fill=_colour(rng))
    for row in range(6):
        pen.text((width // 20, row * height // 6), f"{seed} {row}", fill=_colour(rng))
    picture.save(path, quality=85)
    return path


def _colour(rng: Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
