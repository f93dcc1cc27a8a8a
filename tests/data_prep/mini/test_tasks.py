"""Every task: valid samples, balanced answers, disjoint splits, nothing left to chance."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random

import pytest

from assets.tiny_base.make import texts
from data_prep.mini.tasks import SPLITS, TASKS, load_task, sample_rng
from data_prep.mini.tasks.base import VAGUE

SAMPLES = 150


@cache
def samples(task, split, count=SAMPLES):
    """Return [(scene, question)] of a split."""
    out = []
    for index in range(count):
        rng = sample_rng(0, task.name, split, index)
        scene = task.draw(split, rng)
        out.append((scene, task.ask(scene, rng)))
    return out


@pytest.fixture(scope="module", params=TASKS)
def task(request, tasks):
    """Return each task in turn."""
    return tasks[request.param]


def test_samples_are_whole(task):
    for scene, question in samples(task, "train", 40):
        assert scene.image.size == (112, 112)
        assert scene.image.mode == "RGB"
        assert question.prompt.strip() == question.prompt
        assert question.answer.strip() == question.answer != ""
        assert "<image>" not in question.prompt
        assert task.describe(scene)


def test_same_seed_same_sample(task):
    first, again = samples(task, "train", 10), samples.__wrapped__(task, "train", 10)
    assert [(a.image.tobytes(), q) for a, q in first] == [(b.image.tobytes(), q) for b, q in again]


def test_no_constant_answers_many_questions(task):
    answers = Counter(question.answer for _, question in samples(task, "train"))
    assert answers.most_common(1)[0][1] < 0.36 * SAMPLES  # 0.32 and a standard error


def test_splits_share_no_source(task):
    drawn = {split: {scene.source for scene, _ in samples(task, split)} for split in SPLITS}
    for split in SPLITS:
        others = set().union(*(drawn[other] for other in SPLITS if other != split))
        assert not drawn[split] & others


def test_splits_share_no_picture(task):
    pictures = {
        split: {scene.image.tobytes() for scene, _ in samples(task, split)} for split in SPLITS
    }
    assert not pictures["train"] & pictures["test"]
    assert not pictures["pretrain"] & pictures["test"]


def test_whole_source_lists_are_disjoint(tasks):
    vqa, films, prices, animals, countries, blocks = (
        tasks[name].sources for name in ("VQAv2", "OCRVQA", "Fin", "ImageNet", "ChartQA", "RS")
    )
    lists = {
        "VQAv2": {split: set(ids) for split, ids in vqa.items()},
        "OCRVQA": {
            split: {film["id"] for own in by_genre.values() for film in own}
            for split, by_genre in films.items()
        },
        "Fin": {
            split: {(t, day // 64) for days in own.values() for t, day in days}
            for split, own in prices.items()
        },
        "ImageNet": {split: {i for own in ids for i in own} for split, ids in animals.items()},
        "ChartQA": {split: set(names) for split, names in countries.items()},
        "RS": {
            split: {block for own in kinds.values() for block in own}
            for split, kinds in blocks.items()
        },
    }
    for name, by_split in lists.items():
        sizes = sum(len(ids) for ids in by_split.values())
        assert len(set().union(*by_split.values())) == sizes, name


def test_descriptions_use_other_prompts_than_the_stream(tasks):
    ours = {*texts.FIELDS, texts.CHECK, texts.REPEAT, texts.BACKWARDS, *texts.DESCRIBE}
    starts = tuple(text.split()[0] for text in ours if text[0] != "{")
    for task in tasks.values():
        for _, question in samples(task, "train", 50):
            assert not question.prompt.startswith(starts)


def test_unknown_task_is_named(tasks):
    with pytest.raises(KeyError, match="task 'COCO' is unknown, expected one of VQAv2"):
        load_task("COCO", None)


def test_settled_question_depends_on_the_picture_alone(task):
    for scene, _ in samples(task, "train", 10):
        first, again = (task.ask_vaguely(scene, Random(3)) for _ in range(2))
        assert first == again
        assert first.prompt == VAGUE
        if task.name != "TextCaps":  # its answer is one of several true captions
            assert task.ask_vaguely(scene, Random(4)).answer == first.answer
