"""The shipped base model: whole, loadable, sees what is in held-out images, new to the stream."""

from __future__ import annotations

import hashlib
import os
from random import Random

import numpy as np
import pytest
from PIL import Image

from assets.tiny_base.make import corpus, measure, network, texts, train
from assets.tiny_base.make.corpus import make_one, plan
from assets.tiny_base.make.sequences import IGNORE, Layout
from data_prep.mini.assets import REPO_ROOT
from data_prep.mini.tasks import TASKS, sample_rng

FOLDER = REPO_ROOT / "assets" / "tiny_base"
SMALLER = REPO_ROOT / "assets" / "smaller_base"
IMAGES = 12  # held-out images a family; thresholds are about 3 standard errors below the measured
# Chance is 1/8 or less by field, or a half or third where a field has two or three values
# (see assets/tiny_base/README.md), and below 0.1 for boxes.
THRESHOLDS = {
    "AD": 0.88,
    "ChartQA": 0.88,
    "Fin": 0.90,
    "GQA": 0.95,
    "Grounding": 0.66,
    "ImageNet": 0.50,
    "OCRVQA": 0.95,
    "Places365": 0.90,
    "RS": 0.93,
    "TextCaps": 0.95,
    "VQAv2": 0.75,
}


def load(folder):
    """Return (model, tokenizer) of a shipped folder, loaded as a user would."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, InternVLForConditionalGeneration

    torch.set_num_threads(1)  # two wait for each other on a busy machine
    model = InternVLForConditionalGeneration.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded():
    """Return (model, tokenizer) of the base that the recipes take."""
    return load(FOLDER)


@pytest.mark.parametrize("folder", [FOLDER, SMALLER])
def test_files_are_the_listed_ones(folder):
    listed = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    for digest, name in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert {name for _, name in listed} | {"SHA256SUMS"} == {
        p.name for p in folder.iterdir() if p.is_file()
    }
    assert (folder / "model.safetensors").stat().st_size <= 20_000_000


def test_size(loaded):
    assert 4e6 < sum(weight.numel() for weight in loaded[0].parameters()) < 9e6


@pytest.mark.slow
def test_describes_held_out_images(loaded):
    scores = measure.description_accuracy(*loaded, images=IMAGES, seed=7)
    below = {name: (scores[name], THRESHOLDS[name]) for name in TASKS}
    assert all(score >= wanted for score, wanted in below.values()), below


def test_the_smaller_base_has_the_sight_of_this_one(loaded):
    """Half the text model; what its card gives as whole it answers."""
    model, tokenizer = load(SMALLER)
    mine = model.model.vision_tower.state_dict()
    for name, weight in loaded[0].model.vision_tower.state_dict().items():
        assert (mine[name] == weight).all(), name
    layers = model.model.language_model.layers
    assert sum(weight.numel() for weight in layers.parameters()) == 1_501_184
    layout, right = Layout(tokenizer), []
    for family in ("AD", "RS"):
        image, record = make_one(family, "validation", 3, 7)
        prompts = [texts.FIELDS[0].format(field) for field, _ in record["pairs"]]
        answers = measure.greedy(
            model, layout, tokenizer, np.stack([image] * len(prompts)), prompts
        )
        right += [a == v for a, (_, v) in zip(answers, record["pairs"], strict=True)]
    assert sum(right) >= len(right) - 1, right


def test_streams_instructions_are_new(loaded, tasks):
    model, tokenizer = loaded
    layout, right, asked = Layout(tokenizer), 0, 0
    for name, task in tasks.items():
        images, questions = [], []
        for index in range(6):
            rng = sample_rng(7, name, "validation", index)
            scene = task.draw("validation", rng)
            images.append(np.asarray(scene.image))
            questions.append(task.ask(scene, rng))
        prompts = [question.prompt for question in questions]
        answers = measure.greedy(model, layout, tokenizer, np.stack(images), prompts)
        right += sum(a == q.answer for a, q in zip(answers, questions, strict=True))
        asked += len(answers)
    assert right / asked <= 0.10


def test_second_phase_starts_from_the_first_ones_weights(loaded):
    model, tokenizer = loaded
    fresh = network.build_model(tokenizer)
    network.adopt(fresh, tokenizer, FOLDER)
    old = dict(model.named_parameters())
    known = len(tokenizer)  # rows above belong to no token
    for name, weight in fresh.named_parameters():
        rows = slice(known) if "embed_tokens" in name else slice(None)
        assert (weight[rows] == old[name][rows]).all(), name


def test_another_size_with_the_sight_of_this_base(loaded):
    """The text model is new; the vision tower is the shipped one, and gets no gradient."""
    model, tokenizer = loaded
    other = network.build_model(tokenizer, hidden=192, layers=3)
    network.keep_sight(other, FOLDER)
    ids = Layout(tokenizer).prompt("Describe the picture.", True, True)
    pixels = network.to_pixels(make_one("Fin", "validation", 0, 0)[0][None])
    import torch

    ids = torch.tensor([list(ids)])
    other(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
    seen = dict(model.model.vision_tower.named_parameters())
    for name, weight in other.model.vision_tower.named_parameters():
        assert torch.equal(weight, seen[name]), name
        assert weight.grad is None, name
    layers = other.model.language_model.layers
    assert len(layers) == 3
    assert layers[0].self_attn.o_proj.weight.shape == (192, 192)
    assert layers[0].mlp.down_proj.weight.shape == (192, 480)
    assert layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert other.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_pretraining_learns_saves_and_resumes(loaded, tmp_path):
    tokenizer = loaded[1]
    images, records = corpus.build(tmp_path, 64, seed=0, workers=1)
    workers = train.Workers(0, 1, 0)

    def go_on(minutes, seen):
        model = network.build_model(tokenizer)
        rows = train.batches(Layout(tokenizer), images, records, ["a", "b"], workers, seed="0")
        path = tmp_path / "checkpoint.pt"
        return train.run(model, rows, minutes, path, seen, workers, rate=1e-3, every=0.0)

    exported = []
    first = go_on(0.01, lambda model, progress: exported.append(progress.step))
    again = go_on(first.seconds / 60 + 0.01, lambda model, progress: None)
    assert exported[-1] == first.step >= 1
    assert again.step > first.step


def test_any_text_survives_the_tokenizer(loaded, tasks):
    tokenizer = loaded[1]
    lines = [
        "Zürich  你好\n\t[0.12, 0.30]  x",
        "<|im_start|>user\n<img></img>\nIt's 42!<|im_end|>\n",
    ]
    for name, task in tasks.items():
        rng = sample_rng(1, name, "test", 0)
        question = task.ask(task.draw("test", rng), rng)
        lines += [question.prompt, question.answer]
    for line in lines:
        assert tokenizer.decode(tokenizer.encode(line)) == line


def test_words_and_digits_are_single_tokens(loaded):
    tokenizer = loaded[1]
    assert tokenizer.tokenize("1987") == ["1", "9", "8", "7"]
    for word in ("elephant", "romance", " bounding", "triangle", "highway"):
        assert len(tokenizer.tokenize(word)) == 1, word


def test_pretraining_saw_the_processors_pixels():
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoProcessor.from_pretrained(FOLDER)
    image, _ = make_one("OCRVQA", "validation", 0, 0)
    found = processor.image_processor(
        images=[Image.fromarray(image)], crop_to_patches=True, return_tensors="pt"
    )  # as ms-swift calls it
    assert found["pixel_values"].shape == (1, 3, 112, 112)
    assert (found["pixel_values"] - network.to_pixels(image[None])).abs().max() < 1e-6


def test_layout_is_the_hosts(loaded):
    """The text was taken from ms-swift 4.6's internvl_hf template (train mode, no system)."""
    tokenizer = loaded[1]
    ids, labels = Layout(tokenizer).conversation([("What is it?", "red")], image=True)
    text = "<|im_start|>user\n<img>" + "<IMG_CONTEXT>" * 16 + "</img>\nWhat is it?<|im_end|>\n"
    assert tokenizer.decode(ids) == text + "<|im_start|>assistant\nred<|im_end|>"
    learnt = [token for token in labels if token != IGNORE]
    assert tokenizer.decode(learnt) == "red<|im_end|>"


def test_conversations_are_true():
    pairs, others = [("paint", "red"), ("item", "circle")], [("paint", "blue"), ("item", "circle")]
    for seed in range(200):
        for prompt, answer in texts.about_image("single", pairs, others, Random(seed)):
            if prompt.startswith("Check"):
                claim = tuple(prompt.removeprefix("Check: ").split(" = "))
                assert answer == ("right" if claim in pairs else "wrong")
            elif prompt in texts.DESCRIBE:
                assert answer.startswith("single: ")
                assert "paint = red" in answer
                assert "item = circle" in answer
            else:
                assert answer in ("red", "circle")


def test_copying_copies():
    for seed in range(50):
        ((prompt, answer),) = texts.copying(["a", "b", "c"], Random(seed))
        words = prompt.split(": ")[1].split()
        assert answer.split() in (words, words[::-1])


def test_plan_keeps_the_shares():
    total = round(10 * sum(corpus.WEIGHTS.values()))
    names = plan(100 * total)
    assert len(names) == 100 * total
    assert names.count("Grounding") == round(1000 * corpus.WEIGHTS["Grounding"])
    assert set(names[: 4 * total]) == set(TASKS)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("00 00 50 50", "00 00 50 50", 1.0), ("00 00 50 50", "00 00 50", 0.0), ("x", "0 0 1 1", 0.0)],
)
def test_box_overlap(first, second, expected):
    assert measure.box_overlap(first, second) == expected
