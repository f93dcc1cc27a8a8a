"""What the host makes of a sample: its tokens for a picture of each size, and its prompts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.config.loading import load_recipe
from recipes.tools.token_counts import host_words
from tests.real_shapes.conftest import Folder
from tests.real_shapes.families import FAMILIES, QWEN2_5_VL, QWEN3_5_9B, QWEN3_VL
from tests.real_shapes.folders import Family
from tests.real_shapes.pictures import SIZES, TILES, draw
from tests.real_shapes.streams import ROOT, llava, strcvit
from tests.recipes.forked import call
from tests.recipes.real_host import needs_host

pytestmark = [pytest.mark.slow, needs_host]
HOST_PLUGIN = ROOT / "recipes" / "swift_plugins" / "training.py"
TYPES = ("internvl", "gemma3_vision", "qwen3_vl", "qwen3_5", "qwen2_5_vl", "llava1_5_hf")
# timm is for InternVL's own remote code (the -HF folders do not import it), decord for videos.
NOT_USED = {"timm", "decord"}
TOKENS = {
    "Qwen3-VL-8B-Instruct": {"coco": 300, "imagenet": 192, "textcaps": 672, "places": 64,
                             "aerial": 256, "scan": 1271, "icon": 4},
    "Qwen3.5-9B": {"coco": 300, "imagenet": 192, "textcaps": 672, "places": 64,
                   "aerial": 256, "scan": 1271, "icon": 4},
    "Qwen2.5-VL-7B-Instruct": {"coco": 391, "imagenet": 234, "textcaps": 888, "places": 81,
                               "aerial": 324, "scan": 1271, "icon": 4},
}  # fmt: skip
MAX_PIXELS = {QWEN3_VL.name: 1310720, QWEN3_5_9B.name: 1310720, QWEN2_5_VL.name: 1003520}


def encoded(
    folder: Path, samples: list[tuple[str, dict[str, Any]]], max_pixels: int = 0
) -> list[list[int]]:
    """The tokens that the host's own template makes of each sample in its mode."""
    found: list[list[int]] = call(_encode, folder, samples, max_pixels)
    return found


def _counted(words: list[str]) -> list[int]:
    from recipes.swift_plugins.encoded_lengths import counts

    return counts(words)


def _encode(folder: Path, samples: list[tuple[str, Any]], max_pixels: int) -> list[list[int]]:
    from swift.model import get_model_processor
    from swift.template import get_template
    from swift.utils import import_external_file

    import_external_file(str(HOST_PLUGIN))
    processor = get_model_processor(str(folder), load_model=False)[1]
    template = get_template(processor, max_pixels=max_pixels or None, enable_thinking=False)
    found = []
    for mode, sample in samples:
        template.set_mode(mode)
        found.append([int(token) for token in template.encode(sample)["input_ids"]])
    return found


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
def test_tokens_of_pictures_and_prompts(
    family: Family, folder: Folder, pairs: Pairs, tmp_path: Path
) -> None:
    """Picture tokens by size; and what is asked begins exactly as what was trained on."""
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
    asked = [(mode, sample) for pair in pairs for mode, sample in zip(MODES, pair, strict=True)]
    everything = [("train", sample) for sample in samples] + asked
    found = encoded(folder(family), everything, MAX_PIXELS.get(family.name, 0))
    number = family.config.get("image_token_id", family.config.get("image_token_index"))
    counts = {name: ids.count(number) for name, ids in zip(SIZES, found, strict=False)}
    assert counts == tokens_expected(family)
    assert max(map(len, found)) < 4096  # max_length of the recipes
    recipe = load_recipe(family.recipe, [f"model.path={folder(family)}"])
    as_check_and_plan = call(_counted, host_words(recipe, samples, tmp_path))
    assert as_check_and_plan == [len(ids) for ids in found[: len(SIZES)]]
    learned, prompts = found[len(SIZES) :: 2], found[len(SIZES) + 1 :: 2]
    for trained, prompt, (_, asked_so_far) in zip(learned, prompts, pairs, strict=True):
        assert prompt.count(number) > 0
        if family is QWEN3_5_9B and len(asked_so_far["messages"]) > 1:
            # The host trains earlier answers with an empty thought, and asks without it.
            at = trained.index(EMPTY_THOUGHT[0])
            assert trained[at : at + 4] == prompt[-4:] == EMPTY_THOUGHT
            trained = trained[:at] + trained[at + 4 :]
        assert len(trained) > len(prompt)
        assert trained[: len(prompt)] == prompt


MODES = ("train", "transformers")
EMPTY_THOUGHT = [248068, 271, 248069, 271]  # <think>, a blank line, </think>, a blank line
Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Samples of a stream's chunk and test set with one question and one picture.

    StrCVIT's and LLaVA's training text has a line end behind the placeholder, their test sets have
    no placeholder; one picture stands behind its question.
    """
    root = tmp_path_factory.mktemp("streams")
    found: Pairs = []
    for stream in (strcvit(root / "strcvit"), llava(root / "llava")):
        trained = _first(stream / "chunks" / "002.jsonl", "What is on the left?")
        asked = _first(stream / "test" / "VQAv2.jsonl", "What is on the left?")
        assert trained["messages"][0] == asked["messages"][0]
        trained["images"] = asked["images"] = [str(stream / trained["images"][0])]
        found.append((trained, {**asked, "messages": asked["messages"][:1]}))
    behind = _first(stream / "chunks" / "001.jsonl", "word or phrase.\n<image>")
    behind["images"] = [str(stream / path) for path in behind["images"]]
    turns = behind["messages"]
    found.append((behind, {**behind, "messages": turns[:1]}))
    found.append((behind, {**behind, "messages": turns[:3]}))  # the second question of two
    return found


def _first(path: Path, text: str) -> dict[str, Any]:
    """The first sample of a file whose question holds `text`."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return next(row for row in rows if text in row["messages"][0]["content"])


# What the user says by turn, and what of it is read.
CONVERSATIONS = [
    (["What is this?"], ["What is this?"]),
    (["<image>What is this?"], ["What is this?"]),
    (["What is this?\n<image>"], ["What is this?"]),
    (["\n\nWhat is this?"], ["What is this?"]),
    (["\n<image>What is this?"], ["What is this?"]),
    (["<image>What is this?", "\nWhat colour?"], ["What is this?", "What colour?"]),
]


def _words(folder: Path, conversations: list[list[str]], picture: str) -> list[list[str]]:
    """The user's words by segment, of training samples and of the same prompts when asked."""
    import torch
    from swift.model import get_model_processor
    from swift.template import get_template
    from transformers import AutoConfig

    from strlora_tuner import StrLoraConfig
    from strlora_tuner.core.instruction.turns import instruction_mask, read_turns
    from strlora_tuner.swift_plugins.routed_tuners import _ignored_ids, _turn_marks

    processor = get_model_processor(str(folder), load_model=False)[1]
    template = get_template(processor, enable_thinking=False)
    tokenizer = processor.tokenizer
    kind = SimpleNamespace(template=template.template_meta.template_type)
    marks = _turn_marks(kind, tokenizer)
    config = StrLoraConfig(
        turn_start=marks.start,
        turn_start_also=marks.also,
        turn_end=marks.end,
        ignored_ids=_ignored_ids(
            tokenizer, SimpleNamespace(config=AutoConfig.from_pretrained(folder))
        ),
        target_modules=["x"],
    )
    found = []
    for turns in conversations:
        messages: list[dict[str, str]] = []
        for text in turns:
            messages += [{"role": "user", "content": text}]
            messages += [{"role": "assistant", "content": "a cat"}]
        images = [picture] * sum(text.count("<image>") for text in turns)
        for mode, given in (("train", messages), ("transformers", messages[:-1])):
            template.set_mode(mode)
            sample: dict[str, Any] = {"messages": given, "images": images}
            ids = torch.tensor([[int(i) for i in template.encode(sample)["input_ids"]]])
            read = read_turns(ids, config)
            inside = instruction_mask(ids, config, read.inside)[0]
            numbers = (read.numbers[0] == number for number in range(read.count))
            found.append([tokenizer.decode(ids[0][inside & mine]).strip() for mine in numbers])
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_the_users_words_are_found_and_no_answer_is(
    family: Family, folder: Folder, tmp_path: Path
) -> None:
    """In training as when asked; LLaVA-1.5's marks are plain words, others end with a line end."""
    picture = str(draw(tmp_path / "a.jpg", (64, 64), "a"))
    said = [turns for turns, _ in CONVERSATIONS]
    expected = [words for _, words in CONVERSATIONS for _mode in ("train", "transformers")]
    assert call(_words, folder(family), said, picture) == expected


def test_qwen_weights_under_another_name_are_known(folder: Folder, tmp_path: Path) -> None:
    for family in (QWEN3_VL, QWEN3_5_9B, QWEN2_5_VL):
        other = tmp_path / f"my-{family.recipe}-weights"
        shutil.copytree(folder(family), other)
        row = {"messages": [{"role": "user", "content": "What?"}]}
        row["messages"].append({"role": "assistant", "content": "This."})
        assert encoded(other, [("train", row)])[0]


def test_what_the_host_asks_for_is_in_the_requirements() -> None:
    asked = {_name(text) for text in call(_required, TYPES)}
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert asked - NOT_USED <= {_name(line) for line in listed if line and line[0] != "#"}


def _name(requirement: str) -> str:
    """The normalised name of a package in a line such as `qwen_vl_utils>=0.0.14`."""
    return re.split(r"[<>=!~\[ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
