"""The marks of a user's turn, as tokenizers of two kinds write them inside a prompt."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from strlora_tuner import StrLoraConfig
from strlora_tuner.core.instruction.marks import TurnMarks, turn_marks
from strlora_tuner.core.instruction.turns import instruction_mask, read_turns

LETTERS = "▁\n:?.,abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPECIAL = ["<image>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def tokenizer(merges: list[tuple[str, str]], blank_before: bool) -> PreTrainedTokenizerFast:
    """A token a letter but for these pairs; some write a blank before every piece, as Llama's."""
    names = [*LETTERS, *("".join(pair) for pair in merges)]
    own = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    steps = [normalizers.Prepend("▁")] if blank_before else []
    own.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    own.pre_tokenizer = pre_tokenizers.Split("never", "isolated")
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=own)


def asked(words: PreTrainedTokenizerFast, marks: TurnMarks, pieces: list[str]) -> list[str]:
    """What is the user's in a prompt of pieces that the host encodes each for itself, by turn."""
    config = StrLoraConfig(
        turn_start=marks.start,
        turn_start_also=marks.also,
        turn_end=marks.end,
        ignored_ids=words.convert_tokens_to_ids(SPECIAL),
        target_modules=["x"],
    )
    ids = torch.tensor([[i for piece in pieces for i in words.encode(piece)]])
    turns = read_turns(ids, config)
    inside = instruction_mask(ids, config, turns.inside)[0]
    found = []
    for number in range(turns.count):
        mine = ids[0][inside & (turns.numbers[0] == number)]
        text = "".join(words.convert_ids_to_tokens(mine.tolist()))
        found.append(text.replace("▁", " ").strip())
    return found


LLAVA = tokenizer([("▁", "W"), ("▁", "U"), ("▁", "y")], blank_before=True)
CHAT = tokenizer([("\n", "\n"), ("\n\n", "\n")], blank_before=False)


@pytest.mark.parametrize(
    ("pieces", "questions"),
    [
        (["<s>", "USER: What?\nASSISTANT:", "yes", "</s>"], ["What?"]),
        (["<s>USER: ", "<image>", "\nWhat?\nASSISTANT:", "yes", "</s>"], ["What?"]),
        (["<s>USER: What?\n", "<image>", "\n\nASSISTANT:", "yes", "</s>"], ["What?"]),
        (["<s>Be brief.\nUSER: What?\nASSISTANT:", "yes", "</s>"], ["What?"]),
        (
            ["<s>USER: What?\nASSISTANT:", "yes", "</s>USER: Why?\nASSISTANT:", "no", "</s>"],
            ["What?", "Why?"],
        ),
    ],
)
def test_marks_of_plain_words_have_other_ids_inside_a_prompt(
    pieces: list[str], questions: list[str]
) -> None:
    """LLaVA-1.5's: alone each is written with a blank before it, and with one at its end."""
    marks = turn_marks(LLAVA, "USER: ", "\nASSISTANT:", ("<s>a\n", "a</s>"))
    assert marks.end == LLAVA.convert_tokens_to_ids(["\n", *"ASSISTANT:"])
    assert asked(LLAVA, marks, pieces) == questions


@pytest.mark.parametrize("blanks", ["", "\n", "\n\n", "\n\n\n"])
def test_blank_lines_of_the_user_lie_in_the_marks_last_token(blanks: str) -> None:
    """A turn that begins with blank lines was taken for no turn at all."""
    marks = turn_marks(CHAT, "<|im_start|>user\n", "<|im_end|>", ("", "a<|im_end|>\n"))
    assert marks.start == CHAT.encode("<|im_start|>user\n")
    text = f"<|im_start|>user\n{blanks}What?<|im_end|>\n<|im_start|>assistant\n"
    again = f"{text}yes<|im_end|>\n<|im_start|>user\n{blanks}Why?<|im_end|>\n"
    assert asked(CHAT, marks, [text]) == ["What?"]
    assert asked(CHAT, marks, [again]) == ["What?", "Why?"]


def test_lists_that_do_not_fit_the_mark_are_refused() -> None:
    """One for each id, or none."""
    with pytest.raises(ValueError, match=r"turn_start_also has 1 lists, turn_start 2 ids"):
        StrLoraConfig(turn_start=[1, 2], turn_start_also=[[3]], turn_end=[4], target_modules=["x"])
