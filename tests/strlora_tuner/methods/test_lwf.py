"""Learning without forgetting: the distance against a float64 loop, and the teacher's answers."""

from __future__ import annotations

import math

import pytest
import torch

from strlora_tuner.methods.lwf.distillation import Teacher, distillation
from strlora_tuner.methods.lwf.options import Options
from tests.strlora_tuner.models import STRLORA, adapted, base_model, logits, prompts, randomise


def loop(student, teacher, labels, temperature):
    terms = []
    for row, said in enumerate(student.tolist()):
        for place in range(1, len(said)):
            if labels[row, place] == -100:
                continue
            pair = []
            for values in (teacher[row, place - 1].tolist(), said[place - 1]):
                powers = [math.exp(value / temperature) for value in values]
                pair.append([power / sum(powers) for power in powers])
            terms.append(sum(p * math.log(p / q) for p, q in zip(*pair, strict=True)))
    return temperature**2 * sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distance_is_that_of_a_loop_over_the_labelled_tokens(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 7).double()
    labels = torch.tensor([[-100, -100, 3, 4, -100], [1, 2, -100, -100, 5]])
    found = distillation(student, teacher, labels, temperature)
    assert float(found) == pytest.approx(loop(student, teacher, labels, temperature), rel=1e-5)
    assert float(distillation(teacher, teacher, labels, temperature)) == 0
    assert float(distillation(student, teacher, torch.full((2, 5), -100), temperature)) == 0


@pytest.mark.parametrize("method", [STRLORA, "moelora"])
def test_the_teacher_says_what_the_saved_adapter_says(method, tmp_path):
    model = adapted(base_model("text"), method, lora_dropout=0.5).eval()
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    model.train()
    randomise(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Teacher(model, tmp_path)
    found = teacher.logits({k: v for k, v in prompts().items() if k != "labels"})
    assert torch.equal(found, wanted), "without dropout, with its own weights and buffers"
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(logits(model.eval()), wanted)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file, but this chunk learns from it"):
        Teacher(adapted(base_model("text")), tmp_path)
    adapted(base_model("text"), "moelora").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no .* of shape"):
        Teacher(adapted(base_model("text")), tmp_path)


def test_options():
    told = {"LWF_WEIGHT": "2", "LWF_TEACHER": "runs/x"}
    assert Options.from_environment(told) == Options(2.0, 2.0, "runs/x")
    assert Options.from_environment({}) == Options(1.0, 2.0, None), "the recipe's defaults"
    with pytest.raises(
        ValueError, match="lwf_weight = '0' cannot be read: expected a number above 0"
    ):
        Options.from_environment({"LWF_WEIGHT": "0"})
