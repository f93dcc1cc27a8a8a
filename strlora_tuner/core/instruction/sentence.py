"""Sentence embeddings of instructions: computed once for each distinct text, on the CPU."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strlora_tuner.embedder_files import embedder_folder

_MOST_TEXTS = 2**16  # embeddings kept, 1.5 KB each
_MOST_TOKENS = 256  # what all-MiniLM-L6-v2 was trained with


class SentenceEmbedder:
    """Mean of a sentence encoder's last states over the text's tokens, scaled to norm 1.

    Every text is encoded alone, so that a vector never depends on the batch it came in.
    """

    def __init__(self, name: str) -> None:
        self._model, self._tokenizer = _load(embedder_folder(name))
        self.width = int(self._model.config.hidden_size)
        self.embed = lru_cache(maxsize=_MOST_TEXTS)(self._embed)

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        """Returns the vector of `text`, (width) float32."""
        inputs = self._tokenizer(
            text, return_tensors="pt", truncation=True, max_length=_MOST_TOKENS
        )
        with torch.autocast("cpu", enabled=False):
            states = self._model(**inputs).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0)


@lru_cache(maxsize=2)
def sentence_embedder(name: str) -> SentenceEmbedder:
    """Returns the embedder of this name, one for all adapters of a process."""
    return SentenceEmbedder(name)


def _load(folder: Path) -> tuple[Any, Any]:
    """Returns the encoder and its tokenizer.

    Not by from_pretrained: under DeepSpeed ZeRO-3 that would cut the encoder's weights into slices.
    The random state stays: a training that is resumed loads the encoder in another step.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    config = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model: Any = MODEL_MAPPING[type(config)](config)  # type: ignore[operator]
    weights = load_file(folder / "model.safetensors")
    missing = model.load_state_dict(weights, strict=False).missing_keys
    # The mean of the states needs no pooler.
    missing = [key for key in missing if not key.startswith("pooler.")]
    if missing:
        raise ValueError(f"{folder}: the encoder's weights lack {', '.join(missing[:5])}")
    return model.float().eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)
