"""What the host makes of a sample: its tokens for a picture of each size, and its prompts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.config.loading import load_recipe
from recipes.tools.token_counts import host_words
from tests.real_shapes.conftest import Folder
from tests.real_shapes.families import FAMILIES, QWEN2_5_VL, QWEN3_VL, Family
from tests.real_shapes.pictures import SIZES, TILES, draw
from tests.real_shapes.streams import ROOT, llava, strcvit
from tests.recipes.forked import call
from tests.recipes.real_host import needs_host

pytestmark = [pytest.mark.slow, needs_host]
HOST_PLUGIN = ROOT / "recipes" / "swift_plugins" / "training.py"
TYPES = ("internvl", "gemma3_vision", "qwen3_vl", "qwen2_5_vl", "llava1_5_hf")
# timm is for InternVL's own remote code (the -HF folders do not import it), decord for videos.
NOT_USED = {"timm", "decord"}
TOKENS = {
    "Qwen3-VL-8B-Instruct": {"coco": 300, "imagenet": 192, "textcaps": 672, "places": 64,
                             "aerial": 256, "scan": 1271, "icon": 4},
    "Qwen2.5-VL-7B-Instruct": {"coco": 391, "imagenet": 234, "textcaps": 888, "places": 81,
                               "aerial": 324, "scan": 1271, "icon": 4},
}  # fmt: skip


def encoded(folder: Path, samples: list[dict[str, Any]], mode: str = "train") -> list[list[int]]:
    """The tokens that the host's own template makes of each sample."""
    found: list[list[int]] = call(_encode, folder, samples, mode)
    return found


def _counted(words: list[str]) -> list[int]:
    from recipes.swift_plugins.encoded_lengths import counts

    return counts(words)


def _encode(folder: Path, samples: list[Any], mode: str) -> list[list[int]]:
    from swift.model import get_model_processor
    from swift.template import get_template
    from swift.utils import import_external_file

    import_external_file(str(HOST_PLUGIN))
    processor = get_model_processor(str(folder), load_model=False)[1]
    template = get_template(processor)
    template.set_mode(mode)
    return [[int(token) for token in template.encode(each)["input_ids"]] for each in samples]


def _required(types: tuple[str, ...]) -> list[str]:
    """What the host's table of models asks for of these types."""
    from swift.model import MODEL_MAPPING

    asked = []
    for meta in (MODEL_MAPPING[name] for name in types):
        for texts in (meta.requires, *(group.requires or [] for group in meta.model_groups)):
            asked += texts
    return asked


def tokens_expected(family: Family) -> dict[str, int]:
    """Picture tokens by size of the picture."""
    if family.name.startswith("InternVL"):
        return {name: 256 * tiles for name, tiles in TILES.items()}
    if family.name in TOKENS:
        return TOKENS[family.name]
    return dict.fromkeys(SIZES, 256 if family.name.startswith("gemma") else 576)


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_picture_tokens_by_size(family: Family, folder: Folder, tmp_path: Path) -> None:
    samples = [
        {
            "messages": [
                {"role": "user", "content": "<image>What?"},
                {"role": "assistant", "content": "A box."},
            ],
            "images": [str(draw(tmp_path / f"{name}.jpg", size, name))],
        }
        for name, size in SIZES.items()
    ]
    recipe = load_recipe(family.recipe or "internvl3.5-8b", [f"model.path={folder(family)}"])
    words = host_words(recipe, samples, tmp_path)
    found = dict(zip(SIZES, call(_counted, words), strict=True))  # as check and plan count them
    expected = tokens_expected(family)
    (text,) = {found[name] - expected[name] for name in SIZES}
    assert 10 < text < 40, "of question and answer, and around them"
    assert max(found.values()) < recipe.model.max_length


def test_training_and_test_prompts_are_the_same_text(folder: Folder, tmp_path: Path) -> None:
    for stream in (strcvit(tmp_path / "strcvit"), llava(tmp_path / "llava")):
        trained = _first(stream / "chunks" / "002.jsonl", "What is on the left?")
        asked = _first(stream / "test" / "VQAv2.jsonl", "What is on the left?")
        assert trained["messages"][0] == asked["messages"][0]
        path = folder(FAMILIES[0])
        trained["images"] = asked["images"] = [str(stream / trained["images"][0])]
        question = {**asked, "messages": asked["messages"][:1]}
        learned = encoded(path, [trained])[0]
        prompt = encoded(path, [question], mode="transformers")[0]
        assert learned[: len(prompt)] == prompt


def _first(path: Path, text: str) -> dict[str, Any]:
    """The first sample of a file whose question holds `text`."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return next(row for row in rows if text in row["messages"][0]["content"])


def test_qwen_weights_under_another_name_are_known(folder: Folder, tmp_path: Path) -> None:
    for family in (QWEN3_VL, QWEN2_5_VL):
        other = tmp_path / f"my-{family.recipe}-weights"
        shutil.copytree(folder(family), other)
        row = {"messages": [{"role": "user", "content": "What?"}]}
        row["messages"].append({"role": "assistant", "content": "This."})
        assert encoded(other, [row])[0]


def test_what_the_host_asks_for_is_in_the_requirements() -> None:
    asked = {_name(text) for text in call(_required, TYPES)}
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert asked - NOT_USED <= {_name(line) for line in listed if line and line[0] != "#"}


def _name(requirement: str) -> str:
    """The normalised name of a package in a line such as `qwen_vl_utils>=0.0.14`."""
    return re.split(r"[<>=!~\[ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
