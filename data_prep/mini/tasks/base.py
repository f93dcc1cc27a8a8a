"""What a task of the embedded stream is: an image with facts, questions and descriptions.

To add a task, write one file with a subclass of Task and name it in ``tasks/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from PIL import Image

from data_prep.mini.assets import Assets

SPLITS = ("pretrain", "train", "validation", "test")
VAGUE = "Look at the image and give the answer."  # the one instruction of the stream `ambiguous`
SHORT = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Scene:
    """One 112x112 RGB image, what is true of it, and the id of the source it was made from.

    Two splits never share a source id.
    """

    image: Image.Image
    facts: dict[str, Any]
    source: str


@dataclass(frozen=True)
class Question:
    """A prompt (without the image mark), its gold answer, and extra gold fields for scoring."""

    prompt: str
    answer: str
    extra: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """One task: draws scenes, asks about them (stream) and describes them (pretraining).

    `describe` must use other words and forms than `ask`, so that the stream's instructions and
    answers stay new to a base model that was pretrained on descriptions.
    """

    name: ClassVar[str]
    scorer: ClassVar[str]  # a name of eval.scorers
    head: ClassVar[str]  # first word of a description
    packages: ClassVar[tuple[str, ...]] = ()  # what of `assets.PACKAGES` it reads

    def __init__(self, assets: Assets) -> None:
        self.load(assets)

    def load(self, assets: Assets) -> None:  # noqa: B027 (rendered tasks need no data)
        """Read the real data, once a process."""

    @abstractmethod
    def draw(self, split: str, rng: Random) -> Scene:
        """Return a scene of `split`; all chance comes from `rng`."""

    @abstractmethod
    def ask(self, scene: Scene, rng: Random) -> Question:
        """Return one question of the stream about `scene`, with its true answer."""

    def ask_vaguely(self, scene: Scene, rng: Random) -> Question:
        """Return a question under the prompt VAGUE; the picture alone determines its answer.

        Tasks with several kinds of question override `choose_question`, which picks one kind.
        """
        asked = self.choose_question(scene, rng)
        return Question(VAGUE, asked.answer, asked.extra)

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        """Return a question of the one kind that the stream `ambiguous` asks of this task."""
        return self.ask(scene, rng)

    @abstractmethod
    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        """Return (field, value) pairs that describe `scene` for pretraining."""


def sample_rng(seed: int, task: str, split: str, index: int) -> Random:
    """Return the generator of one sample; the same four values give the same sample anywhere."""
    # Random hashes a text with SHA-512, which unlike hash() is the same in every process.
    return Random(f"{seed}/{task}/{split}/{index}")


def partition(items: list[Any], parts: dict[str, float], key: str) -> dict[str, list[Any]]:
    """Return `items` shuffled by `key` and cut into the named parts (fractions that add to 1)."""
    order = list(items)
    Random(key).shuffle(order)
    out, start, total = {}, 0.0, sum(parts.values())
    for name, share in parts.items():
        stop = start + share / total * len(order)
        out[name] = order[round(start) : round(stop)]
        start = stop
    return out
