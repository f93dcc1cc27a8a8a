"""`launcher.portable_kernels`: an emulated processor of another kind trains the same weights.

Skipped where qemu-x86_64 (Debian: qemu-user) is absent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from recipes import REPO
from recipes.run.commands import PORTABLE_KERNELS

QEMU = shutil.which("qemu-x86_64")


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed")
def test_another_processor_trains_the_same_weights() -> None:
    words = [f"{name}={value}" for name, value in PORTABLE_KERNELS.items()]
    emulated = [word for each in words for word in ("-E", each)]
    here = train([])
    assert here == train([str(QEMU), "-cpu", "Haswell", *emulated])


def train(emulator: list[str]) -> str:
    """Returns the last line of three steps on this processor, or on an emulated one."""
    environment = os.environ | PORTABLE_KERNELS | {"PYTHONPATH": str(REPO)}
    command = [*emulator, sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def three_steps() -> str:
    """StrLoRA on the embedded model: the last loss and the hash of what was trained."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    import strlora_tuner

    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(REPO / "assets/tiny_base")
    layers = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(base, strlora_tuner.StrLoraConfig(r=16, target_modules=layers))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    ids = torch.randint(10, 500, (2, 40))
    labels = torch.where(torch.arange(40) < 20, -100, ids)
    for _ in range(3):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        strlora_tuner.after_optimizer_step(model)
        optimizer.zero_grad()
    found = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained))
    return f"{loss.item().hex()} {found.hexdigest()}"


if __name__ == "__main__":
    print(three_steps())
