"""How many tokens a sample takes, by the tokenizer and the processor of the recipe's model."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.sources.records import PLACEHOLDER, HostSample

TURN = 5  # tokens around a turn: start mark, role, line end, end mark, line end
TILE = 448  # side of InternVL's tiles where the processor's configuration does not name it


class Lengths:
    """Estimates lengths; can be sent to other processes.

    Args:
        model: folder with tokenizer.json and, for images, processor_config.json.
        max_length: longest sample that the recipe takes.
        image_tokens: tokens of one image; None takes them from the processor's configuration.

    Raises:
        DataError: the folder has no tokenizer, or the processor's configuration does not
            name its image tokens.
    """

    def __init__(self, model: Path, max_length: int, image_tokens: int | None = None) -> None:
        self.model, self.max_length, self.fixed = Path(model), max_length, image_tokens
        if not (self.model / "tokenizer.json").is_file():
            raise DataError(
                "no-tokenizer",
                f"{self.model}: no tokenizer.json; give the folder of the recipe's model.path",
            )
        self.processor = self._processor()

    def _processor(self) -> dict[str, Any]:
        path = self.model / "processor_config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        if self.fixed is None and not isinstance(config.get("image_seq_length"), int):
            raise DataError(
                "no-image-tokens",
                f"{self.model}: processor_config.json names no image_seq_length; give "
                "--image-tokens N",
            )
        return config

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_tokenizer"}

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.model / "tokenizer.json"))

    def text_tokens(self, record: HostSample) -> int:
        """Return the tokens of all turns, the marks around them included, images not."""
        texts = [turn["content"].replace(PLACEHOLDER, "") for turn in record["messages"]]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return sum(len(text.ids) + TURN for text in encoded)

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Return the tokens of one image of (width, height) pixels."""
        if self.fixed is not None:
            return self.fixed
        images = self.processor.get("image_processor", self.processor)
        tiles = 1
        if images.get("crop_to_patches"):
            side = images.get("size", {}).get("height", TILE)
            tiles = tile_count(size, side, images.get("min_patches", 1), images["max_patches"])
        return int(self.processor["image_seq_length"]) * tiles + 2


def tile_count(size: tuple[int, int], side: int, least: int, most: int) -> int:
    """Return the tiles of InternVL's dynamic resolution, the thumbnail included.

    The grid of `least` to `most` tiles whose shape is nearest to the picture's; of equal ones the
    larger, if the picture fills half of it (Chen et al., 2024, InternVL 1.5, section 3.2).
    """
    width, height = size
    grids = {
        (w, h) for w in range(1, most + 1) for h in range(1, most + 1) if least <= w * h <= most
    }
    best, nearest = (1, 1), float("inf")
    for w, h in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        off = abs(width / height - w / h)
        fills = width * height > 0.5 * side * side * w * h
        if off < nearest or (off == nearest and fills):
            best, nearest = (w, h), off
    tiles = best[0] * best[1]
    return tiles + 1 if tiles > 1 else 1
