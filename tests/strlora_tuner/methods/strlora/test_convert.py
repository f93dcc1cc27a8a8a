"""Adapters of the published layout, in other sizes than the stored one, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

import strlora_tuner
from strlora_tuner.convert import convert, main
from tests.strlora_tuner.methods.strlora.published import (
    Published,
    Settings,
    read_fixture,
    text_base,
)
from tests.strlora_tuner.models import internvl_model

FIXTURE = Path(__file__).parents[3] / "fixtures" / "released_checkpoint"


def batch_of(seed: int, rows: int) -> tuple[dict, torch.Tensor]:
    """Returns a right-padded batch with labels, and padded instruction ids."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(2, 90, shape, generator=generator)  # noqa: E731
    ids, text = draw(rows, 12), draw(rows, 7)
    ids[-1, 9:], text[-1, 4:] = 0, 0
    labels = ids.clone()
    labels[:, :4], labels[ids == 0] = -100, -100
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}, text


def assert_same(published: Published, folder: Path, base: torch.nn.Module, seed: int) -> None:
    """Compares logits, both losses, and the gradients of two layers."""
    batch, text = batch_of(seed, rows=3)
    published.see(text)
    published.base.eval()
    with torch.no_grad():
        wanted = published.base(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()
    with torch.no_grad(), strlora_tuner.instruction_ids(model, text):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)

    loss, term = published.losses(batch)
    model.train()
    with strlora_tuner.instruction_ids(model, text):
        found = model(**batch).loss
        found.backward()
    torch.testing.assert_close(found.detach(), loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(strlora_tuner.stability_loss(model), term, rtol=0, atol=1e-6)
    for name, mixture in list(model.base_model.mixtures())[:: len(published.layers) - 1]:
        for part, gradient in published.gradients(name).items():
            ours = getattr(mixture, part).grad
            ours = torch.zeros_like(gradient) if ours is None else ours
            torch.testing.assert_close(ours, gradient, rtol=0, atol=1e-6, msg=f"{name} {part}")


def test_the_loop_computes_what_the_published_code_stored():
    expected = json.loads((FIXTURE / "expected.json").read_text())
    published = read_fixture(FIXTURE, Settings())
    stored = load_file(FIXTURE / "io.safetensors")
    published.see(stored["text_ids"])
    loss, term = published.losses(
        {name: stored[name] for name in ("input_ids", "attention_mask", "labels")}
    )
    assert loss.item() == pytest.approx(expected["loss_lm"], abs=1e-5)
    assert term.item() == pytest.approx(expected["loss_stability_times_lambda"], abs=1e-6)
    gradients = published.gradients("model.layers.1.self_attn.q_proj")
    file = load_file(FIXTURE / "gradients_q_proj_layer1.safetensors")
    key = next(k for k in file if k.endswith("lora_attn_wq.weight"))
    torch.testing.assert_close(gradients["query"], file[key], rtol=0, atol=1e-6)


@st.composite
def published_settings(draw):
    experts = draw(st.integers(1, 6))
    top_k = draw(st.integers(1, experts))
    return Settings(
        experts=experts,
        rank=experts * draw(st.integers(1, 3)),
        alpha=draw(st.sampled_from([8, 16, 24.0])),
        top_k=top_k,
        token_top_k=draw(st.integers(1, top_k)),
        width=draw(st.sampled_from([2, 5, 16, 24])),
        stability_weight=draw(st.sampled_from([0.0, 0.1, 0.5])),
        temperature=draw(st.sampled_from([1.0, 2.0])),
        ema=draw(st.booleans()),
    )


@settings(max_examples=4, deadline=None, derandomize=True)
@given(published_settings(), st.integers(0, 999))
def test_adapters_of_any_size_give_the_published_numbers(tmp_path_factory, chosen, seed):
    folder = tmp_path_factory.mktemp("published")
    published = Published(text_base(seed), chosen, seed)
    published.save(folder / "source")
    convert(folder / "source", folder / "ours")
    assert_same(published, folder / "ours", text_base(seed), seed)


def remote_code_name(name: str) -> str:
    """Returns the name that a module of HF-native InternVL has in the remote-code model."""
    name = name.replace("model.language_model.", "language_model.model.")
    for number, part in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
        name = name.replace(f"model.multi_modal_projector.{part}", f"mlp1.{number}")
    return name


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A published adapter of remote-code InternVL with a trained aligner."""
    folder = tmp_path_factory.mktemp("remote") / "source"
    base = internvl_model()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "multi_modal_projector" in name:
                parameter.normal_()
    aligner = {
        f"base_model.model.{remote_code_name(name)}": value.clone()
        for name, value in base.state_dict().items()
        if "multi_modal_projector" in name
    }
    published = Published(base, Settings(experts=2, rank=4, top_k=1), seed=3)
    published.save(folder, remote_code_name, aligner)
    return published, folder, aligner


def test_remote_code_internvl_is_mapped_and_its_aligner_kept(remote, tmp_path):
    published, source, aligner = remote
    assert all(".mlp1." in key for key in aligner)
    convert(source, tmp_path / "ours")
    assert_same(published, tmp_path / "ours", internvl_model(), seed=1)
    model = PeftModel.from_pretrained(internvl_model(), str(tmp_path / "ours"))
    for name, value in published.base.state_dict().items():
        if "multi_modal_projector" in name:
            part = name.removeprefix("model.multi_modal_projector.")
            ours = model.base_model.model.model.multi_modal_projector.modules_to_save["default"]
            assert torch.equal(ours.get_parameter(part), value), name


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "source"
    Published(text_base(0), Settings(), seed=0).save(folder)
    return folder


def changed(source: Path, folder: Path, file: str, change) -> Path:
    """Returns a copy of `source` in which `change` was applied to the content of `file`."""
    target = folder / "source"
    shutil.copytree(source, target)
    content = torch.load(target / file, weights_only=True)
    torch.save(change(content) or content, target / file)
    return target


def first(content: dict, part: str) -> str:
    return next(key for key in content if part in key)


def set_first(part: str, value):
    """Returns a change: the first key that contains `part` gets `value(old)`."""

    def change(content: dict) -> None:
        key = first(content, part)
        content[key] = value(content[key])

    return change


def drop_first(part: str):
    """Returns a change: the first key that contains `part` goes."""

    def change(content: dict) -> None:
        del content[first(content, part)]

    return change


ADAPTER, AVERAGES, OTHERS = "adapter_model.bin", "router_distill_ema.bin", "non_lora_trainables.bin"
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (ADAPTER, drop_first("lora_attn_wk"), f"{Q_PROJ}: lora_attn_wk.weight is missing"),
        (ADAPTER, drop_first("loraB.3"), "lora_B holds experts [0, 1, 2]"),
        (ADAPTER, lambda c: c.update({"x.lora_attn_new": torch.ones(1)}), "x.lora_attn_new: unkno"),
        (ADAPTER, lambda c: c.update({"lm_head.weight": torch.ones(1)}), "lm_head.weight: unknown"),
        (ADAPTER, lambda c: c.clear(), "has a moving average but no layer"),
        (ADAPTER, set_first("loraA.1", lambda t: t[:, :-1]), "experts of lora_A have shapes"),
        (ADAPTER, set_first("expert_proto", lambda t: t[:, :3]), "prototypes has shape (4, 3), ex"),
        (ADAPTER, set_first("lora_router", lambda t: t[:3]), "task has shape (3, 48), expected (4"),
        (ADAPTER, set_first("wq", lambda t: t * float("nan")), "holds values that are not finite"),
        (ADAPTER, set_first("wq", lambda t: "text"), "holds a str, expected a tensor"),
        (ADAPTER, lambda c: [1, 2], "holds a list, expected a dict"),
        (AVERAGES, drop_first(Q_PROJ), f"{Q_PROJ}: its moving average is missing"),
        (AVERAGES, lambda c: drop_first("wq")(c[Q_PROJ]), f"{Q_PROJ}: attn_wq_weight is missing"),
        (AVERAGES, set_first(Q_PROJ, lambda d: d["attn_wq_weight"]), "holds a Tensor, expected"),
        (AVERAGES, lambda c: c[Q_PROJ].update(new=torch.ones(1)), "unknown moving average new"),
        (AVERAGES, lambda c: c.update(other={}), "other: has a moving average but no layer"),
        (AVERAGES, set_first(Q_PROJ, lambda d: {k: v[:2] for k, v in d.items()}), "ema_query has"),
        (OTHERS, lambda c: c.update({"lm_head.weight": torch.ones(1)}), "only the aligner"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(source, tmp_path, capsys, file, change, message):
    damaged = changed(source, tmp_path, file, change)
    assert main(["--from", str(damaged), "--to", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("file", [ADAPTER, AVERAGES, OTHERS])
@pytest.mark.parametrize("damage", ["code", "truncated", "text"])
def test_a_pickle_that_is_damaged_or_runs_code_is_refused(source, tmp_path, capsys, file, damage):
    shutil.copytree(source, tmp_path / "source")
    path = tmp_path / "source" / file
    if damage == "code":
        torch.save({"a": Payload()}, path)
    else:
        path.write_bytes(path.read_bytes()[:-40] if damage == "truncated" else b"hello\n")
    assert main(["--from", str(tmp_path / "source"), "--to", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "weights-only loader cannot read it" in captured.err
    assert str(path) in captured.err
    assert "executed" not in captured.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_proj_dim": 0}, "attn_proj_dim is 0"),
        ({"expert_num": 3}, "rank = 8 cannot be divided"),
        ({"r": "many"}, "rank"),
        ({"topk": None}, "not a published StrLoRA configuration"),
        ({"r": ...}, "key 'r' is missing"),
    ],
)
def test_a_wrong_configuration_is_refused(source, tmp_path, capsys, change, message):
    shutil.copytree(source, tmp_path / "source")
    path = tmp_path / "source" / "adapter_config.json"
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    assert main(["--from", str(tmp_path / "source"), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "adapter_config.json" in error


def test_folders_are_checked(source, tmp_path, capsys):
    assert main(["--from", str(tmp_path / "none"), "--to", str(tmp_path / "out")]) == 1
    assert main(["--from", str(source), "--to", str(source)]) == 1
    (tmp_path / "file").touch()
    assert main(["--from", str(source), "--to", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert "no such file; --from must name a published adapter" in error
    assert "--to is the published adapter itself" in error
    assert f"File exists: '{tmp_path}/file'" in error
