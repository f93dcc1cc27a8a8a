"""Two nodes of a real SLURM train the real tiny model together; a node fails, then one rank."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.run_folder.checkpoints import newest_checkpoint
from recipes.run_folder.layout import RunLayout
from tests.faults.real import BASE, needs_host, parameters_of, rows_of, training_processes
from tests.recipes.toy import recipe_values, write_recipe, write_stream
from tests.slurm.cluster import Cluster, missing
from tests.slurm.test_slurm import finished, logs, submit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    needs_host,
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "slurm") as found:
        # The names of the two virtual nodes are known to SLURM alone.
        found.environment |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        yield found


def recipe(folder: Path) -> Path:
    """Two chunks of 40 steps on two nodes, one process each; both nodes answer."""
    stream = write_stream(folder / "stream", samples=160, tests=2)
    values = recipe_values(stream, folder / "run", BASE, method="strlora")
    values["schedule"] |= {"per_device_batch": 2, "save_steps": 2}
    values["eval"] |= {"every": 2}
    values["launcher"] |= {"kind": "slurm", "nodes": 2}
    venv = str(Path(sys.executable).parent.parent)
    values["launcher"]["slurm"] = {"venv": venv, "logs": str(folder / "logs"), "time": "60"}
    return write_recipe(folder / "nodes.yaml", values)


def test_a_stream_on_two_nodes_survives_a_node_and_a_rank(cluster: Cluster, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    layout = RunLayout(tmp_path / "run")
    job = submit(cluster, path)
    cluster.wait_in(job, lambda: newest_checkpoint(layout.host(1)) is not None)
    cluster.fail_node("n2")
    cluster.wait_for(lambda: cluster.state(job) == "PENDING")  # SLURM requeued it by itself
    interrupted = newest_checkpoint(layout.host(1))
    assert interrupted is not None, "the node must fail inside the chunk"
    assert not interrupted.finished
    cluster.repair_node("n2")
    cluster.start_requeued(job)

    cluster.wait_in(job, lambda: newest_checkpoint(layout.host(2)) is not None)
    text = logs(tmp_path)
    assert ", start 2, " in text
    assert "chunk 1/2 training on 160 samples, resuming at step" in text
    ranks = {rank: pid for pid, rank in training_processes(layout.root).items()}
    assert set(ranks) == {"0", "1"}
    os.kill(ranks["1"], signal.SIGKILL)
    cluster.wait_until_over(job)
    text = logs(tmp_path)
    assert "training chunk 2 ended with exit code" in text, cluster.logs()
    assert "was ended by SIGKILL (out of memory? see dmesg)" in text
    assert "give the same command again; it continues from here" in text
    assert "back into the queue" not in text

    cluster.wait_until_over(submit(cluster, path))
    finished(cluster, tmp_path)
    assert "chunk 2/2 training on 160 samples, resuming at step" in logs(tmp_path)
    assert rows_of(layout) == [(c, t, "2") for c in ("0", "2") for t in ("VQAv2", "Fin")]
    # Both nodes answer: the questions are shared out.
    assert "[rank1]" in layout.eval_log(2).read_text(encoding="utf-8")
    assert parameters_of(layout, 1) != parameters_of(layout, 2)
    record = json.loads(layout.state.read_text(encoding="utf-8"))["chunks"]
    assert [chunk["steps"] for chunk in record] == [0, 40, 40]
