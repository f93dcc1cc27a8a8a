"""`import strlora_tuner` is light, and enough for PEFT to know the method."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from strlora_tuner.methods.strlora.options import Options

KNOWN = "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m; assert 'STRLORA' in m, list(m)"


@pytest.mark.parametrize(
    "first",
    [
        "import strlora_tuner",
        "import peft, strlora_tuner",
        "import strlora_tuner.core.layer",
    ],
)
def test_peft_knows_the_method(first):
    subprocess.run([sys.executable, "-c", f"{first}; {KNOWN}"], check=True)


def test_checking_options_needs_no_torch():
    code = (
        "import sys, strlora_tuner.methods.strlora.options as s; s.Options();"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tuner_needs_torch_transformers_and_peft_only():
    # None in sys.modules makes an import fail, as on a machine without the package.
    others = ["swift", "deepspeed", "datasets", "pydantic", "omegaconf", "rich", "pandas"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others!r}));"
        "import strlora_tuner, strlora_tuner.convert as c, strlora_tuner.routing_record.recorder;"
        "strlora_tuner.StrLoraConfig(r=8, num_experts=2, target_modules=['x'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank = 0: expected an integer at least 1"),
        ({"rank": 8.0}, "rank = 8.0: expected an integer at least 1"),
        ({"alpha": float("nan")}, "alpha = nan: expected a number above 0"),
        ({"dropout": 1}, "dropout = 1: expected a number at least 0 and below 1"),
        ({"freeze_routers": 1}, "freeze_routers = 1: expected True or False"),
        ({"top_k": True}, "top_k = True: expected an integer at least 1"),
        (
            {"padding": "mean", "task_router": "soft"},
            "task_router = 'soft': expected one of 'frozen', 'straight_through', 'prior'; "
            "padding = 'mean': expected one of 'mask', 'include'",
        ),
    ],
)
def test_every_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Options(**options)
