"""VQAv2: questions of the easy-VQA package on its own images (one coloured shape)."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from random import Random

from PIL import Image

from data_prep.mini.assets import Assets
from data_prep.mini.draw import SIZE
from data_prep.mini.tasks.base import SHORT, Question, Scene, Task, partition

SHAPES = ("circle", "rectangle", "triangle")
# Questions about colour and shape carry the image; yes/no would let a constant score half.
KINDS = {"colour": 0.45, "shape": 0.35, "yes/no": 0.20}


def answer_kind(answer: str) -> str:
    """Return the kind of an easy-VQA answer: colour, shape or yes/no."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour"


class VQAv2(Task):
    """Short answers about a real easy-VQA image; its test images are our test images."""

    name = "VQAv2"
    scorer = "vqa"
    head = "single"
    packages = ("easy-vqa",)

    def load(self, assets: Assets) -> None:
        self.assets = assets
        self.questions = {part: self._read(part) for part in ("train", "test")}
        complete = [i for i, kinds in sorted(self.questions["train"].items()) if len(kinds) == 3]
        shares = {"pretrain": 0.5, "train": 0.4, "validation": 0.1}
        parts = partition(complete, shares, "easy-vqa")
        self.sources = {split: [("train", i) for i in ids] for split, ids in parts.items()}
        tests = [i for i, kinds in sorted(self.questions["test"].items()) if len(kinds) == 3]
        self.sources["test"] = [("test", i) for i in tests]

    def _read(self, part: str) -> dict[int, dict[str, list[tuple[str, str]]]]:
        """Return image id -> kind of answer -> [(question, answer)] of one part of easy-VQA."""
        found: dict[int, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
        raw = json.loads(self.assets.read("easy-vqa", f"easy_vqa/data/{part}/questions.json"))
        for question, answer, image in raw:
            found[image][answer_kind(answer)].append((question, answer))
        return found

    def draw(self, split: str, rng: Random) -> Scene:
        part, index = rng.choice(self.sources[split])
        data = self.assets.read("easy-vqa", f"easy_vqa/data/{part}/images/{index}.png")
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return Scene(image, {"questions": self.questions[part][index]}, f"easy-vqa/{part}/{index}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        pairs = scene.facts["questions"][kind]
        if kind == "yes/no":  # as many yes as no, where the image has both
            wanted = rng.choice(["yes", "no"])
            pairs = [pair for pair in pairs if pair[1] == wanted] or pairs
        question, answer = rng.choice(pairs)
        return Question(question[0].upper() + question[1:] + SHORT, answer)

    def choose_question(self, scene: Scene, rng: Random) -> Question:
        question, answer = scene.facts["questions"]["colour"][0]
        return Question(question, answer)

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        known = scene.facts["questions"]
        return [("paint", known["colour"][0][1]), ("item", known["shape"][0][1])]
