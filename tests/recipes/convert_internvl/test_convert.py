"""A converted checkpoint computes what the published code computes; what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes.convert_internvl import native_folder
from recipes.convert_internvl.__main__ import main
from recipes.convert_internvl.native_folder import convert
from recipes.convert_internvl.published_weights import ConversionError
from tests.recipes.convert_internvl.published import (
    Sizes,
    Tensors,
    config_of,
    logits,
    tensors_of,
    write,
)

CASES = {
    "as published": Sizes(),
    "one file": Sizes(shards=1, layers=1, text_layers=3),
    "wide, no bias": Sizes(hidden=40, heads=5, text_hidden=64, qkv_bias=False, shards=5),
    "qk norm": Sizes(qk_norm=True, norm="rms_norm", qkv_bias=False, layers=3),
    "tied, head absent": Sizes(tied=True, head="absent"),
    "tied, head a copy": Sizes(tied=True, head="copy"),
    "untied, head a copy": Sizes(head="copy"),
    "another eps": Sizes(eps=1e-2),
    "qwen2": Sizes(text="qwen2"),
    "tiles larger than the tower": Sizes(tile=84),
    "bfloat16": Sizes(dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_published_code(name: str, tmp_path: Path) -> None:
    sizes = CASES[name]
    tensors = write(tmp_path / "source", sizes)
    convert(tmp_path / "source", tmp_path / "native")
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "native", output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.dtype == sizes.dtype
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied is sizes.tied is model.config.tie_word_embeddings
    model = model.double().eval()
    picture = model.config.image_token_id
    tile = sizes.tile or sizes.image
    tokens = (tile // sizes.patch // 2) ** 2
    assert model.config.image_seq_length == tokens
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, tile, tile).double()
    ids = torch.tensor([[5, 9, *[picture] * 2 * tokens, 17, 300, 41]])
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=pixels).logits
    expected = logits(tensors, sizes, ids, picture, pixels)
    # The published code and transformers compute RMS norms in float32.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (
        found[0, -1] - logits(tensors, sizes, ids, picture, pixels.flip(-1))[0, -1]
    ).abs().max() > 1e-2


def test_every_tensor_is_copied_bit_for_bit(tmp_path: Path) -> None:
    sizes = Sizes(dtype=torch.bfloat16, qk_norm=True)
    tensors = write(tmp_path / "source", sizes)
    convert(tmp_path / "source", tmp_path / "native")
    found: Tensors = {}
    for file in sorted((tmp_path / "native").glob("*.safetensors")):
        found |= load_file(file)
    index = json.loads((tmp_path / "native/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    assert len(set(index["weight_map"].values())) == sizes.shards
    assert sum(t.numel() for t in found.values()) == sum(t.numel() for t in tensors.values())
    hidden = sizes.hidden
    fused = tensors["vision_model.encoder.layers.1.attn.qkv.weight"]
    layer = "vision_tower.encoder.layer.1."
    for number, each in enumerate("qkv"):
        part = fused[number * hidden : (number + 1) * hidden]
        assert torch.equal(found[f"{layer}attention.{each}_proj.weight"], part)
    for ours, published in {
        f"{layer}lambda_2": "vision_model.encoder.layers.1.ls2",
        f"{layer}attention.k_norm.weight": "vision_model.encoder.layers.1.attn.k_norm.weight",
        f"{layer}layernorm_after.bias": "vision_model.encoder.layers.1.norm2.bias",
        "multi_modal_projector.linear_2.weight": "mlp1.3.weight",
        "language_model.model.norm.weight": "language_model.model.norm.weight",
    }.items():
        assert torch.equal(found[ours], tensors[published])


def test_processor_and_chat_template(tmp_path: Path) -> None:
    write(tmp_path / "source", Sizes(image=112))
    assert main([str(tmp_path / "source"), "--to", str(tmp_path / "new" / "native")]) == 0
    native = tmp_path / "new" / "native"
    assert not list(native.glob("*.py"))
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        assert "auto_map" not in json.loads((native / name).read_text(encoding="utf-8"))
    processor: Any = AutoProcessor.from_pretrained(native)
    pictures = processor.image_processor
    assert (pictures.size.height, pictures.max_patches, pictures.crop_to_patches) == (112, 12, True)
    assert list(pictures.image_mean) == [0.4] * 3
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    )
    batch = processor(text=[text], images=[Image.new("RGB", (224, 112))], return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 3, 112, 112)  # two tiles and the whole picture
    model = AutoModelForImageTextToText.from_pretrained(native)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 3 * 16
    assert model(**batch).logits.isfinite().all()
    answer = model.generate(**batch, max_new_tokens=2)
    assert answer.shape[1] > batch["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == [1270]


def test_no_token_changes_its_number(tmp_path: Path) -> None:
    write(tmp_path / "source", Sizes())
    convert(tmp_path / "source", tmp_path / "native")
    before = json.loads((tmp_path / "source" / "vocab.json").read_text(encoding="utf-8"))
    before |= json.loads((tmp_path / "source" / "added_tokens.json").read_text(encoding="utf-8"))
    after = AutoProcessor.from_pretrained(tmp_path / "native").tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert set(after) - set(before) == {"<video>"}


def test_a_tokenizer_whose_numbers_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "source", Sizes())
    path = tmp_path / "source" / "added_tokens.json"
    numbers = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**numbers, "</box>": 1299}), encoding="utf-8")
    with pytest.raises(ConversionError, match="'</box>' from 1299 to"):
        convert(tmp_path / "source", tmp_path / "native")
    path.write_text("{}", encoding="utf-8")
    settings = tmp_path / "source" / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}), encoding="utf-8")
    with pytest.raises(ConversionError, match="does not know <IMG_CONTEXT>, <img>, </img>"):
        convert(tmp_path / "source", tmp_path / "native")


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


def _with(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


LS1 = "vision_model.encoder.layers.1.ls1"
FUSED = "vision_model.encoder.layers.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without(LS1), r"not in the checkpoint: vision_tower\.encoder\.layer\.1\.lambda_1"),
        (_without(FUSED), r"not in the checkpoint: .*0\.attention\.k_proj\.weight, .*q_proj"),
        (_without("language_model.lm_head.weight"), r"not in the checkpoint: .*lm_head\.weight"),
        (_with("mlp1.4.weight", torch.ones(2)), r"not in the model .*: mlp1\.4\.weight"),
        (_with("vision_model.encoder.layers.2.ls1", torch.ones(24)), r"layers\.2\.ls1"),
        (_with("language_model.model.layers.0.mlp.experts.0.up_proj.weight", torch.ones(2, 2)),
         r"experts\.0\.up_proj"),
        (_with(LS1, torch.ones(25)), r"\.1\.ls1 gives .*lambda_1 \[25\], expected \[24\]"),
        (_with(FUSED, torch.ones(71, 24)), r"71 rows, expected a multiple of 3"),
        (_with("mlp1.1.weight", torch.ones(96, 32)), r"linear_1\.weight \[96, 32\], expected \[32"),
        (_with("language_model.model.embed_tokens.weight", torch.ones(9, 32, dtype=torch.int8)),
         r"embed_tokens\.weight is I8, expected BF16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_is_written(
    change: Callable[[Tensors], Tensors], told: str, tmp_path: Path
) -> None:
    write(tmp_path / "source", Sizes(), change(tensors_of(Sizes())))
    with pytest.raises(ConversionError, match=told):
        convert(tmp_path / "source", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ps_version": "v1"}, "ps_version is 'v1', only 'v2'"),
        ({"ps_version": None}, "ps_version is None"),
        ({"select_layer": -4}, "select_layer is -4"),
        ({"use_llm_lora": 16}, "use_llm_lora is 16"),
        ({"use_thumbnail": False}, "use_thumbnail is off"),
        ({"llm_config": {"model_type": "internlm2"}}, "'internlm2', which transformers does not"),
        ({"vision_config": {}}, "vision_config.hidden_size is missing"),
        ({"vision_config": None}, "expected the blocks llm_config and vision_config"),
    ],
)
def test_settings_that_cannot_be_expressed_are_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write(tmp_path / "source", Sizes())
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**config_of(Sizes()), **changes}), encoding="utf-8")
    with pytest.raises(ConversionError, match=told):
        convert(tmp_path / "source", tmp_path / "native")


def test_qk_norm_with_another_eps_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "source", Sizes(qk_norm=True, eps=1e-5))
    with pytest.raises(ConversionError, match="layer_norm_eps is 1e-05"):
        convert(tmp_path / "source", tmp_path / "native")


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    sizes = Sizes(tied=True, head="copy")
    tensors = tensors_of(sizes)
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"] + 1
    write(tmp_path / "source", sizes, tensors)
    with pytest.raises(ConversionError, match=r"lm_head\.weight differs from the embedding"):
        convert(tmp_path / "source", tmp_path / "native")


def test_broken_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, sizes = tmp_path / "source", Sizes()
    write(source, sizes)
    second = source / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    command = [str(source), "--to", str(tmp_path / "native")]
    second.write_bytes(whole[:-7])
    assert main(command) == 1
    assert f"{second}: " in capsys.readouterr().err
    second.unlink()
    assert main(command) == 1
    assert f"error: {second}: not there" in capsys.readouterr().err
    with safe_open(source / "model-00003-of-00003.safetensors", "pt") as tensors:
        name = next(iter(tensors.keys()))
        save_file({name: tensors.get_tensor(name)}, second)
    assert main(command) == 1
    assert f"{name} is in " in capsys.readouterr().err
    second.write_bytes(whole)
    assert main(command) == 0
    assert main(command) == 1
    assert "already there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vocab.json", "version https://git-lfs.github.com/spec/v1"),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2'),
        ("added_tokens.json", "[]"),
        ("preprocessor_config.json", ""),
        ("merges.txt", "version https://git-lfs.github.com/spec/v1"),
    ],
)
def test_broken_files_beside_the_weights_are_named(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "source", Sizes(shards=1))
    (tmp_path / "source" / name).write_text(text)
    assert main([str(tmp_path / "source"), "--to", str(tmp_path / "native")]) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path}/source" in said
    assert name in said
    assert "again" in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "source", Sizes())

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native_folder, "save_file", full)
    assert main([str(tmp_path / "source"), "--to", str(tmp_path / "native")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_run_that_is_given_the_published_folder_says_what_to_do(tmp_path: Path) -> None:
    from recipes.config.loading import load_recipe
    from recipes.run.preflight.all_checks import look

    write(tmp_path / "source", replace(Sizes(), shards=1))
    recipe = load_recipe("internvl3.5-8b", [f"model.path={tmp_path / 'source'}"])
    trust = next(each.text for each in look(recipe) if each.subject == "trust")
    assert f" -m recipes.convert_internvl {tmp_path / 'source'} --to" in trust
