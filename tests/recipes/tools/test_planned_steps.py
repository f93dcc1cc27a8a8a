"""Steps and stored numbers that `plan` counts, against the host's own sampler and each chunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.config.loading import load_recipe
from recipes.config.schema import Recipe
from recipes.config.sizes.base_model import model_shape, tuner_size
from recipes.config.sizes.stored import checkpoint_bytes, sizes_by_chunk
from recipes.run.preflight.free_space import bytes_to_come
from recipes.run.preflight.stream_files import check_stream
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


def test_a_chunk_of_fewer_samples_than_processes_is_named_before_the_run(
    toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    """What all processes get alike is dealt out: of 3 samples none of 4 gets one."""
    assert steps_of_the_host(3, 4, 1, batch=4) == 0
    small = write_stream(tmp_path / "small", samples=3)

    def told(*words: str) -> list[str]:
        recipe = toy(f"data.stream={small}", "schedule.per_device_batch=1", *words)
        return [each.text.partition(", each")[0] for each in check_stream(recipe)]

    text = "chunk {} of data.stream has 3 samples for 4 processes"
    assert told("launcher.nproc=4") == [text.format(chunk) for chunk in (1, 2)]
    assert told("launcher.nproc=2") == []
    assert told("launcher.nproc=4", "replay={memory: 4, share: 0.5}") == [text.format(1)]
    assert told("launcher.nproc=4", "method=joint") == []  # of all chunks at once


@pytest.mark.parametrize("method", ["olora", "hide_llava", "branchlora", "lora", "mr_lora"])
def test_the_adapters_of_all_chunks_are_what_each_of_them_stores(method: str) -> None:
    """O-LoRA's file grows by a pair a chunk: 1 + 2 + ... + 8 pairs, not 8 times 8."""
    recipe = load_recipe("tiny", [f"method={method}"])
    shape = model_shape(recipe)
    assert shape is not None
    files = [tuner_size(recipe, shape, chunk).stored for chunk in range(1, 9)]
    if method == "olora":
        assert files == [files[0] * chunk for chunk in range(1, 9)]
    if method == "mr_lora":
        files += files[1:]  # a router after each but the first
    plan = make_plan(recipe)
    assert plan.model is not None
    assert plan.model.adapters_gib * 2**30 == 4 * sum(files)
    recipe = recipe.model_copy(update={"run_dir": "runs/of-no-such-name"})
    sizes = sizes_by_chunk(recipe, shape)
    checkpoints = checkpoint_bytes(recipe, sizes[8])
    assert bytes_to_come(recipe, sizes) == 4 * sum(files) + checkpoints
