"""An instruction's text as the released code took it from a conversation, encoded anew."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from strlora_tuner.core.instruction.turns import Turns

_PICTURE = "\0"  # stands for one in a text


def picture_ids(model_config: Any) -> set[int]:
    """Returns the ids that stand for pictures and videos in a model's prompts."""
    names = ("image_token_id", "video_token_id", "image_token_index")
    values = (getattr(model_config, name, None) for name in names)
    return {value for value in values if isinstance(value, int)}


class JoinedText:
    """Reads the user's turns back as text: joined by a line end, no blanks behind a picture.

    A prompt's own tokens differ from it: the template's line end behind a picture is the user's
    there, and a token may hold the end of a turn and the line end that joins it.

    Blanks before a picture that opens a turn are left out too: Gemma's processor writes them.
    """

    def __init__(self, tokenizer: Any, pictures: Collection[int], ignored: Collection[int]) -> None:
        self._tokenizer, self._ignored = tokenizer, set(ignored)
        self._pictures = set(pictures) or self._ignored

    def __call__(self, ids: Tensor, turns: Turns, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the ids of every segment's text, padded by 0 on the right, and what is real.

        Args:
            ids: (B, F).
            turns: what stands where in them.
            inside: (B, F) bool, the user's turns without padding.

        Returns:
            (B * K, T) each, K segments a row, T at least 1; a segment that is not there is empty.
        """
        samples = torch.zeros_like(ids) if turns.samples is None else turns.samples
        read = torch.stack([ids, inside, turns.numbers, samples], 2).tolist()  # waits once
        texts = [text for row in read for text in self.of_segments(row, turns.count)]
        rows = [self._encode(text) for text in texts]
        longest = max(1, *map(len, rows))
        words = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        return words.to(ids.device), (torch.arange(longest) < lengths).to(ids.device)

    def of_segments(self, row: list[tuple[int, int, int, int]], count: int) -> list[str]:
        """Returns the text of each of `count` segments.

        Args:
            row: of each token its id, whether it is in a turn, its segment and its sample.
            count: K.
        """
        found = []
        for within, tokens in groupby(row, lambda token: token[1]):
            if within:
                turn = list(tokens)
                found.append((turn[0][2], turn[0][3], self._turn([token[0] for token in turn])))
        owner = {number: sample for _, _, number, sample in row}
        joined = (
            "\n".join(
                text
                for number, sample, text in found
                if number <= segment and sample == owner.get(segment)
            )
            for segment in range(count)
        )
        return [re.sub(rf"{_PICTURE}\s*", "", text) for text in joined]

    def _turn(self, ids: list[int]) -> str:
        text = ""
        for ignored, run in groupby(ids, self._ignored.__contains__):
            if not ignored:
                text += self._tokenizer.decode(list(run), clean_up_tokenization_spaces=False)
            elif self._pictures.intersection(run):
                text = (text if text.strip() else "") + _PICTURE
        return text

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return [token for token in ids if token not in self._ignored]
