"""Answers that a benchmark keeps in a file of their own: references, official golds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data_prep.errors import DataError
from data_prep.files import read_json

Golds = Mapping[str, Any]


def _captions(content: Any) -> Golds:
    """COCO's form: images and annotations; the captions by the picture's file name."""
    captions: dict[Any, list[str]] = defaultdict(list)
    for entry in content["annotations"]:
        captions[entry["image_id"]].append(entry["caption"])
    # A picture may be listed twice, once without captions.
    pictures = [each for each in content["images"] if each["id"] in captions]
    return {Path(each["file_name"]).name: captions[each["id"]] for each in pictures}


def _annotators(content: Any) -> Golds:
    """TextVQA's form: the answers of ten annotators."""
    return {str(entry["question_id"]): entry["answers"] for entry in content["data"]}


def _problems(content: Any) -> Golds:
    """ScienceQA's form: the number of the right choice, which becomes its letter."""
    return {name: ascii_uppercase[problem["answer"]] for name, problem in content.items()}


def _questions(content: Any) -> Golds:
    """GQA's form: questions by their ids, each with its answer."""
    return {name: question["answer"] for name, question in content.items()}


@dataclass(frozen=True)
class GoldFile:
    """What the file is called, how it is read, and when it is needed.

    Attributes:
        name: of the file.
        read: its content -> answers by question id, or by the picture's file name.
        by_picture: which of the two.
        always: the answers in it replace those beside the questions; else it is read only for
            questions without an answer.
    """

    name: str
    read: Callable[[Any], Golds]
    by_picture: bool = False
    always: bool = False

    def find(self, *folders: Path) -> Path | None:
        """Return where it lies: in the first of the folders that has it."""
        return next((f / self.name for f in folders if (f / self.name).is_file()), None)


CAPTIONS = GoldFile("val_coco_type_3000.json", _captions, by_picture=True, always=True)
TEXTVQA = GoldFile("TextVQA_0.5.1_val.json", _annotators, always=True)
SCIENCEQA = GoldFile("problems.json", _problems)
GQA = GoldFile("testdev_balanced_questions.json", _questions)


def read_golds(path: Path, gold: GoldFile) -> Golds:
    """Return the answers in a file. Raises DataError where it is not of its kind."""
    try:
        return gold.read(read_json(path))
    except ValueError as error:
        raise DataError("gold-file", f"{error}, or fetch it again") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = (gold.read.__doc__ or "").split(":")[0]
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        text = f"{path}: not in {what}: {missing}; fetch this file again"
        raise DataError("gold-file", text) from error
