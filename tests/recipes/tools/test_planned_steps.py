"""Steps that `plan` counts, against the host's own sampler of several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.config.schema import Recipe
from recipes.tools.plan import make_plan
from tests.recipes.toy import write_stream


def steps_of_the_host(lines: int, processes: int, each: int, batch: int) -> int:
    """Optimizer steps of one pass: micro-batches of the first process, accumulated."""
    shard = pytest.importorskip("swift.dataloader.shard")
    world = {"rank": 0, "world_size": processes}
    sampler = type("Sampler", (shard.BatchSamplerShard,), world)(lines, each, False, False, None)
    accumulation = batch // each // processes
    return -(-len(list(sampler)) // accumulation)


@pytest.mark.parametrize(
    ("samples", "processes", "each"),
    [(13, 2, 2), (13, 2, 1), (13, 4, 1), (14, 4, 1), (15, 1, 2), (9, 2, 1), (8, 2, 2), (1, 1, 4)],
)
def test_the_end_that_the_processes_do_not_divide_is_no_step(
    toy: Callable[..., Recipe], tmp_path: Path, samples: int, processes: int, each: int
) -> None:
    stream = write_stream(tmp_path / "odd", samples=samples)
    batch = {"schedule.per_device_batch": each, "launcher.nproc": processes, "schedule.epochs": 2}
    words = [f"{key}={value}" for key, value in batch.items()]
    words.append(f"data.stream={stream}")
    plan = make_plan(toy(*words))
    expected = 2 * steps_of_the_host(samples, processes, each, batch=4)
    assert [chunk.steps for chunk in plan.chunks] == [expected] * 2
    assert [chunk.samples for chunk in plan.chunks] == [samples] * 2
