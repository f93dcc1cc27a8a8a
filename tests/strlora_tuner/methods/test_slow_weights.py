"""Slow weights: the average against values worked by hand, its file, and the two sets' folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from strlora_tuner.methods.slow_weights.average import SlowWeights, adapter_tensors
from strlora_tuner.methods.slow_weights.both_sets import (
    FILE,
    STEPS,
    check_sets,
    check_slow_file,
    inner_weights,
    part_sets,
    planned_set,
    read_steps,
)
from strlora_tuner.methods.slow_weights.options import Options
from strlora_tuner.saved import WEIGHTS, AdapterError
from tests.strlora_tuner import models
from tests.strlora_tuner.models import text_model


def test_the_first_steps_worked_by_hand() -> None:
    """b is 2/11, 3/12 and 4/13 after steps 1, 2 and 3: 9/11, 9/12 and 9/13 of theta come in."""
    theta = nn.Parameter(torch.tensor([1.0, -2.0]))
    slow = SlowWeights({"a": theta}, Options())
    expected = theta.detach().double()
    for step, value in enumerate(([3.0, 0.0], [0.5, 4.0], [-1.0, 1.0]), start=1):
        theta.data = torch.tensor(value)
        slow.step({"a": theta})
        expected = expected + 9 / (10 + step) * (theta.detach().double() - expected)
        torch.testing.assert_close(slow.average["a"].double(), expected, rtol=1e-6, atol=1e-7)
    # By hand 1 -> 29/11 -> 91/88 -> -107/286 and -2 -> -4/11 -> 32/11 -> 227/143.
    torch.testing.assert_close(slow.average["a"], torch.tensor([-107 / 286, 227 / 143]))
    assert theta.tolist() == [-1.0, 1.0], "the fast weights go on untouched"


@pytest.mark.parametrize(
    ("options", "step", "decay"),
    [
        (Options(), 1, 2 / 11),
        (Options(), 600, 601 / 610),
        (Options(), 1790, 1791 / 1800),
        (Options(), 1791, 0.995),
        (Options(), 10**6, 0.995),
        (Options(window=0.5), 2, 3 / 4),
        (Options(max_decay=0.9), 100, 0.9),
    ],
)
def test_the_window_grows_up_to_a_cap(options: Options, step: int, decay: float) -> None:
    assert options.decay(step) == pytest.approx(decay, rel=1e-12)


def adapted(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == "lora":
        return get_peft_model(text_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    return models.adapted(text_model(), name)


def move(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)


def chunk(model: nn.Module, folder: Path, slow: SlowWeights) -> Path:
    """A host's checkpoint with both sets."""
    model.save_pretrained(folder)
    slow.save(folder, adapter_tensors(model))
    return folder


@pytest.mark.parametrize("name", ["lora", "strlora", "smolora", "branchlora"])
def test_both_sets_are_the_adapter_s_own_tensors(tmp_path: Path, name: str) -> None:
    model = adapted(name)
    tensors = adapter_tensors(model)
    slow = SlowWeights(tensors, Options())
    start = {key: value.clone() for key, value in slow.average.items()}
    move(model, 1)
    slow.step(tensors)
    folder = chunk(model, tmp_path / "checkpoint", slow)
    check_slow_file(folder)
    found, fast = load_file(folder / FILE), load_file(folder / WEIGHTS)
    for key, value in fast.items():
        averaged = isinstance(tensors[key], nn.Parameter)
        expected = start[key] + 9 / 11 * (value - start[key]) if averaged else value
        torch.testing.assert_close(found[key], expected)
        assert torch.equal(found[key], value) == (not averaged or torch.equal(value, start[key]))
    assert sum(isinstance(value, nn.Parameter) for value in tensors.values()) >= 4

    part_sets(folder, "slow")
    check_sets(folder, "slow")
    assert inner_weights(folder) == [f"fast/{WEIGHTS}"]
    for kind, wanted in (("slow", found), ("fast", fast)):
        loaded = PeftModel.from_pretrained(text_model(), planned_set(folder, kind, "slow"))
        held = adapter_tensors(loaded)
        assert all(torch.equal(held[key], value) for key, value in wanted.items())


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = adapted("lora")
    tensors = adapter_tensors(model)
    whole, half = SlowWeights(tensors, Options()), SlowWeights(tensors, Options())
    for step in range(6):
        move(model, step)
        whole.step(tensors)
        if step == 2:
            half = SlowWeights(tensors, Options(state=str(half.save(tmp_path, tensors))))
        half.step(tensors)
    assert whole.steps == half.steps == 6
    assert all(torch.equal(half.average[key], value) for key, value in whole.average.items())
    assert read_steps(half.save(tmp_path, tensors)) == 6


def test_equal_sets_are_equal_bytes(tmp_path: Path) -> None:
    """Metadata of two entries come out in either order; of 16 files one was different, as good as
    surely, before they were sorted."""
    model = adapted("lora")
    slow = SlowWeights(adapter_tensors(model), Options())
    tensors = adapter_tensors(model)
    paths = [slow.save(tmp_path / str(number), tensors) for number in range(16)]
    assert len({path.read_bytes() for path in paths}) == 1
    found = load_file(paths[0])
    assert all(torch.equal(found[name], value) for name, value in slow.average.items())
    save_file(found, tmp_path / "plain", {"format": "pt", STEPS: "0"})
    assert (tmp_path / "plain").stat().st_size == paths[0].stat().st_size
    with safe_open(paths[0], "pt") as file:
        assert file.metadata() == {"format": "pt", STEPS: "0"}


def test_answering_with_the_fast_set_keeps_the_slow_one_inside(tmp_path: Path) -> None:
    model = adapted("lora")
    folder = chunk(model, tmp_path / "a", SlowWeights(adapter_tensors(model), Options()))
    fast, slow = (folder / WEIGHTS).read_bytes(), (folder / FILE).read_bytes()
    part_sets(folder, "fast")
    check_sets(folder, "fast")
    assert (folder / WEIGHTS).read_bytes() == fast
    assert (planned_set(folder, "slow", "fast") / WEIGHTS).read_bytes() == slow
    with pytest.raises(AdapterError, match="fast is missing, but the recipe uses slow_weights"):
        check_sets(folder, "slow")


def test_a_state_that_cannot_be_gone_on_from_is_refused(tmp_path: Path) -> None:
    model = adapted("lora")
    tensors = adapter_tensors(model)
    path = SlowWeights(tensors, Options()).save(tmp_path, tensors)
    good, (first, *_) = load_file(path), tensors
    nan = good[first] * float("nan")

    def refused(content: dict[str, Tensor], metadata: dict[str, str], message: str) -> None:
        save_file(content, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            SlowWeights(tensors, Options(state=str(path)))

    steps = {STEPS: "3"}
    refused({k: v for k, v in good.items() if k != first}, steps, "found nothing, expected")
    refused({**good, first: good[first][:1].clone()}, steps, r"found torch.float32 \(1, ")
    refused({**good, first: good[first].half()}, steps, "found torch.float16")
    refused({**good, first: nan}, steps, "holds NaN or infinity")
    refused(good, {}, "holds no slow weights")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is damaged"):
        SlowWeights(tensors, Options(state=str(path)))
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        SlowWeights(tensors, Options(state=str(path)))


def test_a_checkpoint_without_both_whole_sets_is_refused(tmp_path: Path) -> None:
    model = adapted("lora")
    folder = chunk(model, tmp_path / "a", SlowWeights(adapter_tensors(model), Options()))
    other = shutil.copytree(folder, tmp_path / "b")
    content = load_file(folder / FILE)
    name = min(content)
    save_file({k: v for k, v in content.items() if k != name}, folder / FILE, {STEPS: "1"})
    with pytest.raises(AdapterError, match=rf"does not hold the tensors of {WEIGHTS}: {name}"):
        check_slow_file(folder)
    (other / FILE).unlink()
    with pytest.raises(AdapterError, match="is missing, but the recipe uses slow_weights"):
        check_slow_file(other)


def test_options_as_the_host_exports_them() -> None:
    given = {"SLOW_WEIGHTS_WINDOW": "0.2", "SLOW_WEIGHTS_STATE": "a/b", "OTHER": "x"}
    assert Options.from_environment(given) == Options(window=0.2, state="a/b")
    for key, text, message in (
        ("WINDO", "1", "slow_weights_windo is no option"),
        ("WINDOW", "wide", "slow_weights_window = 'wide' cannot be read"),
        ("MAX_DECAY", "1", "slow_weights_max_decay = '1' cannot be read"),
        ("MAX_DECAY", "nan", "slow_weights_max_decay = 'nan' cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            Options.from_environment({f"SLOW_WEIGHTS_{key}": text})
