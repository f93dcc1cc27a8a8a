"""A -HF folder of the hub, put back into the published layout, converts into itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from recipes.convert_internvl.native_folder import convert
from tests.real_shapes.conftest import Folder
from tests.real_shapes.families import FAMILIES
from tests.real_shapes.folders import publish, weights

pytestmark = pytest.mark.slow


def test_a_converted_folder_is_the_hubs(folder: Folder, tmp_path: Path) -> None:
    native = folder(FAMILIES[1])
    publish(native, tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "again")
    before, after = weights(native), weights(tmp_path / "again")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (AutoConfig.from_pretrained(each) for each in (native, tmp_path / "again"))
    for block in ("text_config", "vision_config"):
        values, others = (getattr(each, block).to_dict() for each in (first, second))
        differing = {name for name in values if values[name] != others.get(name)}
        assert differing <= {"transformers_version", "dtype", "_name_or_path"}
    assert (first.image_token_id, first.image_seq_length) == (151671, 256)
    assert (second.image_token_id, second.image_seq_length) == (151671, 256)
    processors = [AutoProcessor.from_pretrained(each) for each in (native, tmp_path / "again")]
    assert processors[0].tokenizer.get_vocab() == processors[1].tokenizer.get_vocab()
    text = "<img><IMG_CONTEXT></img>\nWhat, 你好 <box>1</box>?<|im_end|>"
    assert processors[0].tokenizer(text) == processors[1].tokenizer(text)
    pictures = processors[1].image_processor
    assert (pictures.size.height, pictures.min_patches, pictures.max_patches) == (448, 1, 12)
