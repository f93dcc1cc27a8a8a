"""Every way to load an adapter gives the logits that were saved: way x tuner, see docs/tuner.md."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    pipeline,
)

from strlora_tuner.methods import tuner_types
from strlora_tuner.training_loop import tuner_of
from tests.strlora_tuner.models import (
    LANGUAGE_LINEARS,
    METHODS,
    MODELS,
    STRLORA,
    TOKENIZER,
    adapted,
    base_model,
    logits,
    prompts,
)

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
AUTO = {"text": AutoModelForCausalLM, "internvl": AutoModelForImageTextToText}


def from_auto(name, base, adapter, **dtype):
    return AUTO[name].from_pretrained(str(adapter), **dtype)


def load_adapter(name, base, adapter, **dtype):
    model = AUTO[name].from_pretrained(base, **dtype)
    model.load_adapter(str(adapter))
    return model


def peft_model(name, base, adapter, **dtype):
    return PeftModel.from_pretrained(AUTO[name].from_pretrained(base, **dtype), str(adapter))


def auto_peft(name, base, adapter, **dtype):
    return AutoPeftModelForCausalLM.from_pretrained(str(adapter), **dtype)


def from_pipeline(name, base, adapter, **dtype):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return pipeline("text-generation", model=str(adapter), tokenizer=tokenizer, **dtype).model


WAYS = {
    "PeftModel.from_pretrained": peft_model,
    "AutoPeftModelForCausalLM.from_pretrained": auto_peft,
    "AutoModelFor...from_pretrained(ADAPTER)": from_auto,
    "model.load_adapter": load_adapter,
    "pipeline(model=ADAPTER)": from_pipeline,
}
SWIFT = "swift infer --adapters"
# PEFT's loader and the two ways into that of transformers; the others end in one of them.
LOADERS = [peft_model, from_auto, load_adapter]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Returns (base folder, adapter folder, what the model said) of a tuner, saved once."""
    made: dict = {}

    def get(tuner: str, name: str = "text", dtype=torch.float32):
        if (tuner, name, dtype) not in made:
            folder = tmp_path_factory.mktemp("doors")
            base_model(name).save_pretrained(folder / "base")
            for file in TOKENIZER.glob("tokenizer*"):
                shutil.copy(file, folder / "base")
            base = AUTO[name].from_pretrained(folder / "base", dtype=dtype)
            model = trained(base, tuner)
            model.save_pretrained(folder / "adapter")
            made[tuner, name, dtype] = folder / "base", folder / "adapter", logits(model.eval())
        return made[tuner, name, dtype]

    return get


def test_the_page_shows_this_table():
    page = (Path(__file__).parents[2] / "docs" / "tuner.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    cells = {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells["way"] == list(tuner_types())
    for way in (*WAYS, SWIFT):
        assert cells[way] == ["same"] * len(tuner_types()), way


def trained(base, tuner):
    if tuner != "lora":
        return adapted(base, tuner)
    settings = LoraConfig(r=8, target_modules=LANGUAGE_LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    torch.manual_seed(1)
    for key, value in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(value, std=0.2)
    return model


@pytest.mark.parametrize("tuner", tuner_types())
@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_gives_the_same_logits(way, tuner, store):
    base, adapter, wanted = store(tuner)
    model = WAYS[way]("text", base, adapter).eval()
    assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model, prompts(seed=3)), logits(model, prompts(seed=3)))
    assert torch.equal(logits(model), wanted), "a prompt must leave nothing behind"


IN_THE_HOST = """
import sys, torch
from pathlib import Path
from strlora_tuner.methods.oracle import model as oracle
oracle.task_label = lambda text: f"{len(text) % 3} a task"  # as in conftest.py
from strlora_tuner.swift_plugins import routed_tuners
from swift.tuner_plugin import tuners_map
from swift.tuners import Swift
from tests.strlora_tuner.models import logits
from tests.strlora_tuner.test_doors import AUTO, WAYS
for tuner, base, adapter, wanted in [line.split() for line in sys.stdin]:
    own = tuners_map[tuner].from_pretrained if tuner in tuners_map else Swift.from_pretrained
    ways = {name: lambda w=way: w("text", base, adapter) for name, way in WAYS.items()}
    ways["the host's tuner"] = lambda: own(AUTO["text"].from_pretrained(base), adapter)
    ways["Swift"] = lambda: Swift.from_pretrained(AUTO["text"].from_pretrained(base), adapter)
    for name, way in ways.items():
        assert torch.equal(logits(way().eval()), torch.load(wanted)), (tuner, name)
"""


@pytest.mark.slow
def test_the_host_loads_the_same_and_so_does_all_else_beside_it(store, tmp_path):
    lines = []
    for tuner in tuner_types():
        base, adapter, wanted = store(tuner)
        torch.save(wanted, tmp_path / f"{tuner}.pt")
        lines.append(f"{tuner} {base} {adapter} {tmp_path / tuner}.pt")
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_HOST],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_gives_the_same_logits_in_half_precision(way, dtype, store):
    base, adapter, wanted = store(STRLORA, dtype=dtype)
    model = WAYS[way]("text", base, adapter, dtype=dtype).eval()
    assert model.dtype == dtype
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("way", LOADERS)
def test_a_vision_language_model_is_loaded_the_same(way, store):
    base, adapter, wanted = store(STRLORA, "internvl")
    assert torch.equal(logits(way("internvl", base, adapter).eval()), wanted)
    base, adapter, wanted = store("branchlora", "internvl")
    assert torch.equal(logits(way("internvl", base, adapter).eval()), wanted)


def generated(model):
    ids = prompts()["input_ids"][:1, :4]
    keys = dict(attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return model.generate(input_ids=ids, eos_token_id=None, pad_token_id=0, **keys).tolist()


@pytest.mark.parametrize("tuner", [STRLORA, *METHODS])
def test_a_transformers_model_switches_copies_saves_and_deletes(tuner, store, tmp_path):
    base, adapter, wanted = store(tuner)
    plain = logits(AUTO["text"].from_pretrained(base))
    other = adapted(base_model("text"), tuner, seed=9).eval()
    other.save_pretrained(tmp_path / "other")
    model = load_adapter("text", base, adapter)
    reference = peft_model("text", base, adapter)
    assert generated(model) == generated(reference)
    model.load_adapter(str(tmp_path / "other"), adapter_name="two")
    assert torch.equal(logits(model), logits(other))
    model.set_adapter("default")
    assert torch.equal(logits(model), wanted)
    assert tuner_of(model).active_adapters == ["default"]
    twin = copy.deepcopy(model)
    assert tuner_of(twin) is not tuner_of(model)
    assert tuner_of(twin).routing is not tuner_of(model).routing
    assert torch.equal(logits(twin), wanted)
    model.disable_adapters()
    assert torch.equal(logits(model), plain)
    model.enable_adapters()
    model.save_pretrained(tmp_path / "again")
    for way in (peft_model, load_adapter):
        assert torch.equal(logits(way("text", base, tmp_path / "again")), wanted)
    model.delete_adapter("default")
    model.load_adapter(str(tmp_path / "other"), adapter_name="default")
    assert torch.equal(logits(model), logits(other))
    with pytest.raises(ValueError, match="load it into a base model of its own"):
        model.load_adapter(str(store("moelora" if tuner != "moelora" else "olora")[1]), "three")


def test_one_of_pefts_own_beside_ours_is_left_to_transformers(store):
    model = load_adapter("text", *store(STRLORA)[:2])
    model.load_adapter(str(store("lora")[1]), adapter_name="lora")
    assert model.active_adapters() == ["lora"]


def edit(adapter, change, to):
    shutil.copytree(adapter, to)
    tensors = load_file(to / FILE)
    change(tensors)
    save_file(tensors, to / FILE, metadata={"format": "pt"})
    return to


CHANGES = {
    "lacks its state": (
        lambda t: [t.pop(k) for k in list(t) if "strlora_statistics" in k],
        "strlora_statistics: missing count, missing mean",
    ),
    "lacks a part": (
        lambda t: t.pop(next(k for k in t if k.endswith("q_proj.strlora_mixture.B"))),
        "q_proj: missing B",
    ),
    "holds something unknown": (
        lambda t: t.update({"base_model.model.model.extra": torch.ones(1)}),
        "unexpected extra",
    ),
    "has another shape": (
        lambda t: t.update(
            {k: torch.ones(1, 1) for k in t if k.endswith("mlp.up_proj.strlora_mixture.A")}
        ),
        r"up_proj: A has shape \(1, 1\), this model needs",
    ),
    "is not finite": (
        lambda t: next(v for k, v in t.items() if k.endswith(".A")).fill_(float("nan")),
        "holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("way", LOADERS)
def test_no_state_is_dropped_or_missing_in_silence(way, change, store, tmp_path):
    base, adapter, _ = store(STRLORA)
    damage, message = CHANGES[change]
    damaged = edit(adapter, damage, tmp_path / "damaged")
    with pytest.raises(ValueError, match=message):
        way("text", base, damaged)


def test_what_could_not_be_loaded_leaves_the_base(store, tmp_path):
    base, adapter, _ = store(STRLORA)
    damaged = edit(adapter, CHANGES["lacks its state"][0], tmp_path / "damaged")
    model = AUTO["text"].from_pretrained(base)
    plain = logits(model)
    with pytest.raises(ValueError, match="does not fit"):
        model.load_adapter(str(damaged))
    assert torch.equal(logits(model), plain)
    model.load_adapter(str(adapter))
    assert torch.equal(logits(model), store(STRLORA)[2])


def with_fields(adapter, to, **more):
    shutil.copytree(adapter, to)
    config = json.loads((to / CONFIG).read_text())
    (to / CONFIG).write_text(json.dumps({**config, **more}))
    return to


@pytest.mark.parametrize("way", LOADERS)
def test_fields_of_a_newer_peft_are_ignored_with_its_own_warning(way, store, tmp_path):
    base, adapter, wanted = store(STRLORA)
    newer = with_fields(adapter, tmp_path / "newer", peft_version="99.0.1", late_field=None)
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['late_field'\]"):
        model = way("text", base, newer).eval()
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("way", LOADERS)
@pytest.mark.parametrize("more", [{}, {"peft_version": "0.10.0"}, {"peft_version": None}])
def test_an_option_of_a_newer_tuner_is_refused(way, more, store, tmp_path):
    base, adapter, _ = store(STRLORA)
    newer = with_fields(adapter, tmp_path / "newer", late_option=1, **more)
    with pytest.raises(ValueError, match=r"late_option.*newer version of strlora_tuner"):
        way("text", base, newer)


@pytest.mark.parametrize("way", [peft_model, load_adapter])
def test_a_base_that_moved_is_given_by_its_user(way, store, tmp_path):
    base, adapter, wanted = store("smolora")  # reads the tokenizer beside the base
    moved = with_fields(adapter, tmp_path / "moved", base_model_name_or_path="/gone/base")
    shutil.copytree(base, tmp_path / "base")
    assert torch.equal(logits(way("text", tmp_path / "base", moved).eval()), wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_that_train_are_loaded_in_every_way(tied, tmp_path):
    base = MODELS["text"](tie_word_embeddings=tied)
    base.save_pretrained(tmp_path / "base")
    base = AUTO["text"].from_pretrained(tmp_path / "base")
    model = adapted(base, modules_to_save=["embed_tokens", "lm_head"][: 1 if tied else 2])
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "modules_to_save" in key:
                value.add_(torch.randn_like(value), alpha=0.1)
    before = logits(model.train())  # a forward in training sees the prompt, too
    model.eval()
    wanted = logits(model)
    assert before.shape == wanted.shape
    model.save_pretrained(tmp_path / "adapter")
    for way in (peft_model, auto_peft, from_auto, load_adapter):
        loaded = way("text", tmp_path / "base", tmp_path / "adapter").eval()
        assert torch.equal(logits(loaded), wanted), way.__name__
    # An adapter that trains them beside one that does not: each keeps its own.
    first = adapted(AUTO["text"].from_pretrained(tmp_path / "base"), seed=4).eval()
    alone = logits(first)
    first.load_adapter(str(tmp_path / "adapter"), adapter_name="two")
    first.set_adapter("two")
    assert torch.equal(logits(first), wanted)
    first.set_adapter("default")
    assert torch.equal(logits(first), alone)
    modules = sum(1 for _ in first.modules())
    assert modules < 400, "no second copy of the model hangs on a copied embedding"


def test_a_resized_vocabulary_is_loaded_again(tmp_path):
    base_model("text").save_pretrained(tmp_path / "base")
    base = AUTO["text"].from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(100, mean_resizing=False)
    model = adapted(base).eval()
    wanted = logits(model)
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        model.save_pretrained(tmp_path / "adapter")
    fresh = AUTO["text"].from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"embed_tokens: weight has shape \(100, 32\)"):
        PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    fresh.resize_token_embeddings(100)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), wanted)
    inside = AUTO["text"].from_pretrained(tmp_path / "base")
    inside.resize_token_embeddings(100)
    inside.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(inside), wanted)
