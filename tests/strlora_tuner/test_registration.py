"""`import strlora_tuner` is light, and enough for PEFT to know the method."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWN = "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m; assert 'STRLORA' in m, list(m)"


@pytest.mark.parametrize(
    "first",
    [
        "import strlora_tuner",
        "import peft, strlora_tuner",
        "import strlora_tuner.layer",
    ],
)
def test_peft_knows_the_method(first):
    subprocess.run([sys.executable, "-c", f"{first}; {KNOWN}"], check=True)


def test_checking_options_needs_no_torch():
    code = (
        "import sys, strlora_tuner.schema as s; s.TunerOptions();"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
