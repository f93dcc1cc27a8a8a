"""Options of the host's LoRA that a tuner of ours would not read are refused, new ones included."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from recipes.config.swift_arguments import known_arguments

pytest.importorskip("swift")

from strlora_tuner.swift_plugins import unread_options as options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("use_dora", True), ("use_rslora", True), ("use_swift_lora", True), ("freeze_llm", True)),
        *(("lora_bias", "all"), ("lora_dtype", "float16"), ("lorap_lr_ratio", 16.0)),
        *(("init_weights", "pissa"), ("init_weights", False), ("target_parameters", ["w"])),
        *(("trainable_parameters", ["lm_head"]), ("freeze_parameters_ratio", 0.5)),
    ],
)
def test_an_option_that_does_nothing_is_refused(name, value):
    found = rf"--tuner_type olora does not read --{name} {str(value)[:4].replace('[', '.')}"
    with pytest.raises(ValueError, match=found):
        options.refuse_unread_options(SimpleNamespace(tuner_type="olora", **{name: value}))


def test_what_is_read_or_left_as_it_is_passes():
    read = {"lora_rank": 4, "lora_alpha": 1.0, "lora_dropout": 0.5, "target_modules": ["q_proj"]}
    read |= {"target_regex": ".*q_proj", "modules_to_save": ["norm"], "task_type": "causal_lm"}
    assert not options.unread_options().keys() & read.keys()
    # The host makes True of the text "true".
    left = options.unread_options() | {"init_weights": True}
    options.refuse_unread_options(SimpleNamespace(tuner_type="strlora", **read, **left))


def test_an_option_of_a_newer_host_cannot_slip_through(monkeypatch):
    newer = [("use_next_lora", bool, dataclasses.field(default=False))]
    for name in ("TunerArguments", "SftArguments"):
        kind = dataclasses.make_dataclass(name, newer, bases=(getattr(options, name),))
        monkeypatch.setattr(options, name, kind)
    options.unread_options.cache_clear()
    try:
        assert options.unread_options()["use_next_lora"] is False
        with pytest.raises(ValueError, match="--use_next_lora True"):
            options.refuse_unread_options(SimpleNamespace(tuner_type="er", use_next_lora=True))
    finally:
        options.unread_options.cache_clear()


def test_the_source_is_read_by_its_syntax():
    source = "def f(args, other):\n    return args.a, getattr(args, 'b', 1), other.c, args.d.e\n"
    assert options.options_read(source) == {"a", "b", "d"}


def test_the_list_that_validation_uses_is_the_same():
    listed = {name: item.unrouted for name, item in known_arguments().items() if item.unrouted}
    assert {name: [default] for name, default in options.unread_options().items()} == listed
