"""The paragraph on what a run came to, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from eval.outcome import Settings, TaskOutcome, lost_since_best, sentences

SETTINGS = Settings(epochs=1, rate=2e-4, tokens=4)
FALLING = [[4.0, 3.0, 2.0, 1.0]]


def task(name: str, last: float, **more: object) -> TaskOutcome:
    values = {"base": 0.0, "constant": 0.25, "best": last, "best_chunk": 3, **more}
    return TaskOutcome(name, last=last, **values)  # type: ignore[arg-type]


def text(*tasks: TaskOutcome, chunk: int = 3, losses: list[list[float]] = FALLING) -> str:
    return " ".join(sentences(chunk, 3, tasks, losses, SETTINGS))


def test_no_gain_cancels_a_loss() -> None:
    """Lost 0.2 and 0, the second gained 0.5: 0.1 a task, where the mean of both would be -0.15."""
    tasks = [task("a", 0.6, best=0.8, best_chunk=1), task("b", 0.9, best=0.4)]
    assert lost_since_best(tasks) == pytest.approx(0.1)
    assert math.isnan(lost_since_best([task("c", math.nan)]))
    said = text(*tasks)
    assert "the mean over 2 tasks is 75.0 percent; the base model had 0.0, " in said
    assert "the best constant answers would have 25.0." in said
    assert "Lost since best: 10.0 points a task, by a 20.0 (since chunk 1)." in said
    assert "It is better than the best constant answer on every task." in said
    assert "against the loss a lower schedule.later.learning_rate" in said


def test_a_good_run_is_told_in_three_sentences() -> None:
    said = sentences(3, 3, [task("a", 0.8), task("b", 0.9)], FALLING, SETTINGS)
    assert len(said) == 3
    assert "What to try" not in said[-1]
    assert "Nothing is lost" in said[1]


@pytest.mark.parametrize(
    ("more", "words", "advice"),
    [
        ({"last": 0.184, "constant": 0.263}, "of no use as it is", "schedule.epochs, now 1"),
        ({"last": 0.263, "constant": 0.263}, "a 26.3 against 26.3", "learning_rate, now 0.0002"),
        ({"answers": ["\n\n", "", None, "x"]}, "Empty answers: a 3 of 4.", "Answer with one word"),
        ({"answers": ["red", "red "]}, 'every question: a "red".', "Answer with one word"),
        ({"answers": ["a b c d", "e"], "cut": 1}, "a 1 of 2", "eval.max_new_tokens, now 4"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_try(
    more: dict[str, object], words: str, advice: str
) -> None:
    said = text(task("a", **{"last": 0.5, **more}))  # type: ignore[arg-type]
    assert words in said
    assert advice in said.partition("What to try: ")[2]


def test_equal_answers_to_a_task_with_one_right_answer_are_no_fault() -> None:
    assert "same answer" not in text(task("a", 1.0, answers=["yes", "yes"], one_gold=True))


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([[3.0, 3.0, 3.1, 3.0]], "did not fall in any chunk (3 at first, 3 later)"),
        ([[3.0, math.nan, 2.0, 1.0]], "not a finite number"),
    ],
)
def test_a_loss_that_did_not_fall(losses: list[list[float]], words: str) -> None:
    said = text(task("a", 0.8), losses=losses)
    assert words in said
    assert "learning_rate" in said.partition("What to try: ")[2]


def test_a_loss_of_two_lines_tells_nothing_and_one_chunk_that_learned_is_enough() -> None:
    assert "loss" not in text(task("a", 0.8), losses=[[3.0, 3.0]]).replace("lost", "")
    assert "did not fall" not in text(task("a", 0.8), losses=[*FALLING, [1.0] * 8])


def test_one_task_is_no_mean_and_one_chunk_cannot_forget() -> None:
    said = text(task("shop", 0.8, best_chunk=1), chunk=1)
    assert said.startswith("After chunk 1 of 3 shop has 80.0 percent; the base model had 0.0, ")
    assert "nothing can be forgotten yet" in said
    assert "mean" not in said
    assert "tasks" not in said


def test_below_the_base_model_is_not_at_its_best() -> None:
    """95.0 before the stream, 45.0 now and after no chunk more: lost before chunk 1."""
    said = text(task("a", 0.45, base=0.95), task("b", 0.5, base=0.5))
    assert "Nothing is lost since chunk 1. Worse than" in said
    assert "at its best" not in said
    assert "Worse than the base model: a 45.0 against 95.0. It is better than the best" in said
    assert "Worse than" not in text(task("a", 0.5, base=0.5))
    both = text(task("a", 0.4, base=0.5, best=0.45), task("b", 0.9))
    assert "Lost since best: 2.5 points a task" in both
    assert "Worse than the base model: a 40.0 against 50.0." in both


def test_joint_training_loses_nothing_and_says_nothing_of_it() -> None:
    """It has no stream: only what it ends with is known."""
    tasks = [task("a", 0.8), task("b", 0.65, base=0.7)]
    said = sentences(3, 3, tasks, FALLING, SETTINGS, in_stream=False)
    assert said[0].startswith("After chunk 3 of 3 the mean over 2 tasks is 72.5 percent")
    assert said[1] == "Worse than the base model: b 65.0 against 70.0."
    assert "lost" not in " ".join(said).lower()


def test_means_stand_beside_each_other_over_the_same_tasks() -> None:
    """Captions have no constant answer, and a new test set was not asked of the base model."""
    said = text(task("vqa", 0.8, base=1.0), task("new", 0.0, base=math.nan, constant=math.nan))
    assert said.startswith(
        "After chunk 3 of 3 the mean over 2 tasks is 40.0 percent; the base model had 100.0 on 1 of"
        " them, where this model has 80.0, the best constant answers would have 25.0 on 1 of them,"
        " where this model has 80.0."
    )


def test_captions_have_no_constant_answer() -> None:
    assert "better than the base model" in text(task("captions", 0.8, constant=math.nan))
    unknown = task("captions", 0.8, constant=math.nan, base=math.nan)
    assert "nothing to compare with" in text(unknown)
    assert sentences(0, 3, [unknown], [], SETTINGS) == []


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (
            [task("box", 0.2), task("captions", 0.9, constant=math.nan, base=0.1)],
            "It is better than the best constant answer (where there is none, than the base model)"
            " on 1 of 2 tasks.",
        ),
        (
            [task("box", 0.9), task("captions", 0.1, constant=math.nan, base=0.4)],
            "(where there is none, than the base model) on 1 of 2 tasks.",
        ),
        (
            [task("box", 0.9), task("new", 0.1, constant=math.nan, base=math.nan)],
            "It is better than the best constant answer on 1 of 2 tasks; 1 cannot be judged.",
        ),
    ],
)
def test_every_task_is_judged_by_what_is_known_of_it(tasks: list[TaskOutcome], words: str) -> None:
    """Useful for captions is not "of no use", and worse at them is not better "on every task"."""
    said = text(*tasks)
    assert words in said
    assert "of no use" not in said
    assert "on every task" not in said
