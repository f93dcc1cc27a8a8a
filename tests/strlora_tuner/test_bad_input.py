"""Bad configurations and adapters are refused with the fix, and leave the model as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from strlora_tuner.methods import config_class
from tests.strlora_tuner.models import adapted, config, internvl_model, prompts, text_model

FILE = "adapter_model.safetensors"
RELEASED = Path(__file__).parents[1] / "fixtures" / "released_checkpoint"


class Untouched:
    """Checks on leaving that a model's modules, hooks, tensors and output are what they were."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.before = model, self._picture(model)

    def _picture(self, model):
        ids = prompts()
        with torch.no_grad():
            output = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits
        modules = {name: (type(m), id(m)) for name, m in model.named_modules()}
        hooks = {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in model.named_modules()
        }
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        tensors = {name: t.clone() for name, t in model.state_dict().items()}
        return modules, hooks, trained, tensors, output, list(getattr(model, "peft_config", {}))

    def __enter__(self):
        return self.model

    def __exit__(self, *_):
        old, new = self.before, self._picture(self.model)
        assert new[:3] == old[:3]
        assert new[3].keys() == old[3].keys()
        for name, tensor in old[3].items():
            assert torch.equal(new[3][name], tensor), name
        assert torch.equal(new[4], old[4])
        assert new[5] == old[5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10}, "rank = 10 cannot be divided among num_experts = 4.*use rank 8 or 12"),
        ({"top_k": 5}, "top_k = 5 exceeds num_experts = 4"),
        ({"token_top_k": 3}, "token_top_k = 3 exceeds top_k = 2"),
        ({"task_router": "magic"}, "task_router"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"turn_end": []}, "give both or none"),
        ({"target_modules": None}, "target_modules is not set"),
        ({"target_modules": ["q_porj"]}, "matches no layer of the model.*q_proj"),
        ({"target_modules": ["v_proj", "q_porj"]}, "called 'q_porj'; did you mean 'q_proj'"),
        ({"target_modules": "nothing.*"}, "'nothing.*' matches no layer"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "PEFT ignores it beside"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "wraps linear layers only"),
        ({"modules_to_save": ["aligner"]}, "modules_to_save: the model has no module aligner"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with Untouched(text_model()) as base, pytest.raises(ValueError, match=message):
        get_peft_model(base, config(**changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    adapted(text_model()).save_pretrained(folder)
    return folder


def edit(folder, change):
    tensors = load_file(folder / FILE)
    change(tensors, next(k for k in tensors if "q_proj" in k and k.endswith("ema_query")))
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def truncate(folder):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])


def overwrite_header(folder):
    content = bytearray((folder / FILE).read_bytes())
    content[20:40] = b"x" * 20
    (folder / FILE).write_bytes(content)


def add_option(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "new_option": 1}))


DAMAGES = {
    "missing tensor": (
        lambda f: edit(f, lambda t, k: t.pop(k)),
        r"model\.layers\.0\.self_attn\.q_proj: missing ema_query",
    ),
    "unknown tensor": (
        lambda f: edit(f, lambda t, k: t.update({k.replace("ema_query", "new"): torch.ones(1)})),
        r"model\.layers\.0\.self_attn\.q_proj: unexpected new",
    ),
    "other shape": (
        lambda f: edit(f, lambda t, k: t.update({k: torch.ones(2, 2)})),
        r"q_proj: ema_query has shape \(2, 2\), this model needs \(6, 32\)",
    ),
    "not finite": (
        lambda f: edit(f, lambda t, k: t[k].fill_(float("nan"))),
        "holds NaN or infinity in .*q_proj.*ema_query: the training diverged",
    ),
    "truncated": (truncate, "adapter_model.safetensors is damaged"),
    "tampered": (overwrite_header, "adapter_model.safetensors is damaged"),
    "gone": (
        lambda f: (f / FILE).unlink(),
        "is missing; bring back an undamaged copy",
    ),
    "newer": (add_option, "unknown options new_option"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_adapter_changes_nothing(saved, tmp_path, damage):
    change, message = DAMAGES[damage]
    shutil.copytree(saved, tmp_path / "adapter")
    change(tmp_path / "adapter")
    with Untouched(text_model()) as base, pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    model = adapted(text_model(), seed=7).eval()
    with Untouched(model), pytest.raises(ValueError, match=message):
        model.load_adapter(str(tmp_path / "adapter"), adapter_name="second")


@pytest.mark.parametrize("damage", ["missing tensor", "unknown tensor", "other shape"])
def test_loading_over_an_adapter_is_all_or_nothing(saved, tmp_path, damage):
    change, message = DAMAGES[damage]
    shutil.copytree(saved, tmp_path / "adapter")
    change(tmp_path / "adapter")
    model = adapted(text_model(), seed=7).eval()
    with Untouched(model), pytest.raises(ValueError, match=message):
        model.load_adapter(str(tmp_path / "adapter"), adapter_name="default")


def test_an_adapter_of_another_base_is_refused_layer_by_layer(saved):
    wider = text_model(hidden_size=48)
    with Untouched(wider), pytest.raises(ValueError, match="does not fit this model") as raised:
        PeftModel.from_pretrained(wider, str(saved))
    lines = str(raised.value).splitlines()
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        assert any(layer in line and "this model needs" in line for line in lines), layer
    assert "base model it was trained on" in lines[-1]
    deeper = text_model(num_hidden_layers=3)
    with Untouched(deeper), pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj: missing A"):
        PeftModel.from_pretrained(deeper, str(saved))
    shallower = text_model(num_hidden_layers=1)
    with Untouched(shallower), pytest.raises(ValueError, match=r"layers\.1\..*unexpected A"):
        PeftModel.from_pretrained(shallower, str(saved))


def test_an_aligner_of_another_shape_is_refused(tmp_path):
    model = adapted(internvl_model(), modules_to_save=["model.multi_modal_projector"])
    model.save_pretrained(tmp_path)
    key = "base_model.model.model.multi_modal_projector.linear_1.weight"
    tensors = load_file(tmp_path / FILE)
    tensors[key] = tensors[key][:, :-1].contiguous()
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    message = r"model\.multi_modal_projector\.linear_1: weight has shape"
    with Untouched(internvl_model()) as base, pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(base, str(tmp_path))
    with Untouched(model.eval()), pytest.raises(ValueError, match="weight has shape"):
        model.load_adapter(str(tmp_path), adapter_name="default")
    del tensors[key]
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    with Untouched(internvl_model()) as base, pytest.raises(ValueError, match="missing weight"):
        PeftModel.from_pretrained(base, str(tmp_path))


def test_a_published_adapter_names_the_converter():
    with (
        Untouched(text_model()) as base,
        pytest.raises(ValueError, match="was written by the published"),
    ):
        PeftModel.from_pretrained(base, str(RELEASED / "adapter"))


def test_merging_is_refused():
    with Untouched(adapted(text_model()).eval()) as model:
        for call in (model.merge_and_unload, model.merge_adapter, model.unmerge_adapter):
            with pytest.raises(ValueError, match="cannot be merged"):
                call()
        layer = next(layer for _, layer in model.base_model.routed_layers())
        for call in (layer.merge, layer.unmerge):
            with pytest.raises(ValueError, match="cannot be merged"):
                call()


@pytest.mark.parametrize("found", ["lora", "strlora"])
def test_an_adapter_of_another_method_is_refused(tmp_path, found):
    """PEFT gives the configuration that the file names: MoELoRA's loader went on with StrLoRA."""
    if found == "lora":
        get_peft_model(text_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(
            tmp_path
        )
    else:
        adapted(text_model()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"is of an adapter of {found}, expected moelora"):
        config_class("moelora").from_pretrained(str(tmp_path))
