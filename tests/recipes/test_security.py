"""What a recipe, a stream or a model may not do to the machine that runs it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.files import read_json, sha256_file, write_json
from data_prep.stream import StreamError
from recipes import REPO
from recipes.cli import main
from recipes.config.loading import load_recipe
from recipes.config.problems import RecipeError
from recipes.config.schema import Recipe
from recipes.run.chunk_data import open_recipe_stream
from recipes.run.preflight.all_checks import look
from recipes.slurm.submit import header_options, render
from recipes.tools.preview import preview

PACKAGES = ("recipes", "data_prep", "eval", "strlora_tuner")
FORBIDDEN_CALLS = {"os.system", "os.popen", "eval", "exec", "yaml.load", "yaml.unsafe_load"}
FORBIDDEN_CALLS |= {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "marshal.loads"}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib"}


def sources() -> list[Path]:
    return [path for name in PACKAGES for path in sorted((REPO / name).rglob("*.py"))]


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & FORBIDDEN_IMPORTS
        if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_IMPORTS:
            yield str(node.module)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" for k in node.keywords)
            if name in FORBIDDEN_CALLS and not (name == "torch.load" and safe):
                yield name
            yield from (f"{name}(shell=...)" for k in node.keywords if k.arg == "shell")


def test_no_shell_no_pickle_no_unsafe_yaml_anywhere() -> None:
    found = {
        str(path.relative_to(REPO)): names
        for path in sources()
        if (names := sorted(set(offences(ast.parse(path.read_text(encoding="utf-8"))))))
    }
    # Reads a package's arrays through an Unpickler that refuses everything but numpy arrays.
    assert found == {"data_prep/mini/tasks/imagenet.py": ["pickle"]}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "os.system('x')", "subprocess.run('x', shell=True)", "torch.load('x')"],
)
def test_the_search_above_finds_something(code: str) -> None:
    assert list(offences(ast.parse(code)))


def test_yaml_cannot_make_objects(toy_yaml: Callable[..., Path], tmp_path: Path) -> None:
    path = toy_yaml()
    mark = tmp_path / "made"
    text = path.read_text(encoding="utf-8")
    text += f"\nseed: !!python/object/apply:pathlib.Path.touch [{mark}]\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("key", ["hub_token", "swanlab_token", "swanlab_secret"])
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(
    toy_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert main([str(toy_yaml()), "--validate", f"swift.{key}=hf_verysecret"]) == 2
    err = capsys.readouterr().err
    assert "a secret would be logged" in err
    assert "hf_verysecret" not in err


def test_a_secret_is_not_read_out_of_the_environment(
    toy_yaml: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert main([str(toy_yaml()), "--validate", "swift.system=${oc.env:HF_TOKEN}"]) == 2
    err = capsys.readouterr().err
    assert "oc.env:HF_TOKEN" in err
    assert "hf_verysecret" not in err
    assert main([str(toy_yaml()), "--validate", "run_dir=${oc.env:SCRATCH}/run"]) == 0


def test_no_secret_of_the_environment_is_printed(
    toy: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert "hf_verysecret" not in "\n".join(preview(toy()))


def test_a_models_own_code_is_off_unless_the_recipe_says_so(
    toy: Callable[..., Recipe], model: Path
) -> None:
    assert look(toy()) == []
    content = {"auto_map": {"AutoModel": "modeling_x.X"}}
    (model / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (problem,) = look(toy())
    assert "model.remote_code: true if you trust" in problem.text
    trusted = toy("model.remote_code=true")
    assert look(trusted) == []
    text = "\n".join(preview(trusted))
    assert "WILL BE RUN" in text
    assert "STRLORA_REMOTE_CODE=1" in text
    assert "STRLORA_REMOTE_CODE" not in "\n".join(preview(toy()))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "~/x.png", "a/../../x.png"])
def test_an_image_cannot_leave_the_stream(
    toy: Callable[..., Recipe], stream: Path, name: str
) -> None:
    file = stream / "chunks" / "001.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "images": [name]})
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = read_json(stream / "stream.json")
    manifest["chunks"][0]["sha256"] = sha256_file(file)
    write_json(stream / "stream.json", manifest)
    with pytest.raises(StreamError, match=r"001\.jsonl:2: image .* (stream folder|leaves)"):
        open_recipe_stream(toy()).verify_chunk(1)


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden"])
def test_a_task_cannot_name_a_file_elsewhere(
    toy: Callable[..., Recipe], stream: Path, name: str
) -> None:
    path = stream / "stream.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["tasks"] = {name: manifest["tasks"]["Fin"]}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(StreamError, match="is no name of a task"):
        open_recipe_stream(toy())


@pytest.mark.parametrize(
    "override",
    [
        "launcher.slurm.partition='gpu\n#SBATCH --uid=0'",
        "launcher.slurm.account='a b'",
        "launcher.slurm.time='1; id'",
        "launcher.slurm.venv='/x y'",
        "launcher.slurm.options=['x\ny']",
        "launcher.slurm.modules=['$(id)']",
        "name='x; id'",
    ],
)
def test_a_job_file_takes_words_only(toy_yaml: Callable[..., Path], override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(str(toy_yaml()), ["launcher.kind=slurm", override])


def test_what_stands_in_a_job_file_is_quoted(toy: Callable[..., Recipe]) -> None:
    recipe = toy("launcher.kind=slurm", "launcher.slurm.venv=/x$(id)", "launcher.nodes=2",
                 "launcher.slurm.modules=[cuda/12.8]", "schedule.per_device_batch=2")  # fmt: skip
    script = render(recipe, "stream.sbatch")
    assert "export PYTHON='/x$(id)/bin/python'" in script
    assert "module load cuda/12.8" in script
    assert "nodes=2" in header_options(recipe, "stream.sbatch")
    assert script.index("#SBATCH --nodes=2") < script.index("set -uo pipefail")
