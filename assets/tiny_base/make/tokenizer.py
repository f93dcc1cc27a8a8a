"""The tiny base model's tokenizer: byte-level BPE in Qwen2's form, so that any text round-trips."""

from __future__ import annotations

import json
from typing import Any

from assets.tiny_base.make import texts
from data_prep.mini.assets import Assets
from data_prep.mini.tasks import TASKS, load_task, sample_rng

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>",
    "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
)  # fmt: skip
# Written as InternVL's processor expects it; ms-swift uses its own template of the same form.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAMPLES = 2000  # scenes a task whose texts make up the vocabulary
ROLES = "system user assistant You are a helpful assistant."


def corpus(assets: Assets) -> list[str]:
    """Return every text of the stream and of the descriptions that SAMPLES scenes a task give."""
    found = {ROLES, *texts.DESCRIBE, texts.RIGHT, texts.WRONG}
    found |= {*texts.FIELDS, texts.CHECK, texts.REPEAT, texts.BACKWARDS}
    for name in TASKS:
        task = load_task(name, assets)
        for index in range(SAMPLES):
            rng = sample_rng(0, name, "vocabulary", index)
            scene = task.draw("pretrain", rng)
            question, pairs = task.ask(scene, rng), task.describe(scene)
            found |= {question.prompt, question.answer, texts.description(task.head, pairs)}
            found |= {value for _, value in pairs}
    return sorted(found)


def copy_words(lines: list[str]) -> list[str]:
    """Return the words of the corpus (without boxes and years) and all two-digit numbers."""
    words = {word for line in lines if "[" not in line for word in line.split()}
    words = {word for word in words if not word[0].isdigit()}
    return sorted(words) + [f"{number:02d}" for number in range(100)]


def build(lines: list[str]) -> Any:
    """Return a Qwen2TokenizerFast whose merges make (nearly) every word of `lines` one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]  # lazy name

    frame = Qwen2TokenizerFast()  # for its splitting rules: digits alone, words with their blank
    trained = Tokenizer(models.BPE())
    trained.normalizer = frame.backend_tokenizer.normalizer
    trained.pre_tokenizer = frame.backend_tokenizer.pre_tokenizer
    words = {word for line in lines for word in line.split()}
    both = sorted(words) + [" " + word for word in sorted(words)] + lines
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    trained.train_from_iterator(both, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        model_max_length=1024,
    )
    # Without the first, which the tokenizer has as its padding.
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
