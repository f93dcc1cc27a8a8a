"""Whatever way a prompt is read and an answer decoded: the tokens of plain greedy decoding.

The table of docs/tuner.md has a row for each way and a column for each tuner of this test.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import BY_ROW, END, PAD, STRLORA, USER, adapted, base_model

TUNERS = (STRLORA, *BY_ROW)
PAGE = Path(__file__).parents[3] / "docs" / "tuner.md"
NEW = 8
# A user turn that repeats itself, so that prompt lookup has something to propose.
FIRST = torch.tensor([[5, 6, USER, 31, 32, 33, 34, 31, 32, 33, 35, 36, 31, 32, END, 7]])
SECOND = torch.tensor([[END, USER, 61, 62, 63, 61, 62, END, 7]])
THIRD = torch.tensor([[END, USER, 71, 72, END, 7]])


@cache
def model_of(method: str) -> Any:
    """A text model whose adapter's experts differ much, so that another choice shows."""
    model = adapted(base_model("text"), method, chunk=3).eval()
    with torch.no_grad():
        for _, bank in tuner_of(model).mixtures():
            for name, tensor in bank.state_dict().items():
                if name in ("A", "B"):
                    tensor.mul_(2)
                elif name in ("task", "router", "past_routers", "vision", "text"):
                    tensor.mul_(5)
    return model


@cache
def draft_model() -> Any:
    """What an assistant is: another, smaller model."""
    return base_model("text").eval()


def generate(model: Any, ids: torch.Tensor, **way: Any) -> Any:
    """Tokens, greedily chosen; never a turn's mark, which would stop a real answer."""
    settings: dict[str, Any] = dict(
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
        suppress_tokens=[USER, PAD],
        return_dict_in_generate=True,
        attention_mask=torch.ones_like(ids),
    )
    return model.generate(input_ids=ids, **{**settings, **way})


def plain(model: Any, ids: torch.Tensor) -> list[int]:
    """The tokens that follow ids (1, L), each chosen by a pass over all that is before it."""
    for _ in range(NEW):
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, -1]
        scores[[USER, PAD]] = -torch.inf
        ids = torch.cat([ids, scores.argmax()[None, None]], 1)
    return ids[0, -NEW:].tolist()


def answer(output: Any, ids: torch.Tensor) -> list[int]:
    return output.sequences[0, ids.shape[1] :].tolist()


def by_generate(**way: Any) -> Any:
    def decode(model: Any) -> tuple[list[int], list[int]]:
        return answer(generate(model, FIRST, **way), FIRST), answer(generate(model, FIRST), FIRST)

    return decode


def assisted(model: Any) -> Any:
    return by_generate(assistant_model=draft_model())(model)


def assisted_by_itself(model: Any) -> Any:
    return by_generate(assistant_model=model.base_model.model)(model)


def beams(model: Any) -> Any:
    found = generate(model, FIRST, num_beams=3)
    return answer(found, FIRST), answer(generate(model, FIRST, num_beams=3, use_cache=False), FIRST)


def static_beams(model: Any) -> Any:
    found = generate(model, FIRST, num_beams=3, cache_implementation="static")
    return answer(found, FIRST), answer(generate(model, FIRST, num_beams=3, use_cache=False), FIRST)


def conversation(model: Any, **way: Any) -> tuple[torch.Tensor, Any]:
    """A first turn, answered, and its cache; a second turn behind them."""
    first = generate(model, FIRST, **way)
    return torch.cat([first.sequences, SECOND], 1), first.past_key_values


def kept_cache(model: Any, **way: Any) -> Any:
    whole, past = conversation(model)
    found = generate(model, whole, past_key_values=past, **way)
    return answer(found, whole), answer(generate(model, whole), whole)


def kept_cache_with_lookup(model: Any) -> Any:
    return kept_cache(model, prompt_lookup_num_tokens=3)


def kept_static_cache(model: Any) -> Any:
    past = StaticCache(config=model.config, max_cache_len=96)
    whole, past = conversation(model, past_key_values=past)
    found = generate(model, whole, past_key_values=past)
    return answer(found, whole), answer(generate(model, whole), whole)


def only_the_new_turn(model: Any) -> Any:
    whole, past = conversation(model)
    new = whole[:, past.get_seq_length() :]
    mask = torch.ones_like(whole)
    found = generate(model, new, past_key_values=past, attention_mask=mask)
    return answer(found, new), answer(generate(model, whole), whole)


def three_turns(model: Any) -> Any:
    whole, past = conversation(model)
    second = generate(model, whole, past_key_values=past)
    whole = torch.cat([second.sequences, THIRD], 1)
    found = generate(model, whole, past_key_values=second.past_key_values)
    return answer(found, whole), answer(generate(model, whole), whole)


def cut_cache(model: Any) -> Any:
    whole, past = conversation(model)
    length = past.get_seq_length()
    second = generate(model, whole, past_key_values=past)
    second.past_key_values.crop(length - second.past_key_values.get_seq_length())
    other = torch.cat([whole[:, : -SECOND.shape[1]], THIRD], 1)
    found = generate(model, other, past_key_values=second.past_key_values)
    return answer(found, other), answer(generate(model, other), other)


def copied_cache(model: Any) -> Any:
    whole, past = conversation(model)
    kept = copy.deepcopy(past)
    generate(model, whole, past_key_values=past)
    other = torch.cat([whole[:, : -SECOND.shape[1]], THIRD], 1)
    found = generate(model, other, past_key_values=kept)
    return answer(found, other), answer(generate(model, other), other)


@torch.no_grad()
def by_hand(model: Any) -> Any:
    """Own loops over two conversations at once, each on its cache, and a second turn in each."""
    tokens, caches = [FIRST, FIRST + torch.tensor([[0, 0, 0, 9] + [0] * 12])], [None, None]
    new: list[torch.Tensor] = list(tokens)
    found: list[list[int]] = [[], []]
    for turn in range(2):
        for _ in range(NEW):
            for row in range(2):
                output = model(input_ids=new[row], past_key_values=caches[row], use_cache=True)
                caches[row] = output.past_key_values
                scores = output.logits[0, -1]
                scores[[USER, PAD]] = -torch.inf
                new[row] = scores.argmax()[None, None]
                tokens[row] = torch.cat([tokens[row], new[row]], 1)
                found[row] += new[row][0].tolist() if turn else []
        for row in range(2 if turn == 0 else 0):
            tokens[row] = torch.cat([tokens[row], SECOND], 1)
            new[row] = torch.cat([new[row], SECOND], 1)
    wanted = [answer(generate(model, row[:, :-NEW]), row[:, :-NEW]) for row in tokens]
    return found, wanted


def negative_prompt(model: Any) -> Any:
    way = dict(guidance_scale=1.5, negative_prompt_ids=torch.tensor([[USER, 44, 45, END]]))
    found = generate(model, FIRST, **way)
    return answer(found, FIRST), answer(generate(model, FIRST, use_cache=False, **way), FIRST)


def one_token(model: Any) -> Any:
    generate(model, FIRST)
    ids = torch.tensor([[61]])
    found = answer(generate(model, ids), ids)
    return found, answer(generate(model, ids, use_cache=False), ids)


def batch(**way: Any) -> Any:
    """Prompts of different lengths, padded on the left."""

    def decode(model: Any) -> tuple[list[list[int]], list[list[int]]]:
        rows = [FIRST, torch.tensor([[USER, 61, 62, END, 7]]), torch.cat([FIRST, SECOND], 1)]
        length = max(row.shape[1] for row in rows)
        pads = [torch.full((1, length - row.shape[1]), PAD) for row in rows]
        ids = torch.cat([torch.cat(pair, 1) for pair in zip(pads, rows, strict=True)])
        found = generate(model, ids, attention_mask=(ids != PAD).long(), **way)
        wanted = [answer(generate(model, row), row) for row in rows]
        return found.sequences[:, length:].tolist(), wanted

    return decode


WAYS = {
    "`generate`": lambda model: (answer(generate(model, FIRST), FIRST), plain(model, FIRST)),
    "`use_cache=False`": by_generate(use_cache=False),
    "prompt lookup": by_generate(prompt_lookup_num_tokens=3),
    "assisted decoding": assisted,
    "assisted by the same model": assisted_by_itself,
    "a prompt in pieces (`prefill_chunk_size`)": by_generate(prefill_chunk_size=5),
    "static cache": by_generate(cache_implementation="static"),
    "static cache, prompt in pieces": by_generate(
        cache_implementation="static", prefill_chunk_size=5
    ),
    "beams": beams,
    "beams on a static cache": static_beams,
    "negative prompt (`guidance_scale`)": negative_prompt,
    "a prompt of one token": one_token,
    "a batch padded on the left": batch(),
    "the same on a static cache": batch(cache_implementation="static"),
    "the same in pieces": batch(prefill_chunk_size=5),
    "a second turn on a kept cache": kept_cache,
    "the same with prompt lookup": kept_cache_with_lookup,
    "the same on a static cache, kept": kept_static_cache,
    "only the new turn given, on a kept cache": only_the_new_turn,
    "a third turn on a kept cache": three_turns,
    "a cache cut at the end of an answer (`crop`)": cut_cache,
    "a copy of a cache": copied_cache,
    "own loops, two conversations by turns": by_hand,
}
IN_ONE_PIECE = ("smolora", "branchlora", "hide_llava")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("method", TUNERS)
def test_the_tokens_are_those_of_plain_decoding(method, way):
    found, wanted = WAYS[way](model_of(method))
    assert found == wanted


def test_the_page_has_every_way_and_every_tuner():
    text = PAGE.read_text(encoding="utf-8")
    table = re.search(r"<!-- decoding: begin -->\n(.*?)\n<!-- decoding: end -->", text, re.S)
    assert table is not None
    head, _, *lines = [[c.strip() for c in x.strip("|").split("|")] for x in table[1].split("\n")]
    assert head == ["decoding", *(f"`{method}`" for method in TUNERS)]
    one = lambda way, m: "in one piece" if "pieces" in way and m in IN_ONE_PIECE else "same"  # noqa: E731
    assert lines[:-1] == [[way, *(one(way, m) for m in TUNERS)] for way in WAYS]
    assert lines[-1][1:] == ["refused"] * len(TUNERS)
