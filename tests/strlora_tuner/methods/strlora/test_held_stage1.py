"""What holds stage 1 over the stream: its average, the statistics, and how old adapters load."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.config import PeftConfigMixin
from safetensors.torch import load_file, save_file

import strlora_tuner
from strlora_tuner.core.carry import carried_config
from strlora_tuner.methods.strlora.config import Config
from strlora_tuner.methods.strlora.instruction_statistics import InstructionStatistics
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.saved import CONFIG, WEIGHTS, AdapterError, check_adapter
from tests.strlora_tuner.models import END, IMAGE, PAD, USER, adapted, prompts, text_model


def batch(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + seed


def moments(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The float64 mean of (N, H) and the mean squared distance from it."""
    mean = vectors.double().mean(0)
    return mean, ((vectors.double() - mean) ** 2).sum() / len(vectors)


@pytest.mark.parametrize("share", [None, 0.0, 0.25])
def test_a_step_moves_the_statistics_by_its_share(share):
    """Against the mixture of both distributions: weights 1 - share and share, or the counts."""
    first, second = batch(0, 5), batch(3, 3)
    statistics = InstructionStatistics(6)
    for vectors, part in ((first, None), (second, share)):
        statistics.observe(vectors, torch.ones(len(vectors), dtype=torch.bool))
        statistics.commit(part)
    weight = 3 / 8 if share is None else share
    (old, old_variance), (new, new_variance) = moments(first), moments(second)
    mean = (1 - weight) * old + weight * new
    variance = (1 - weight) * (old_variance + ((old - mean) ** 2).sum())
    variance = variance + weight * (new_variance + ((new - mean) ** 2).sum())
    count = 5 if share == 0 else 8
    assert int(statistics.count) == count
    torch.testing.assert_close(statistics.mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((statistics.spread / count).double(), variance, rtol=1e-6, atol=0)
    before = statistics.mean.clone()
    statistics.commit(share)  # nothing is pending
    assert torch.equal(statistics.mean, before)


def test_a_step_without_instructions_and_a_first_step_have_no_share():
    statistics = InstructionStatistics(6)
    statistics.observe(batch(0, 5), torch.ones(5, dtype=torch.bool))
    statistics.commit(0.25)
    mean, variance = moments(batch(0, 5))
    for _ in range(2):
        torch.testing.assert_close(statistics.mean.double(), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close((statistics.spread / 5).double(), variance, rtol=1e-6, atol=0)
        statistics.observe(batch(3, 3), torch.zeros(3, dtype=torch.bool))
        statistics.commit(0.25)


def learn(model) -> None:
    """One step that moves every trainable weight, then what follows a step."""
    model.train()(**prompts()).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad.sign())
                parameter.grad = None
    strlora_tuner.after_optimizer_step(model)


@pytest.mark.parametrize(
    ("moves", "weight", "held"),
    [("hold", 0.1, True), ("slow", 0.1, False), ("count", 0.1, False), ("hold", 0.0, False)],
)
def test_the_instructions_statistics_are_held_from_the_second_chunk_on(
    tmp_path, moves, weight, held
):
    model = adapted(text_model(), instruction_statistics=moves, stability_weight=weight)
    statistics = model.base_model.statistics()
    for _ in range(2):
        count = int(statistics.count)
        learn(model)
        assert int(statistics.count) > count, "the first chunk has no other statistics"
    model.base_model.begin_chunk()
    mean, count = statistics.mean.clone(), int(statistics.count)
    learn(model)
    assert torch.equal(statistics.mean, mean) == held
    assert (int(statistics.count) == count) == held
    if moves == "slow":  # the batch differs from the mean by what one step in a thousand is
        wanted = mean.double() + 0.001 * (mean_instruction(model) - mean.double())
        torch.testing.assert_close(statistics.mean.double(), wanted, rtol=1e-6, atol=1e-7)
    model.save_pretrained(tmp_path)  # a chunk that is interrupted goes on as it began
    assert Config.from_pretrained(str(tmp_path)).goes_on


def mean_instruction(model) -> torch.Tensor:
    """The mean over the batch of each row's mean embedding of the user's words, (H) float64."""
    embed = model.get_input_embeddings().weight.double()
    rows = []
    for ids in prompts()["input_ids"].tolist():
        turn = ids[ids.index(USER) + 1 : ids.index(END)]
        rows.append(torch.stack([embed[i] for i in turn if i not in (PAD, IMAGE)]).mean(0))
    return torch.stack(rows).mean(0)


def test_the_average_of_stage_1_follows_it():
    model = adapted(text_model(), ema_decay=0.9)
    layers = [mixture for _, mixture in model.base_model.mixtures()]
    before = [mixture.ema_task.double().clone() for mixture in layers]
    learn(model)
    for old, mixture in zip(before, layers, strict=True):
        wanted = 0.9 * old + 0.1 * mixture.task.detach().double()
        torch.testing.assert_close(mixture.ema_task.double(), wanted, rtol=1e-5, atol=1e-6)


def old_adapter(folder, **options):
    """Saves an adapter as it was before R had an average; returns the folder."""
    model = adapted(text_model(), stability_on="scores", instruction_statistics="count", **options)
    model.save_pretrained(folder)
    content = json.loads((folder / CONFIG).read_text())
    for key in ("stability_on", "instruction_statistics", "instruction_turns", "goes_on"):
        del content[key]
    (folder / CONFIG).write_text(json.dumps(content))
    assert not any("ema_task" in name for name in load_file(folder / WEIGHTS))
    return folder


def test_an_adapter_without_an_average_of_r_keeps_its_rule_and_says_so(tmp_path, caplog):
    folder = old_adapter(tmp_path)
    check_adapter(folder, Options)
    with caplog.at_level(logging.WARNING):
        saved = Config.from_pretrained(str(folder))
        told = [record.getMessage() for record in caplog.records]
        paper = {"stability_on": "gate", "instruction_statistics": "hold", "stability_weight": 0.7}
        config, _ = carried_config(saved, paper, "chunk-1")
        model = PeftModel.from_pretrained(text_model(), str(folder), config=config,
                                          is_trainable=True)  # fmt: skip
    assert len(told) == len(caplog.records) == 1
    assert f"{folder} carries no average of R" in told[0]
    assert (config.stability_on, config.stability_weight) == ("scores", 0.7)
    model.base_model.begin_chunk()
    count = int(model.base_model.statistics().count)
    learn(model)
    assert int(model.base_model.statistics().count) > count, "statistics go on counting"
    model.save_pretrained(tmp_path / "next")
    check_adapter(tmp_path / "next", Options, previous=folder)


def test_the_rule_of_an_old_adapter_holds_however_its_file_is_read(tmp_path):
    folder = str(old_adapter(tmp_path))
    # ms-swift replaces PeftConfigMixin.from_pretrained by one that knows no class but PEFT's own.
    foreign = PeftConfigMixin.from_pretrained(folder)
    for config in (PeftConfig.from_pretrained(folder), Config.from_pretrained(folder), foreign):
        assert isinstance(config, Config)
        found = (config.stability_on, config.instruction_statistics, config.instruction_turns)
        assert found == ("scores", "count", "all")
    assert Config(r=8, num_experts=2, target_modules=["x"]).stability_on == "gate"


def test_a_released_adapter_has_nothing_to_say(tmp_path, caplog):
    folder = old_adapter(tmp_path, task_router="frozen")
    Config.from_pretrained(str(folder))
    assert not caplog.records


def test_an_average_of_r_is_not_lost_on_the_way(tmp_path):
    adapted(text_model()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stability_on is 'gate' in the adapter and 'scores'"):
        carried_config(Config.from_pretrained(str(tmp_path)), {"stability_on": "scores"}, "chunk-1")
    tensors = load_file(tmp_path / WEIGHTS)
    some = next(name for name in tensors if name.endswith("ema_task"))
    save_file({k: v for k, v in tensors.items() if k != some}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="lacks ema_task"):
        check_adapter(tmp_path, Options)
    with pytest.raises(ValueError, match="missing ema_task"):
        PeftModel.from_pretrained(text_model(), str(tmp_path))
