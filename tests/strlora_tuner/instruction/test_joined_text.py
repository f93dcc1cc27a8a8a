"""`instruction_text: joined`: the instruction as the published code took it, worked by hand."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from strlora_tuner.core.carry import carried_config
from strlora_tuner.methods.strlora.config import Config
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.options import with_preset
from strlora_tuner.saved import CONFIG
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import TOKENIZER, adapted, text_model

TOKENS = AutoTokenizer.from_pretrained(TOKENIZER)
PICTURE = "<img><IMG_CONTEXT><IMG_CONTEXT></img>"
MARKS = dict(
    turn_start=TOKENS.encode("<|im_start|>user\n"),
    turn_end=TOKENS.encode("<|im_end|>"),
    ignored_ids=sorted(TOKENS.all_special_ids),
    pad_id=TOKENS.pad_token_id,
)
SYSTEM = "<|im_start|>system\nBe short.<|im_end|>\n"
ASKED = [522, 363, 572, 30]  # What| is| this|?


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def model(seed: int = 0, **changes: Any) -> Any:
    base = text_model(seed, vocab_size=len(TOKENS))
    base.config.name_or_path = str(TOKENIZER)
    base.config.image_token_id = TOKENS.convert_tokens_to_ids("<IMG_CONTEXT>")
    options = {"instruction_norm": "none", "instruction_text": "joined", **changes}
    return adapted(base, **{**MARKS, **options})


def batch(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(TOKENS(texts, return_tensors="pt", padding=True, add_special_tokens=False))


@torch.no_grad()
def vectors(adapter: Any, texts: list[str]) -> torch.Tensor:
    """The instruction vectors that a pass over these texts routed by, (S, H)."""
    inputs = batch(texts)
    adapter(**inputs)
    shape = (*inputs["input_ids"].shape, 32)
    return tuner_of(adapter).routing.instruction("default", torch.zeros(shape))


def mean(adapter: Any, ids: list[int], padding: int = 0) -> torch.Tensor:
    """The float64 mean embedding of ids and of `padding` pads; zero of none."""
    weight = adapter.get_input_embeddings().weight.double()
    rows = weight[[*ids, *[TOKENS.pad_token_id] * padding]]
    return rows.sum(0) / max(1, len(rows))


# The published rule (user turns joined by a line end, <image> out with the blanks behind it), then
# the words in the tokens of assets/tiny_base.
WORKED = [
    (f"{PICTURE}\nWhat is this?", ASKED),  # as InternVL's template writes <image>
    (f"{PICTURE}\n\n \tWhat is this?", ASKED),
    (f"{PICTURE}What is this?", ASKED),
    ("What is this?", ASKED),
    (f"{PICTURE}\n{PICTURE}\nWhat is this?", ASKED),  # two pictures
    (f"\n\n{PICTURE}\n\nWhat is this?", ASKED),  # as Gemma's processor writes <image>
    (f"What {PICTURE}\nis this?", ASKED),  # blanks before it stay
    (f"What is this?\n{PICTURE}", [522, 363, 572, 422]),  # ?\n is one token
    (f"<ref>What</ref> is{PICTURE}", [522, 363]),  # other special tokens keep their blanks
    (PICTURE, []),
    ("", []),
]


@pytest.mark.parametrize(("text", "ids"), WORKED)
def test_a_prompt_worked_by_hand(text, ids):
    adapter = model().eval()
    (found,) = vectors(adapter, [SYSTEM + turn(text) + "A cat.<|im_end|>"])
    torch.testing.assert_close(found.double(), mean(adapter, ids), rtol=1e-5, atol=1e-7)


def test_turns_are_joined_by_a_line_end():
    """Its token also holds the end of the turn before: `?` and the line end are one."""
    adapter = model(instruction_turns="all").eval()
    text = turn(f"{PICTURE}\nWhat is this?") + "A cat.<|im_end|>\n" + turn("And that?")
    (found,) = vectors(adapter, [text])
    ids = [522, 363, 572, 422, 32, 533, 395, 30]  # What| is| this|?\n|A|nd| that|?
    torch.testing.assert_close(found.double(), mean(adapter, ids), rtol=1e-5, atol=1e-7)
    (found, both) = vectors(model(instruction_turns="so_far").eval(), [text])
    torch.testing.assert_close(found.double(), mean(adapter, ASKED), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(both.double(), mean(adapter, ids), rtol=1e-5, atol=1e-7)
    third = text.replace("And that?", f"{PICTURE}\nAnd that?")  # blanks behind it, joined before
    torch.testing.assert_close(vectors(adapter, [third])[0].double(), mean(adapter, ids))


def test_padding_is_that_of_the_texts():
    """The published code padded a batch's texts to the longest and averaged over padding."""
    adapter = model(padding="include").train()
    rows = [turn(f"{PICTURE}\nWhat is this?") + "A cat.", turn(f"{PICTURE}\nWhat") + "A cat."]
    found = vectors(adapter, rows)
    torch.testing.assert_close(found[0].double(), mean(adapter, ASKED))
    torch.testing.assert_close(found[1].double(), mean(adapter, [522], padding=3))
    torch.testing.assert_close(vectors(adapter.eval(), rows)[1].double(), mean(adapter, [522]))


def test_packed_samples_have_texts_of_their_own():
    adapter = model().eval()
    rows = [turn(f"{PICTURE}\nWhat is this?") + "A cat.<|im_end|>", turn("And that?") + "A dog."]
    ids = [TOKENS.encode(row) for row in rows]
    places = [place for row in ids for place in range(len(row))]
    with torch.no_grad():
        adapter(input_ids=torch.tensor([[*ids[0], *ids[1]]]), position_ids=torch.tensor([places]))
    found = tuner_of(adapter).routing.instruction("default", torch.zeros(1, len(places), 32))
    for vector, wanted in zip(found, (ASKED, [32, 533, 395, 30]), strict=True):
        torch.testing.assert_close(vector.double(), mean(adapter, wanted))


def test_released_asks_for_it_and_generates_by_it():
    preset = Options(**with_preset(Options, {"preset": "released"}))
    assert preset.instruction_text == "joined"
    assert Options().instruction_text == "prompt"
    host = ("rank", "alpha", "dropout", "targets", "router_dim", "require_teacher")
    released = {name: value for name, value in asdict(preset).items() if name not in host}
    adapter = model(**released).eval()
    prompt = batch([turn(f"{PICTURE}\nWhat is this?")])
    with torch.no_grad():
        answers = adapter.generate(**prompt, max_new_tokens=4, do_sample=False)
        ids, wanted = prompt["input_ids"], prompt["input_ids"]
        for _ in range(4):
            wanted = torch.cat([wanted, adapter(input_ids=wanted).logits[:, -1:].argmax(-1)], 1)
    length = ids.shape[1] + 4
    assert answers[:, :length].tolist() == wanted[:, : answers.shape[1]].tolist()


def test_an_old_adapter_keeps_its_rule_and_says_so(tmp_path, caplog):
    adapter = model(instruction_text="prompt")
    adapter.save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    assert content.pop("instruction_text") == "prompt"
    (tmp_path / CONFIG).write_text(json.dumps(content))
    saved = Config.from_pretrained(str(tmp_path))
    assert saved.instruction_text == "prompt"
    with caplog.at_level(logging.WARNING):
        config, _ = carried_config(saved, {"instruction_text": "joined"}, "chunk-1")
    assert config.instruction_text == "prompt"
    assert "was trained with instruction_text: prompt, and goes on so" in caplog.text
    (found,) = vectors(adapter.eval(), [turn(f"{PICTURE}\nWhat is this?")])
    torch.testing.assert_close(found.double(), mean(adapter, [198, *ASKED]))
