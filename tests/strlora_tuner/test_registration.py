"""`import strlora_tuner` is light, and enough for PEFT to know the method."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from strlora_tuner.methods.strlora.options import Options
from tests.strlora_tuner.models import adapted, text_model

# What a script can import first; some of these modules import PEFT themselves.
FIRST = [
    "import strlora_tuner",
    "import peft, strlora_tuner",
    "import torch, transformers, strlora_tuner",
    "import strlora_tuner.methods, peft",
    "from strlora_tuner import StrLoraModel",
    "import strlora_tuner.core.model",
    "import strlora_tuner.methods.branchlora.model",
    "import strlora_tuner.routing_record.recorder",
]
# Each runs in a fork, which a fresh interpreter for each would take minutes for.
LOAD = """
import os, sys, torch, transformers
failed = []
for first in {first!r}:
    pid = os.fork()
    if pid == 0:
        assert not any(name.startswith(("peft", "strlora_tuner")) for name in sys.modules)
        exec(first)
        from peft import PeftModel
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained({base!r})
        )
        for adapter in {adapters!r}:
            name = os.path.basename(adapter)
            loaded = PeftModel.from_pretrained(model, adapter, adapter_name=name)
            assert type(loaded.base_model).__module__ == f"strlora_tuner.methods.{{name}}.model"
            model = loaded.unload()
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        failed.append(first)
sys.exit("; ".join(failed) or 0)
"""


@pytest.mark.slow
def test_peft_loads_an_adapter_whatever_was_imported_first(tmp_path):
    base = text_model()
    base.config.save_pretrained(tmp_path / "base")
    adapters = []
    for method in ("strlora", "moelora"):
        adapters.append(str(tmp_path / method))
        adapted(text_model(), method).save_pretrained(adapters[-1])
    code = LOAD.format(first=FIRST, base=str(tmp_path / "base"), adapters=adapters)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_checking_options_needs_no_torch():
    code = (
        "import sys, strlora_tuner.methods.strlora.options as s; s.Options();"
        "import strlora_tuner.saved, strlora_tuner.methods.ewc.state_file;"
        "import strlora_tuner.routing_record.format, strlora_tuner.host_api;"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
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
