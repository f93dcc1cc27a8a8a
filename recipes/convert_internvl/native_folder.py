"""Writes the folder that transformers and ms-swift load: weights, configuration, processor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)
from transformers.models.got_ocr2 import GotOcr2ImageProcessor

from data_prep.files import read_json, write_json
from recipes.convert_internvl.native_config import Published, native_config, read_published
from recipes.convert_internvl.published_weights import (
    EMBEDDING,
    HEAD,
    INDEX,
    ConversionError,
    Stored,
    check,
    converted,
    stored_tensors,
)
from recipes.run_folder.whole_folder import whole_folder

PICTURE, VIDEO = "<IMG_CONTEXT>", "<video>"
_SPECIAL = {
    "context_image_token": PICTURE,
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "video_token": VIDEO,
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
              "added_tokens.json", "special_tokens_map.json")  # fmt: skip
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the published picture files
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# ChatML, one line a picture before the text: what ms-swift's template for this class writes, too.
_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def convert(source: Path, target: Path, tell: Callable[[str], None] = lambda text: None) -> None:
    """Rewrites the checkpoint in `source` as the new folder `target`, one weight file at a time.

    The folder appears under its name when all of it is written. No code of the checkpoint is run.

    Args:
        source: a folder with config.json, safetensors and tokenizer as InternVL's makers publish
            them (InternVL3_5-8B-Pretrained).
        target: must not exist, or be empty.
        tell: is given lines for the terminal.

    Raises:
        ConversionError: names and shapes do not match, a file is broken, or there is no room.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConversionError(f"{target}: already there; remove it or give another --to")
    published, stored = read_published(source), stored_tensors(source)
    dropped = _head_to_drop(published, stored)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Before the first byte: a full disk would be found after minutes of writing.
    _check_room(stored, target.parent)
    with whole_folder(target) as staging:
        tokenizer = _tokenizer(source, staging)
        picture = tokenizer.convert_tokens_to_ids(PICTURE)
        config = native_config(published, picture, _dtype(stored))
        rows = published.text.get("vocab_size", len(tokenizer))
        if len(tokenizer) > rows:
            raise ConversionError(
                f"{source}: the tokenizer knows {len(tokenizer)} tokens and config.json gives the "
                f"embedding {rows} rows"
            )
        kept = {name: tensor for name, tensor in stored.items() if name not in dropped}
        check(kept, _asked(config))
        config.save_pretrained(staging)
        _processor(source, published, tokenizer).save_pretrained(staging)
        _generation_config(source, tokenizer, published).save_pretrained(staging)
        _write_weights(kept, staging, tell)
        _check_loads(staging, tokenizer)
    if published.drop_path:
        tell(
            f"note: while training, the published code skips branches of the vision tower at a "
            f"rate of up to {published.drop_path} (drop_path_rate); transformers' class never does"
        )
    tell(f"{target}: {len(kept)} tensors of {source}")


def _head_to_drop(published: Published, stored: dict[str, Stored]) -> set[str]:
    """The output layer, where config.json ties it and the file holds the embedding once more."""
    if not published.tied or HEAD not in stored or EMBEDDING not in stored:
        return set()
    head, embedding = (_read(stored, name) for name in (HEAD, EMBEDDING))
    if torch.equal(head, embedding):
        return {HEAD}
    raise ConversionError(
        f"{stored[HEAD].file}: {HEAD} differs from the embedding, and llm_config of config.json "
        "says that they are one (tie_word_embeddings); correct the one that is wrong"
    )


def _read(stored: dict[str, Stored], name: str) -> torch.Tensor:
    with safe_open(stored[name].file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
    return tensor


def _check_room(stored: dict[str, Stored], folder: Path) -> None:
    needed = sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()})
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConversionError(
            f"{folder}: {free / 1e9:.1f} GB free, the result takes {needed / 1e9:.1f} GB"
        )


def _dtype(stored: dict[str, Stored]) -> str:
    """The dtype of the embedding, which the model is to be loaded in."""
    name = stored[EMBEDDING].dtype if EMBEDDING in stored else "BF16"
    if name not in _DTYPES:
        raise ConversionError(
            f"{stored[EMBEDDING].file}: {EMBEDDING} is {name}, expected {', '.join(_DTYPES)}: "
            "quantised weights cannot be rewritten"
        )
    return _DTYPES[name]


def _asked(config: InternVLConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the model, by their names in a file, without making it."""
    # Tensors on "meta" have shapes and no memory.
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    shapes = {}
    for name, tensor in model.state_dict().items():
        inner = name.removeprefix("model.")
        # The files of the -HF folders have the names of the published code here; transformers maps
        # them when it loads.
        if inner.startswith("language_model."):
            inner = inner.replace("language_model.", "language_model.model.", 1)
        shapes[HEAD if inner == "lm_head.weight" else inner] = tuple(tensor.shape)
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file."""
    try:
        content = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise ConversionError(f"{error}, or download this file again") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: not a JSON object; download this file again")
    return content


def _tokenizer(source: Path, staging: Path) -> Any:
    """The source's tokenizer with the names that the processor asks for; ids stay as they are."""
    found = [name for name in _TOKENIZER if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.json"} & set(found):
        raise ConversionError(
            f"{source}: neither tokenizer.json nor vocab.json and merges.txt is there"
        )
    own = staging / "tokenizer"
    own.mkdir()
    for name in found:
        if name.endswith(".json"):
            _read_object(source / name)
        shutil.copyfile(source / name, own / name)
    settings = _read_object(source / "tokenizer_config.json")
    # auto_map would ask for the code of the checkpoint; the other two are written anew.
    for name in ("auto_map", "chat_template", "extra_special_tokens"):
        settings.pop(name, None)
    settings.setdefault("tokenizer_class", "Qwen2Tokenizer")
    write_json(own / "tokenizer_config.json", settings)
    # Read from the files: what AutoTokenizer makes of them is what is to be checked.
    before = _numbers(own)
    absent = [text for text in _SPECIAL.values() if text != VIDEO and text not in before]
    if absent:
        raise ConversionError(f"{source}: the tokenizer does not know {', '.join(absent)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(own, extra_special_tokens=_SPECIAL)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConversionError(
            f"{source}: the tokenizer cannot be read ({error}); download {', '.join(found)} again"
        ) from error
    shutil.rmtree(own)
    after = tokenizer.get_vocab()
    moved = [text for text, number in before.items() if after.get(text) != number]
    if moved:
        raise ConversionError(
            f"{source}: {len(moved)} tokens would change their numbers, {moved[0]!r} from "
            f"{before[moved[0]]} to {after.get(moved[0])}; are the tokenizer's files of one model?"
        )
    return tokenizer


def _numbers(folder: Path) -> dict[str, int]:
    """Every token's number as the tokenizer's own files state it."""
    content = {
        name: _read_object(folder / name)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json")
    }
    whole = content["tokenizer.json"]
    found: dict[str, int] = {**whole.get("model", {}).get("vocab", {}), **content["vocab.json"]}
    found |= {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    decoder = content["tokenizer_config.json"].get("added_tokens_decoder", {})
    found |= {token["content"]: int(number) for number, token in decoder.items()}
    return found | content["added_tokens.json"]


def _processor(source: Path, published: Published, tokenizer: Any) -> InternVLProcessor:
    settings = _read_object(source / "preprocessor_config.json")
    common = {
        "size": {"height": published.tile, "width": published.tile},
        "image_mean": settings.get("image_mean", _MEAN),
        "image_std": settings.get("image_std", _STD),
    }
    pictures = GotOcr2ImageProcessor(
        crop_to_patches=published.cut,
        min_patches=published.least_tiles,
        max_patches=published.most_tiles,
        **common,
    )
    return InternVLProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**common),
        image_seq_length=published.tokens,
        chat_template=_CHAT,
    )


def _generation_config(source: Path, tokenizer: Any, published: Published) -> GenerationConfig:
    if (source / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(source)
    ends = {tokenizer.convert_tokens_to_ids("<|im_end|>"), published.text.get("eos_token_id")}
    return GenerationConfig(eos_token_id=sorted(ends - {None}))


def _write_weights(kept: dict[str, Stored], staging: Path, tell: Callable[[str], None]) -> None:
    files = sorted({tensor.file for tensor in kept.values()})
    placed: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for each, tensor in converted(file, kept):
            tensors[each], placed[each] = tensor, name
            size += tensor.numel() * tensor.element_size()
        save_file(tensors, staging / name, {"format": "pt"})
        tell(f"{number}/{len(files)}  {file.name}: {len(tensors)} tensors")
    write_json(staging / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})


def _check_loads(staging: Path, tokenizer: Any) -> None:
    """The written tokenizer and processor are what was meant, without code of their own."""
    read: Any = AutoProcessor.from_pretrained(staging)
    if read.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConversionError(f"{staging}: the saved tokenizer has other tokens")
