"""What a new chunk may change of the adapter that it goes on from."""

from __future__ import annotations

import pytest

from strlora_tuner.core.carry import carried_config, options_from_environment
from strlora_tuner.methods.strlora.options import Options
from tests.strlora_tuner.models import config


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
    )
    assert given == {
        "stability_weight": 0.3,
        "freeze_routers": True,
        "top_k": 1,
        "token_top_k": 1,
    }
    assert options_from_environment({"PATH": "x"}, Options) == {}
    for experts in (3, 7, 64):  # whatever the rank is, the adapter's own decides
        number = {"num_experts": experts}
        assert options_from_environment({"STRLORA_NUM_EXPERTS": str(experts)}, Options) == number


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
        options_from_environment({name: value}, Options)


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
        {"STRLORA_PRESET": "released", "STRLORA_ROUTER_DIM": "6"}, Options
    )
    assert given["token_top_k"] == 1
    with pytest.raises(ValueError, match="instruction_norm is 'running' in the adapter"):
        carried_config(config(), given, "chunk-1")
