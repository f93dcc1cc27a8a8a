"""ImageNet: name the animal of a real silhouette (animal-mnist, 10 classes)."""

from __future__ import annotations

import io
import pickle
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data_prep.mini.assets import Assets
from data_prep.mini.draw import COLOURS, SIZE, canvas, jitter
from data_prep.mini.tasks.base import Question, Scene, Task, partition

FOLDER = "animal_mnist/data/Animal_MNIST/"
CLASSES = (
    "bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra",
)  # fmt: skip
PAPERS = ("white", "yellow")
INKS = ("black", "blue", "purple")
PROMPT = "What is the object in the image?\nAnswer the question with the class name."
_RECONSTRUCT = np.empty(0).__reduce__()[0]  # type: ignore[index]  # its module moved in numpy 2
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and refuses everything else (a pickle can run any code)."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of a numpy array")
        return _ALLOWED[module, name]


class ImageNet(Task):
    """Classify a silhouette; classes are balanced."""

    name = "ImageNet"
    scorer = "exact"
    head = "figure"
    packages = ("animal-mnist",)

    def load(self, assets: Assets) -> None:
        def array(member: str) -> np.ndarray:
            return ArrayUnpickler(io.BytesIO(assets.read("animal-mnist", FOLDER + member))).load()

        self.images = array("animal_data_version_3.gz")  # (10000, 28, 28) uint8
        labels = array("animal_label_version_3.gz")  # (10000,) int64
        shares = {"pretrain": 0.7, "train": 0.18, "validation": 0.04, "test": 0.08}
        self.sources: dict[str, list[list[int]]] = {split: [] for split in shares}
        firsts: dict[bytes, int] = {}  # the package repeats some pictures: keep the first of each
        for index, picture in enumerate(self.images):
            firsts.setdefault(picture.tobytes(), index)
        kept = sorted(firsts.values())
        for number, word in enumerate(CLASSES):
            own = [index for index in kept if labels[index] == number]
            for split, ids in partition(own, shares, f"animals/{word}").items():
                self.sources[split].append(ids)

    def draw(self, split: str, rng: Random) -> Scene:
        number = rng.randrange(len(CLASSES))
        index = rng.choice(self.sources[split][number])
        image, _ = canvas(jitter(COLOURS[rng.choice(PAPERS)], rng))
        mask = Image.fromarray(self.images[index])
        if split == "pretrain" and rng.random() < 0.5:  # more views of few silhouettes
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.resize((SIZE - 8, SIZE - 8), Image.Resampling.BILINEAR)
        ink = jitter(COLOURS[rng.choice(INKS)], rng)
        image.paste(ink, (rng.randint(0, 8), rng.randint(0, 8)), mask)
        return Scene(image, {"number": number}, f"animal/{index}")

    def ask(self, scene: Scene, rng: Random) -> Question:
        return Question(PROMPT, CLASSES[scene.facts["number"]])

    def describe(self, scene: Scene) -> list[tuple[str, str]]:
        return [("genus", CLASSES[scene.facts["number"]])]
