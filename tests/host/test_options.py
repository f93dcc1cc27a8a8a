"""Options of the real host that decide what trains: targets, modules, quantisation, max_length."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from tests.host.swift import attempt, logged, make_chunk, run, train_arguments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chunk(tmp_path_factory):
    return make_chunk(tmp_path_factory.mktemp("options") / "1.jsonl", 8)


def saved_modules(folder) -> set[str]:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return {key.removeprefix("base_model.model.").rpartition(".")[0] for key in file.keys()}  # noqa: SIM118


def short(chunk, out, **changes):
    return train_arguments(chunk, out, max_steps=1, save_steps=1, **changes)


def test_targets_by_regex_and_modules_in_full(chunk, tmp_path):
    regex = r"model\.language_model\.layers\.[12]\.self_attn\.[qv]_proj"
    more = {"target_regex": regex, "modules_to_save": ["model.language_model.norm"]}
    output = run("sft", short(chunk, tmp_path / "out", **more))
    assert "new adapter, 4 layers routed" in output
    routed = {
        f"model.language_model.layers.{layer}.self_attn.{part}_proj.strlora_mixture"
        for layer in (1, 2)
        for part in "qv"
    }
    modules = saved_modules(tmp_path / "out" / "checkpoint-1")
    assert modules == routed | {"model.language_model.norm", "base_model.strlora_statistics"}


def test_a_prompt_cut_on_the_left_has_an_empty_instruction(chunk, tmp_path):
    more = {"truncation_strategy": "left", "max_length": 22}
    code, output = attempt("sft", short(chunk, tmp_path / "out", **more))
    assert code != 0
    assert "no row of the first batch holds an instruction" in output
    assert "max_length" in output


def test_too_long_samples_are_left_out_by_default(chunk, tmp_path):
    code, output = attempt("sft", short(chunk, tmp_path / "out", max_length=22))
    assert code != 0
    assert "max_length" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_vit": "false"}, "its layers cannot be routed"),
        ({"use_rslora": "true"}, "--tuner_type strlora does not read --use_rslora True"),
        ({"target_modules": ["no_such_layer"]}, "matches no layer of the model"),
    ],
)
def test_options_that_cannot_work_are_refused(chunk, tmp_path, changes, message):
    code, output = attempt("sft", short(chunk, tmp_path / "out", **changes))
    assert code != 0
    assert message in output


def test_a_quantised_base_trains_and_goes_on(chunk, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes (works on CPU)")
    quantised = {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_compute_dtype": "float32"}
    run("sft", short(chunk, tmp_path / "1", **quantised))
    output = run(
        "sft", short(chunk, tmp_path / "2", adapters=tmp_path / "1" / "checkpoint-1", **quantised)
    )
    assert "28 layers routed" in output
    assert logged(tmp_path / "2")[0]["loss"] > 0
