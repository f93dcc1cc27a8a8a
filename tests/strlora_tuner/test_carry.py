"""What a new chunk may change of the adapter that it goes on from."""

from __future__ import annotations

import pytest
import torch

from strlora_tuner.core.carry import carried_config, options_from_environment
from strlora_tuner.methods.strlora.options import Options
from strlora_tuner.methods.strlora_signed.config import Config as SignedConfig
from strlora_tuner.methods.strlora_signed.options import Options as Signed
from tests.strlora_tuner.models import adapted, config, text_model


def test_options_come_from_the_environment_checked():
    given = options_from_environment(
        {
            "STRLORA_STABILITY_WEIGHT": "0.3",
            "STRLORA_FREEZE_ROUTERS": "True",
            "STRLORA_TOP_K": "1",
            "STRLORA_TOKEN_TOP_K": "1",
            "STRLORA_ROUTING_FILE": "somewhere.json",
            "STRLORA_REMOTE_CODE": "1",
            "PATH": "x",
        },
        Options,
        8,
    )
    assert given == {
        "stability_weight": 0.3,
        "freeze_routers": True,
        "top_k": 1,
        "token_top_k": 1,
    }
    assert options_from_environment({"PATH": "x"}, Options, 8) == {}
    for experts in (3, 7, 64):
        environment = {"STRLORA_NUM_EXPERTS": str(experts)}
        assert options_from_environment(environment, Options, 2 * experts) == {
            "num_experts": experts
        }
    with pytest.raises(ValueError, match="rank = 8 cannot be divided among num_experts = 3"):
        options_from_environment({"STRLORA_NUM_EXPERTS": "3"}, Options, 8)


def test_rows_of_an_expert_divide_the_rank_of_the_adapter_that_is_loaded():
    given = options_from_environment({"STRLORA_EXPERT_RANK": "3"}, Signed, 12)
    assert given == {"expert_rank": 3}
    saved = SignedConfig(r=12, expert_rank=3)
    assert carried_config(saved, given, "chunk-1")[0].num_experts == 4


@pytest.mark.parametrize(("name", "value"), [("gate", "topk"), ("keep", "0.25")])
def test_the_form_of_fixed_gates_stays(name, value):
    given = options_from_environment({f"STRLORA_{name.upper()}": value}, Signed, 16)
    with pytest.raises(ValueError, match=f"chunk-1 cannot be trained on: {name} is"):
        carried_config(SignedConfig(r=16), given, "chunk-1")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STRLORA_TOPK", "2", "topk"),
        ("STRLORA_PRESET", "papr", "did you mean 'paper'"),
        ("STRLORA_STABILITY_WEIGHT", "-1", "stability_weight"),
    ],
)
def test_wrong_options_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        options_from_environment({name: value}, Options, 8)


def test_schedule_changes_and_structure_does_not():
    saved = config(stability_weight=0.0)
    changed, teacher = carried_config(
        saved, {"stability_weight": 0.1, "freeze_routers": True, "num_experts": 4}, "chunk-1"
    )
    assert (changed.stability_weight, changed.freeze_routers, changed.r) == (0.1, True, 8)
    assert not teacher
    assert carried_config(saved, {"require_teacher": True}, "chunk-1")[1]
    with pytest.raises(ValueError, match="chunk-1 cannot be trained on: router_dim is 6"):
        carried_config(saved, {"router_dim": 64}, "chunk-1")


def test_a_preset_that_disagrees_with_the_adapter_is_refused():
    given = options_from_environment(
        {"STRLORA_PRESET": "released", "STRLORA_ROUTER_DIM": "6"}, Options, 8
    )
    assert given["token_top_k"] == 1
    with pytest.raises(ValueError, match="instruction_norm is 'running' in the adapter"):
        carried_config(config(), given, "chunk-1")


def test_a_checkpoint_without_what_rests_is_loaded() -> None:
    model = adapted(text_model(), freeze_routers=True)
    trains = {name for name, weight in model.named_parameters() if weight.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    # What DeepSpeed saves inside a chunk; the host has loaded the rest from the adapter beside it.
    saved = {k: v + 1 for k, v in model.state_dict().items() if k in trains | buffers}
    resting = {k: v.clone() for k, v in model.state_dict().items() if k not in saved}
    assert any(".strlora_mixture." in key for key in resting)
    model.load_state_dict(saved, strict=False)
    now = model.state_dict()
    assert all(torch.equal(now[key], value) for key, value in {**saved, **resting}.items())


def test_a_checkpoint_without_what_trains_is_refused() -> None:
    model = adapted(text_model(), freeze_routers=True)
    name = next(name for name, weight in model.named_parameters() if weight.requires_grad)
    saved = {key: value for key, value in model.state_dict().items() if key != name}
    with pytest.raises(ValueError, match="missing"):
        model.load_state_dict(saved, strict=False)
