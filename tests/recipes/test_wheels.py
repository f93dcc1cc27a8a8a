"""Which wheels a closed machine needs: by names, versions and markers, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from recipes.wheels.closure import Wheel, asked_of, close, environment_of, read_wheel, runs_on
from recipes.wheels.collect import Fetcher, WheelError, collect, read_beside
from recipes.wheels.install import chosen, read_manifest, refusals

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = environment_of("3.12")
INDEX = {
    "host": Wheel("host", "4.6", "host-4.6-py3-none-any.whl", (
        "torch<3", "numpy", "oss2", "data[http]<5", 'old; python_version < "3.11"',
        'more; extra == "eval"')),
    "data": Wheel("data", "4.8", "data-4.8-py3-none-any.whl", (
        "fsspec<=2026.2", 'web; extra == "http"')),
    "web": Wheel("web", "1.0", "web-1.0-py3-none-any.whl", ()),
    "fsspec": Wheel("fsspec", "2026.2", "fsspec-2026.2-py3-none-any.whl", ()),
}  # fmt: skip


def collected(present):
    def fetch(demands):
        return {name: INDEX[name] for name in demands}

    return close([Requirement("host>=4"), Requirement("torch>=2")], present, ENVIRONMENT, fetch)


def test_only_what_is_missing_is_fetched():
    wheels, demands = collected({"torch": "2.11", "numpy": None, "fsspec": None})
    assert set(wheels) == {"host", "data", "web"}  # not oss2, which nothing imports; not old, more
    assert demands["fsspec"].bounded_above()
    assert not demands["numpy"].bounded_above()


def test_a_version_that_is_refused_counts_as_missing():
    assert "fsspec" in collected({"torch": "2.11", "numpy": None, "fsspec": "2026.9"})[0]
    assert "fsspec" not in collected({"torch": "2.11", "numpy": None, "fsspec": "2026.1"})[0]


def test_a_spare_is_installed_only_where_it_is_needed():
    demands = asked_of(INDEX.values(), [Requirement("host>=4")], ENVIRONMENT)
    rows = [
        {"file": "", "name": "fsspec", "version": "2026.2", "spare": True, "sha256": ""},
        {"file": "", "name": "host", "version": "4.6", "spare": False, "sha256": ""},
    ]

    def names(there):
        return [row["name"] for row in chosen(rows, demands, there.get)]

    assert names({"fsspec": "2026.1", "host": "4.6"}) == ["host"]
    assert names({"fsspec": "2026.9"}) == ["fsspec", "host"]
    assert names({}) == ["fsspec", "host"]


def test_refusals_say_what_is_there_and_what_is_needed():
    demands = asked_of(INDEX.values(), [Requirement("host>=4")], ENVIRONMENT)
    there = {**dict.fromkeys(demands, "1.0"), "host": "4.6", "torch": "3.1", "web": None}
    assert refusals(demands, there) == [
        "torch 3.1 is there, but host 4.6 needs torch<3",
        "web is needed by data 4.8, and not there",
    ]


def test_what_is_there_is_read_from_a_list_or_a_file(tmp_path):
    file = tmp_path / "freeze.txt"
    file.write_text("# pip freeze\nTorch==2.11.0\nhf_xet\n")
    assert read_beside("Torch==2.11.0, hf_xet") == read_beside(str(file))
    assert read_beside(str(file)) == {"torch": "2.11.0", "hf-xet": None}
    with pytest.raises(WheelError, match="gives a range"):
        read_beside("torch>=2")


def test_a_wheel_must_run_on_that_python():
    tags = Fetcher(ROOT, "3.12", {}).tags
    assert runs_on("a-1-py3-none-any.whl", tags)
    assert runs_on("a-1-cp312-cp312-manylinux_2_17_x86_64.whl", tags)
    assert runs_on("a-1-cp38-abi3-manylinux_2_28_x86_64.whl", tags)
    assert not runs_on("a-1-cp311-cp311-manylinux_2_17_x86_64.whl", tags)


def test_a_damaged_folder_is_told(tmp_path):
    with pytest.raises(WheelError, match=r"wheels\.json is missing"):
        read_manifest(tmp_path)
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", "Name: A_b\nVersion: 1\nRequires-Dist: c>1\n")
    assert read_wheel(wheel) == Wheel("a-b", "1", wheel.name, ("c>1",))
    row = (
        f'{{"file": "{wheel.name}", "name": "a-b", "version": "1", "spare": false, "sha256": "0"}}'
    )
    manifest = f'{{"format": "strlora-wheels/1", "wheels": [{row}]}}'
    (tmp_path / "wheels.json").write_text(manifest)
    with pytest.raises(WheelError, match="is damaged"):
        read_manifest(tmp_path)
    (tmp_path / "wheels.json").write_text(manifest[:40])
    with pytest.raises(WheelError, match=r"wheels\.json is damaged"):
        read_manifest(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:40])
    with pytest.raises(ValueError, match="no whole wheel"):
        read_wheel(wheel)


@pytest.mark.parametrize("python", ["3", "3.9", "3.12.1", "three"])
def test_a_python_that_the_pack_does_not_run_on_is_refused_at_once(python, tmp_path):
    with pytest.raises(WheelError, match=r"expected one of 3\.10, 3\.11, 3\.12, 3\.13"):
        collect(tmp_path, python, {}, True)


@pytest.mark.parametrize("name", ["freeze.txt", "there/freeze", "/no/such/list"])
def test_a_list_that_is_not_there_is_no_package(name):
    with pytest.raises(WheelError, match="no such file"):
        read_beside(name)


def test_a_python_with_pip_alone_can_collect_and_install(tmp_path):
    """Debian's, for instance: nothing brings `packaging` but pip itself."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "pip").symlink_to(Path(find_spec("pip").origin).parent)
    command = [sys.executable, "-S", "-m", "recipes.wheels", "install", str(tmp_path)]
    done = subprocess.run(
        [*command, "--into", str(tmp_path / "new")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{bare}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"setup: error: {tmp_path}/wheels.json is missing")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beside", "torch"], "belongs to --wheels"),
        (["--wheels"], "needs a value"),
        (["--into", "there"], "--into belongs to --from"),
        (["--wheels", "a", "--from", "b"], "not both"),
    ],
)
def test_setup_refuses_half_a_command(words, message):
    done = subprocess.run(
        ["bash", "recipes/setup.sh", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_setup_says_what_could_not_be_installed_also_where_pip_was_killed(tmp_path):
    """By the kernel, for instance, on a machine with little memory: then pip wrote nothing."""
    for name in ("setup.sh", "processes/missing_requirements.py"):
        copy = tmp_path / "recipes" / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((ROOT / "recipes" / name).read_bytes())
    for path in ROOT.glob("requirements*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "requirements.txt").write_text("a-package-that-nobody-has>=1\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\n"
        'case "$*" in *"pip install"*) kill -9 $$ ;; *"import torch"*) exit 1 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "recipes/setup.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "setup: error: could not install torch" in done.stderr
