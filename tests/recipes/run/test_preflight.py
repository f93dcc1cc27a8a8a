"""What a run needs of its machine: every kind of lack is named, all at once, before it starts."""

from __future__ import annotations

import json
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from recipes import REPO
from recipes.config.loading import load_recipe
from recipes.config.method import method_names
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import adapter_size, model_shape
from recipes.run.preflight import free_space, gpus
from recipes.run.preflight.all_checks import look, stopping
from recipes.run.preflight.finding import Finding
from recipes.run.preflight.free_space import check_disk, check_shared_memory, sample_bytes
from recipes.run.preflight.gpus import check_gpus
from recipes.run.preflight.installed import check_packages
from recipes.run.preflight.model_folder import check_model
from recipes.run.preflight.stream_files import check_stream
from recipes.run.preflight.tools import (
    check_compiler,
    check_container,
    check_deepspeed_file,
    check_network,
)
from recipes.slurm.submit import check_submission
from recipes.tools.preview import preview

LoadToy = Callable[..., Recipe]


def sharded(model: Path) -> None:
    """Turns the toy model's weights into two shards and their index."""
    (model / "model.safetensors").unlink()
    names = {}
    for number in (1, 2):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({f"w{number}": np.zeros(4, np.float32)}, model / shard)
        names[f"w{number}"] = shard
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}), encoding="utf-8")


def second(model: Path) -> Path:
    return model / "model-00002-of-00002.safetensors"


def cut(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard gone": (lambda m: second(m).unlink(), "1 of 2 weight files are not in"),
    "shard cut": (lambda m: cut(second(m), -3), "file not fully covered"),
    "shard cut in its header": (
        lambda m: cut(second(m), 30),
        "is cut short, too long or damaged: ",
    ),
    "shard empty": (lambda m: cut(second(m), 0), "header too small"),
    "shard longer": (
        lambda m: second(m).write_bytes(second(m).read_bytes() + b"x"),
        "file not fully covered",
    ),
    "shard a pointer": (lambda m: second(m).write_text(POINTER), "a Git LFS pointer"),
    "shard of another model": (
        lambda m: save_file({"other": np.zeros(1, np.float32)}, second(m)),
        "lacks 1 tensors that the index names in it: w2",
    ),
    "index gone": (
        lambda m: (m / "model.safetensors.index.json").unlink(),
        "without their index model.safetensors.index.json",
    ),
    "index cut": (
        lambda m: cut(m / "model.safetensors.index.json", 20),
        "is no index of weights",
    ),
    "tokenizer gone": (lambda m: (m / "vocab.json").unlink(), "has no tokenizer"),
    "tokenizer cut": (lambda m: cut(m / "vocab.json", 1), "vocab.json cannot be read"),
    "a link to nothing": (
        lambda m: (m / "added.json").symlink_to(m / "gone"),
        "added.json cannot be read (No such file",
    ),
    "processor gone": (
        lambda m: (m / "preprocessor_config.json").unlink(),
        "has no image processor: expected preprocessor_config.json",
    ),
    "config a pointer": (lambda m: (m / "config.json").write_text(POINTER), "a Git LFS pointer"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_model_that_is_not_whole(what: str, toy: LoadToy, model: Path) -> None:
    damage, words = DAMAGE[what]
    sharded(model)
    recipe = toy("model.download=hf download x")
    assert list(check_model(recipe)) == []
    damage(model)
    found = [each.text for each in check_model(recipe)]
    assert any(words in text for text in found), found
    assert all(text.endswith("Get it again: hf download x") for text in found)


def test_a_single_file_and_old_weights(toy: LoadToy, model: Path) -> None:
    recipe, weights = toy(), model / "model.safetensors"
    cut(weights, -1)
    assert "is cut short" in next(check_model(recipe)).text
    weights.unlink()
    assert "has no weights" in next(check_model(recipe)).text
    (model / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and then the copy broke off")
    assert "pytorch_model.bin (32 bytes) is cut short" in next(check_model(recipe)).text


def test_a_stream_that_is_not_whole(toy: LoadToy, stream: Path) -> None:
    recipe = toy()
    assert list(check_stream(recipe)) == []
    images = sorted((stream / "images").iterdir())
    images[0].write_bytes(b"")
    images[1].unlink()
    empty, gone = (each.text for each in check_stream(recipe))
    assert "is an empty file" in empty
    assert "is not there" in gone
    cut(stream / "chunks" / "002.jsonl", -40)
    (stream / "test" / "Fin.jsonl").unlink()
    texts = [each.text for each in check_stream(recipe)]
    assert ["002.jsonl was changed" in texts[0], "Fin.jsonl is missing" in texts[1]] == [True, True]


def test_of_many_absent_images_the_number_is_told(toy: LoadToy, stream: Path) -> None:
    count = len(list((stream / "images").iterdir()))
    shutil.rmtree(stream / "images")
    found = list(check_stream(toy("data.prepare=make images")))
    assert f"{count - 3} more images are missing" in found[-1].text
    assert found[-1].text.endswith("Get them: make images")


def test_chunks_that_are_done_need_no_files(toy: LoadToy, stream: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    state = {"format": 1, "chunks": [], "done": 1, "finished": False}
    (tmp_path / "run" / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (stream / "chunks" / "001.jsonl").unlink()
    assert list(check_stream(toy())) == []


def test_no_method_stores_more_than_the_quick_bound() -> None:
    recipe = load_recipe("tiny", [])
    shape = model_shape(recipe)
    assert shape is not None
    for method in method_names():
        recipe = recipe.model_copy(update={"method": method})
        size, most = adapter_size(recipe, shape), free_space._at_most(recipe, shape)
        assert (size.trained <= most.trained, size.stored <= most.stored) == (True, True)


def test_a_disk_that_is_too_small(toy: LoadToy, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy("tuner.rank=2")  # 7 layers of 8 x 8: 7 x 2 x 16 = 224 numbers of plain LoRA
    # 2 chunks x 224 x 4 bytes, and 3 checkpoints x 224 x (4 + 8) bytes beside each other
    needed = 2 * 224 * 4 + 3 * 224 * 12
    for free, problems in ((needed, 0), (needed - 1, 1)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(free_space.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert len(list(check_disk(recipe))) == problems


def test_room_for_the_loaders(toy: LoadToy, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_patches": 12, "size": {"height": 448, "width": 448}}
    (model / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    picture = 13 * 448 * 448 * 3 * 4  # twelve tiles and the thumbnail, float32
    assert sample_bytes(model, None) == picture
    recipe = toy("swift.dataloader_num_workers=4")
    needed = 4 * 2 * 4 * picture  # workers x batches x samples
    for free, problems in ((needed, 0), (64 << 20, 1)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(free_space.shutil, "disk_usage", lambda path, usage=usage: usage)
        found = list(check_shared_memory(recipe))
        assert len(found) == problems
    assert "0.06 GiB free" in found[0].text
    assert "--shm-size" in found[0].text
    qwen = {"merge_size": 2, "temporal_patch_size": 2, "max_pixels": 12845056}
    (model / "preprocessor_config.json").write_text(json.dumps(qwen), encoding="utf-8")
    assert sample_bytes(model, 1003520) == 1003520 * 2 * 3 * 4


def test_no_compiler_where_one_is_needed(
    toy: LoadToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert list(check_compiler(toy())) == []
    for key in ("swift.torch_compile=true", "launcher.deepspeed=zero2"):
        (found,) = check_compiler(toy(key))
        assert "build-essential" in found.text


def test_a_port_that_is_taken_and_an_interface_that_is_not_there(
    toy: LoadToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy("launcher.nproc=2", "schedule.per_device_batch=2")
    assert list(check_network(recipe)) == []
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        monkeypatch.setenv("MASTER_PORT", str(holder.getsockname()[1]))
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7")
        port, interface = check_network(recipe)
    assert "cannot be opened here" in port.text
    assert "NCCL_SOCKET_IFNAME=ib7 names no interface" in interface.text


def graphics_driver(folder: Path, count: int) -> Path:
    """A folder with an nvidia-smi that lists GPUs; torch here is built without CUDA."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$1" in *driver_version*) echo 535.104.05;; *)\n'
        f'for i in $(seq 1 {count}); do echo "$((i - 1)), GPU-$i, NVIDIA H100, 81559 MiB"; done;; '
        "esac\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


def test_deepspeed_as_text(toy: LoadToy) -> None:
    good, broken = '{"zero_optimization": {"stage": 2}}', '{"zero_optimization": '
    assert not [*check_deepspeed_file(toy(f"launcher.deepspeed='{good}'"))]
    (found,) = check_deepspeed_file(toy(f"launcher.deepspeed='{broken}'"))
    assert "cannot be read (Expecting value" in found.text


def test_one_gpu_that_does_not_compute(toy: LoadToy, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy("launcher.nproc=2", "schedule.per_device_batch=2", "launcher.cpu=false")
    (none,) = check_gpus(recipe)
    assert "asks for 2, here are 0; nvidia-smi lists none" in none.text
    assert "launcher.cpu: true, if the CPU is what you want" in none.text
    answer = {"torch": "2.13.0+cu130", "built_for": "13.0", "driver_cuda": "12.2", "error": None}
    good = {"name": "H100", "error": None, "free": 70 << 30}
    bad = {"name": "H100", "error": "CUDA error: uncorrectable ECC error", "free": None}
    monkeypatch.setattr(gpus, "gpu_count", lambda: 2)
    monkeypatch.setattr(gpus, "_probe", lambda recipe: answer | {"gpus": [good, bad]})
    (found,) = check_gpus(recipe)
    assert "GPU 1 (H100) does not multiply float32 matrices: CUDA error: uncorrect" in found.text
    old = "The NVIDIA driver on your system is too old (found version 12020)"
    monkeypatch.setattr(gpus, "_probe", lambda recipe: answer | {"error": old, "gpus": []})
    (found,) = check_gpus(recipe)
    assert "torch 2.13.0+cu130 for CUDA 13.0, driver unknown, which reaches up to CUDA 12.2" in (
        found.text
    )
    assert "Update the driver, or install a torch for the driver's CUDA" in found.text
    taken = good | {"free": 1}
    monkeypatch.setattr(gpus, "_probe", lambda recipe: answer | {"gpus": [good, taken]})
    (found,) = check_gpus(recipe)
    assert "GPU 1 (H100) has 0.0 GiB free" in found.text


@pytest.mark.parametrize(
    ("key", "package"),
    [
        ("attn_impl=flash_attn", "flash-attn"),
        ("use_liger_kernel=true", "liger-kernel"),
        ("optim=paged_adamw_8bit", "bitsandbytes"),
        ("optim=adamw_torch_4bit", "torchao"),
        ("optim=galore_adamw_8bit", "galore-torch"),
        ("quant_method=hqq", "hqq"),
    ],
)
def test_packages_that_a_value_alone_asks_for(key: str, package: str, toy: LoadToy) -> None:
    assert list(check_packages(toy("swift.attn_impl=sdpa", "swift.optim=adamw_torch"))) == []
    (found,) = check_packages(toy(f"swift.{key}"))
    assert found.subject == f"swift.{key.split('=')[0]}"
    assert found.text.startswith(f"{toy(f'swift.{key}').swift[key.split('=')[0]]} needs")
    assert f"pip install {package}, or give another value" in found.text


def test_the_container_its_image_and_its_folders(
    toy: LoadToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, slurm = (
        tmp_path / "pack.sif",
        ["launcher.kind=slurm", f"launcher.slurm.binds=[{tmp_path}:/x]"],
    )
    recipe = toy(f"launcher.slurm.container={image}", *slurm)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [each.subject for each in check_container(recipe, on_submit_host=False)]
    assert found == ["container", "launcher.slurm.container"]
    image.touch()
    (tmp_path / "apptainer").touch(mode=0o755)
    assert list(check_container(recipe, on_submit_host=False)) == []
    elsewhere = toy(
        "launcher.slurm.container=docker://a/b", "launcher.slurm.binds=[/nowhere:/x]", slurm[0]
    )
    (found_there,) = check_container(elsewhere, on_submit_host=True)
    assert found_there.text == "/nowhere is not there: correct it"


def test_what_the_cluster_says_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (absent,) = check_submission("#!/bin/bash\n", [])
    assert "there is no sbatch here" in absent.text
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        '#!/bin/sh\nread -r first\necho "sbatch: $1 $first" >&2\necho second line >&2\nexit 1\n'
    )
    sbatch.chmod(0o755)
    (refused,) = check_submission("#SBATCH --partition=none\n", [])
    assert refused.stops
    assert "--test-only #SBATCH --partition=none; second line. Correct launcher" in refused.text
    for said in (
        "Unable to contact slurm controller",
        "Could not establish a configuration source",
    ):
        sbatch.write_text(f"#!/bin/sh\necho 'sbatch: {said}' >&2\nexit 1\n")
        (nowhere,) = check_submission("", [])
        assert nowhere.text.startswith(f"no cluster answers sbatch here: {said}. Submit where")


def test_a_login_node_is_not_asked_for_what_the_job_has(
    toy: LoadToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy("launcher.kind=slurm", "launcher.slurm.container=docker://a/b")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    shown = "\n".join(preview(recipe))
    assert "apptainer exec" in shown
    assert "needs apptainer" not in shown
    assert "--slurm instead of --dry-run submits" in shown
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert "# MISSING  container: launcher.slurm.container needs apptainer" in "\n".join(
        preview(recipe)
    )


def test_notes_do_not_stop_a_run(toy: LoadToy) -> None:
    findings = look(toy("launcher.kind=slurm"), on_submit_host=True)
    assert findings == [each for each in findings if each.subject == "job"]
    assert stopping([*findings, Finding("x", "y")]) == [Finding("x", "y")]


def test_a_dry_run_without_an_environment_says_how_to_get_one(tmp_path: Path) -> None:
    """The interpreter has no site-packages, and the checkout no .venv."""
    clone, bare = tmp_path / "clone", tmp_path / "python3"
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{REPO}", str(clone)], check=True)
    for name in ("run_stream.sh", "setup.sh", "cli.py"):
        shutil.copy(REPO / "recipes" / name, clone / "recipes" / name)
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    before = sorted(clone.rglob("*"))
    done = subprocess.run(
        ["bash", str(clone / "recipes" / "run_stream.sh"), "internvl3.5-8b", "--dry-run"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("this makes one (.venv, 2 GB): bash recipes/setup.sh")
    assert sorted(clone.rglob("*")) == before
    direct = subprocess.run(
        [str(bare), "-m", "recipes.cli", "tiny", "--dry-run"],
        cwd=clone,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert direct.returncode == 1
    (sentence,) = direct.stderr.splitlines()
    assert sentence.endswith("(.venv, 2 GB)")
    assert "bash recipes/setup.sh" in sentence


def test_an_aligner_that_the_model_does_not_have(toy: LoadToy) -> None:
    """PEFT trains nothing for such a name, and a routed tuner would train the host's own."""
    tiny = f"model.path={REPO / 'assets/tiny_base'}"
    assert list(check_model(toy(tiny, "model.aligner=multi_modal_projector"))) == []
    (finding,) = check_model(toy(tiny, "model.aligner=projector_of_mine"))
    assert "model.aligner = projector_of_mine: no module of " in finding.text
    assert "it has language_model, multi_modal_projector, vision_tower. Set " in finding.text
    assert finding.stops
