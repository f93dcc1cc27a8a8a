"""A stream through a real SLURM with two virtual nodes; what is trained is the stand-in host's.

The stand-in keeps this cheap; that two real processes train what one trains is in
tests/host/test_methods.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes import REPO
from tests.recipes.toy import recipe_values, write_model, write_recipe, write_stream
from tests.slurm.cluster import Cluster, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def recipe(folder: Path, nodes: int, step_seconds: float, **slurm: Any) -> Path:
    """A recipe of two chunks; its virtual environment runs the stand-in host."""
    stream = write_stream(folder / "stream", samples=16)
    write_model(folder / "model")
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!/bin/sh\nexport FAKE_STEP_SECONDS={step_seconds}\n"
        f"if [ -e {folder}/fast ]; then FAKE_STEP_SECONDS=0.02; fi\nshift 2\n"
        f'exec {sys.executable} -m tests.recipes.fake_run "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    values = recipe_values(stream, folder / "run", folder / "model")
    values["schedule"] |= {"per_device_batch": 2, "save_steps": 1000}
    values["launcher"] |= {"kind": "slurm", "nodes": nodes}
    values["launcher"]["slurm"] = {
        "venv": str(folder / "venv"),
        "logs": str(folder / "logs"),
        "time": "10",
        **slurm,
    }
    return write_recipe(folder / "toy.yaml", values)


def submit(cluster: Cluster, path: Path, *options: str) -> str:
    """Submits a run, or the sweep that the options name; returns the job's number."""
    command = "sweep" if options else "run"
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", command, str(path), "--slurm", *options],
        cwd=REPO,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("submitted job ")[1].split(";")[0]


def logs(folder: Path) -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in (folder / "logs").glob("*.out"))


def finished(cluster: Cluster, folder: Path, name: str = "run") -> None:
    """Fails with all logs unless the run is finished."""
    text = f"{logs(folder)}\n{cluster.logs()}"
    path = folder / name / "state.json"
    assert path.is_file(), text
    assert json.loads(path.read_text(encoding="utf-8"))["finished"], text


def test_two_nodes_meet_and_train_the_stream(cluster: Cluster, tmp_path: Path) -> None:
    cluster.wait_until_over(submit(cluster, recipe(tmp_path, 2, 0.02)))
    finished(cluster, tmp_path)
    nodes = [
        json.loads((tmp_path / "run/chunks/002" / f"node-{rank}.json").read_text(encoding="utf-8"))
        for rank in (0, 1)
    ]
    assert [node["NODE_RANK"] for node in nodes] == ["0", "1"]
    assert {node["NNODES"] for node in nodes} == {"2"}
    assert {node["NPROC_PER_NODE"] for node in nodes} == {"1"}
    assert {node["MASTER_ADDR"] for node in nodes} == {"n1"}
    assert len({node["MASTER_PORT"] for node in nodes}) == 1
    # Both were asked; test_real_nodes.py sees both answer.
    evaluation = (tmp_path / "run/chunks/002/eval.log").read_text(encoding="utf-8")
    assert "[rank1]" in evaluation


def test_the_cluster_is_asked_before_a_job_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    path = recipe(tmp_path, 2, 0.02)
    words = [sys.executable, "-m", "recipes.cli", "run", str(path), "--slurm"]

    def asked(*more: str) -> subprocess.CompletedProcess[str]:
        environment = cluster.environment
        return subprocess.run(
            [*words, *more], cwd=REPO, env=environment, capture_output=True, text=True
        )

    good = asked("--dry-run").stdout
    assert "# NOTE     sbatch: Job " in good
    assert "to start at" in good
    shown = asked("launcher.slurm.partition=none", "--dry-run").stdout
    assert "# MISSING  sbatch: the cluster refuses the job: error: invalid partition" in shown
    refused = asked("launcher.nodes=2", "launcher.slurm.memory=900G")
    assert refused.returncode == 1
    assert "the job could not run:" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_is_told_of_its_time_limit_saves_and_goes_on(
    cluster: Cluster, tmp_path: Path, nodes: int
) -> None:
    """What `--signal=B:USR1@N` does N seconds before the limit is done here once training runs.

    On two nodes the signal goes through srun to the workers' own sessions.
    """
    path = recipe(tmp_path, nodes, 5.0)  # seconds a step, of which the chunk has eight
    job = submit(cluster, path)
    cluster.wait_in(job, (tmp_path / "run/chunks/001/host/logging.jsonl").exists)
    (tmp_path / "fast").touch()  # what the next start finds
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_in(job, lambda: "back into the queue" in logs(tmp_path))
    log = (tmp_path / "run/chunks/001/train.log").read_text(encoding="utf-8")
    assert "Exited with exit code" not in log  # srun's word when a launcher died of the signal
    cluster.start_requeued(job)
    cluster.wait_until_over(job)
    finished(cluster, tmp_path)
    text = logs(tmp_path)
    assert "stopped by SIGUSR1" in text
    assert "resuming at step" in text
    assert ", start 2, " in text


def test_a_sweep_is_one_array_with_a_throttle(cluster: Cluster, tmp_path: Path) -> None:
    """Two seeds by two ranks, one at a time; submitted again, only what is not finished runs."""
    path, sweep = recipe(tmp_path, 1, 0.02), tmp_path / "sweep"
    axes = ["--seeds", "3-4", "--grid", "tuner.rank=4,8", "--into", str(sweep)]
    job = submit(cluster, path, *axes, "--throttle", "1")
    most = 0

    def over() -> bool:
        nonlocal most
        states = cluster.run("squeue", "-h", "-j", job, "-r", "-o", "%T").split()
        most = max(most, states.count("RUNNING"))
        return not states

    cluster.wait_for(over)
    assert most == 1
    names = [f"lora-seed{seed}-rank={rank}" for rank in (4, 8) for seed in (3, 4)]
    for name in names:
        finished(cluster, tmp_path, f"sweep/{name}")
        manifest = json.loads((sweep / name / "manifest.json").read_text(encoding="utf-8"))
        assert f"lora-seed{manifest['seed']}-rank={manifest['recipe']['tuner']['rank']}" == name
    status = [sys.executable, "-m", "recipes.cli", "status", str(sweep)]
    told = subprocess.run(status, cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert "4 runs: 4 finished" in told
    (sweep / names[2] / "state.json").unlink()
    words = ["sweep", str(path), "--slurm", *axes, "--dry-run"]
    again = subprocess.run(
        [sys.executable, "-m", "recipes.cli", *words],
        cwd=REPO, env=cluster.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "--array=0-0 " in again
    assert "# task 0: tuner.rank=8 seed=3" in again


def test_the_evaluation_is_a_job_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    path = recipe(tmp_path, 2, 0.02, eval_jobs=True)
    words = [sys.executable, "-m", "recipes.cli", "run", str(path), "--slurm"]
    shown = subprocess.run([*words, "--dry-run"], cwd=REPO, capture_output=True, text=True).stdout
    assert "--train-only" in shown
    assert "--dependency=afterok:JOB" in shown
    assert "#SBATCH --nodes=1\n" in shown
    done = subprocess.run(
        words, cwd=REPO, env=cluster.environment, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("submitted job ")]
    jobs = [line.removeprefix("submitted job ") for line in lines]
    training, evaluation = jobs[0].split(";")[0], jobs[1].split()[0]
    cluster.wait_until_over(training)
    cluster.wait_until_over(evaluation)
    finished(cluster, tmp_path)
    trained = (tmp_path / f"logs/toy-{training}.out").read_text(encoding="utf-8")
    assert "trained: 2 chunks; the same command without --train-only evaluates them" in trained
    assert "scores:" not in trained
    evaluated = (tmp_path / f"logs/toy-{evaluation}.out").read_text(encoding="utf-8")
    assert "on n1, start 1" in evaluated
    assert "chunk 2/2 scores:" in evaluated


def test_a_failed_job_is_told_and_not_requeued(cluster: Cluster, tmp_path: Path) -> None:
    """The submission looks at the files of the stream, so the host itself fails here."""
    path = recipe(tmp_path, 1, 0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cluster.environment, "FAKE_FAIL_AT", "1")
        cluster.wait_until_over(submit(cluster, path))
    text = logs(tmp_path)
    assert "training chunk 1 ended with exit code" in text, cluster.logs()
    assert "back into the queue" not in text


def test_a_light_watcher_submits_a_job_for_each_arrival(cluster: Cluster, tmp_path: Path) -> None:
    path = recipe(tmp_path, 1, 0.02)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values["data"]["chunks"]
    write_recipe(path, values)
    (tmp_path / "inbox").mkdir()
    words = [sys.executable, "-m", "recipes.cli", "watch", str(path), str(tmp_path / "inbox")]
    words += ["--slurm", "--once", "--rest", "0", "--workers", "1"]

    def look() -> list[str]:
        """The jobs that one look submits."""
        done = subprocess.run(
            words, cwd=REPO, env=cluster.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [part.split(";")[0] for part in done.stdout.split("submitted job ")[1:]]

    first = look()  # of the stream as it is
    assert len(first) == 1
    assert look() == []  # its job waits or runs
    rows = "".join(f"What is {n}?,a mug\n" for n in range(8))
    (tmp_path / "inbox/new.csv").write_text(f"question,answer\n{rows}")
    second = look()
    assert len(second) == 1
    for job in (*first, *second):
        cluster.wait_until_over(job)
    finished(cluster, tmp_path)
    adapters = (tmp_path / "run/chunks").glob("*/adapter/adapter_model.safetensors")
    assert len(list(adapters)) == 3
    assert look() == []
