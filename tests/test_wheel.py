"""The wheel holds `strlora_tuner` alone, and that is enough to answer with an adapter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "assets" / "tiny_base"
BESIDE = ["torch", "torchvision", "transformers", "peft", "pillow"]

# Loads the base, takes or makes an adapter, answers one question, prints the answer.
SCRIPT = """
import sys
import torch
import strlora_tuner
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

base, adapter, make = sys.argv[1], sys.argv[2], sys.argv[3:] == ["make"]
processor = AutoProcessor.from_pretrained(base)
model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
if make:
    layers = r".*language_model.*(q_proj|v_proj|up_proj)"
    config = strlora_tuner.StrLoraConfig(r=16, lora_alpha=32, target_modules=layers)
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(parameter, std=20)
    model.save_pretrained(adapter)
else:
    model = PeftModel.from_pretrained(model, adapter)
picture = Image.new("RGB", (112, 112), "teal")
content = [{"type": "image", "image": picture}, {"type": "text", "text": "what colour is this ?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
def answer():
    with torch.no_grad():
        ids = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1]:].tolist()
with model.disable_adapter():
    plain = answer()
print(answer(), plain)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"  # setuptools leaves its build beside the sources
    tuner = source / "strlora_tuner"
    shutil.copytree(ROOT / tuner.name, tuner, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    command.append(str(source))
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_tuner_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"strlora_tuner"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "strlora_tuner").rglob("*.py")}
    assert modules <= set(names)


@pytest.mark.slow
def test_an_adapter_answers_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "venv", BESIDE)
    # Without an index: what the wheel asks for must be there already.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    adapter = tmp_path / "adapter"
    made = _run(sys.executable, adapter, {"PYTHONPATH": str(ROOT)}, "make")
    loaded = _run(str(python), adapter, {})
    assert loaded == made
    with_adapter, plain = made.split("] [")
    assert with_adapter.strip("[]\n") != plain.strip("[]\n")
    missing = subprocess.run([str(python), "-c", "import swift"], cwd=tmp_path, capture_output=True)
    assert missing.returncode != 0


def _run(python: str, adapter: Path, environment: dict[str, str], *options: str) -> str:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", SCRIPT, str(BASE), str(adapter), *options],
        env={**variables, "HF_HUB_OFFLINE": "1", **environment},
        cwd=adapter.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def _environment(folder: Path, packages: list[str]) -> Path:
    """Makes a virtual environment with some packages of this one and what those ask for."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    seen: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        for file in found.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
        wanted = [Requirement(text) for text in found.requires or []]
        waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    # Beside a CPU build of torch, torchvision needs what recipes/setup.sh put there.
    for shim in Path(str(distribution("torch").locate_file(""))).glob("torchvision_cpu_shim.p*"):
        (site / shim.name).symlink_to(shim)
    return folder / "bin" / "python"
