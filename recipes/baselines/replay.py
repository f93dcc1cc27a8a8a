"""Experience replay: a reservoir over the stream, and training files that hold its share.

Reservoir (Vitter 1985, algorithm R): of the n samples offered so far each is kept with probability
M / n. A chunk's samples are offered after the chunk was trained, in the order of its file. From the
second chunk on the host trains on a file written here, in its order, in which every global batch
holds exactly the stated share of replayed samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import read_json, sha256_file, write_json, write_text
from data_prep.stream import Stream
from recipes.config.schema import Recipe
from recipes.run_folder.checkpoints import CheckpointError, verify_adapter
from recipes.run_folder.layout import RunLayout
from recipes.run_folder.state import RunState

MEMORY, STATE = "memory.jsonl", "state.json"
FORMAT = 1


class Reservoir:
    """M lines drawn uniformly from all lines offered so far; `seen` counts those."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seen = size, 0
        self.lines: list[str] = []
        self.generator = random.Random(seed)

    def offer(self, line: str) -> None:
        """Keeps `line` with probability M / n, in the place of a random other one."""
        self.seen += 1
        if len(self.lines) < self.size:
            self.lines.append(line)
            return
        place = self.generator.randrange(self.seen)
        if place < self.size:
            self.lines[place] = line


def read_lines(path: Path) -> list[str]:
    """Returns the samples of a chunk's file, one JSON text each, without line ends."""
    # Not splitlines: other line separators may stand inside a text.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line.strip()]


def save_reservoir(folder: Path, reservoir: Reservoir) -> dict[str, str]:
    """Writes the memory and the state of its generator; returns the sha256 of both files."""
    text = "".join(f"{line}\n" for line in reservoir.lines)
    # The generator goes on where it was: the draw must not depend on how often the run stopped.
    version, words, gauss = reservoir.generator.getstate()
    state = {
        "format": FORMAT,
        "size": reservoir.size,
        "seen": reservoir.seen,
        "kept": len(reservoir.lines),
        "generator": [version, list(words), gauss],
    }
    write_text(folder / MEMORY, text)
    write_json(folder / STATE, state)
    return {name: sha256_file(folder / name) for name in (MEMORY, STATE)}


def load_reservoir(folder: Path, expected: dict[str, str]) -> Reservoir:
    """Reads what `save_reservoir` wrote.

    Args:
        expected: sha256 of both files, as they were recorded.

    Raises:
        CheckpointError: a file is missing or is not the one that was recorded.
    """
    verify_adapter(folder, {name: expected.get(name, "") for name in (MEMORY, STATE)})
    state = read_json(folder / STATE)
    if state["format"] != FORMAT:
        found = state["format"]
        raise CheckpointError(f"{folder / STATE}: format {found!r}, expected {FORMAT}")
    # Whatever the seed: the saved state of the generator takes its place.
    reservoir = Reservoir(int(state["size"]), seed=0)
    reservoir.seen, reservoir.lines = int(state["seen"]), read_lines(folder / MEMORY)
    version, words, gauss = state["generator"]
    # JSON has lists alone, and setstate takes nothing but tuples.
    reservoir.generator.setstate((version, tuple(words), gauss))
    return reservoir


@dataclass(frozen=True)
class Mixture:
    """How a training file is laid out.

    Attributes:
        global_batch: samples an optimizer step.
        replayed: how many of them are replayed.
        processes: over which the host deals out the file, line by line.
        equal: as many samples as the chunk has; replayed ones take the place of its own.
    """

    global_batch: int
    replayed: int
    processes: int = 1
    equal: bool = False

    def batches(self, samples: int) -> Iterator[tuple[int, int]]:
        """Yields for each batch how many samples are the chunk's and how many are replayed.

        Only the last one may be smaller: it holds the stated share rounded up. Besides all of the
        chunk's own it is rounded up further to what the processes divide, since the host leaves
        out the rest of a file; in their place the rest is what it is without replay.

        Args:
            samples: of the chunk, in all epochs.
        """
        own = self.global_batch - self.replayed
        for left in range(samples, 0, -(self.global_batch if self.equal else own)):
            if self.equal:
                size = min(left, self.global_batch)
                replayed = -(-size * self.replayed // self.global_batch)
                yield size - replayed, replayed
            else:
                current = min(left, own)
                replayed = -(-current * self.replayed // own)
                yield current, replayed + -(current + replayed) % self.processes


def mixed_lines(
    current: Sequence[str], memory: Sequence[str], mixture: Mixture, epochs: int, seed: int
) -> Iterator[str]:
    """Yields the lines of a chunk's training file, to be read in this order.

    Every sample of the chunk comes once an epoch, each epoch in another order (of an equal mixture
    as many as there is room for); only the last batch of all may be smaller. Each batch draws its
    replayed samples anew, without repetition while the memory holds enough of them (else each of
    its samples comes as often, give or take one).

    Args:
        current: the chunk's samples.
        memory: the reservoir's, at least one.
        seed: decides every order and draw, nothing else does.
    """
    generator = random.Random(seed)
    order: list[str] = []
    for _ in range(epochs):
        order += generator.sample(current, len(current))
    start = 0
    for own, replayed in mixture.batches(len(order)):
        batch = order[start : start + own] + _draw(memory, replayed, generator)
        start += own
        generator.shuffle(batch)
        yield from batch


def _draw(memory: Sequence[str], count: int, generator: random.Random) -> list[str]:
    whole, rest = divmod(count, len(memory))
    return [*memory] * whole + generator.sample(memory, rest)


def mixture_of(recipe: Recipe) -> Mixture:
    """How a training file with replayed samples is laid out; only for a recipe with replay."""
    assert recipe.replay is not None
    replayed = recipe.replay.replayed(recipe.schedule.global_batch)
    assert replayed is not None, "the schema refuses such a share"
    equal = recipe.replay.samples == "equal"
    return Mixture(recipe.schedule.global_batch, replayed, recipe.processes, equal)


def replays_at(recipe: Recipe, layout: RunLayout, chunk: int) -> bool:
    """Whether past samples are mixed into a chunk; the first may have some by `start_from`."""
    return recipe.replays(chunk) and (chunk > 1 or layout.replay(0).is_dir())


def write_replay_file(
    recipe: Recipe, layout: RunLayout, stream: Stream, state: RunState, chunk: int, seed: int
) -> str:
    """Writes the training file with replayed samples, if the chunk has one; says so in words.

    The file follows from the memory, the chunk and the seed alone: a resumed chunk gets the same.
    """
    if recipe.replay is None or not replays_at(recipe, layout, chunk):
        return ""
    mixture, memory = mixture_of(recipe), _reservoir(recipe, layout, state, chunk - 1)
    current = read_lines(stream.chunk_file(chunk))
    lines = mixed_lines(current, memory.lines, mixture, recipe.schedule.epochs, seed)
    write_text(layout.replay_file(chunk), "".join(f"{line}\n" for line in lines))
    count, batch = len(memory.lines), mixture.global_batch
    place = ", in the place of new ones" if mixture.equal else ""
    return f", {mixture.replayed} of {batch} in a batch replayed from {count} kept{place}"


def update_reservoir(
    recipe: Recipe, layout: RunLayout, stream: Stream, state: RunState, chunk: int
) -> dict[str, str]:
    """Offers a trained chunk's samples to the reservoir, in their order; returns its files' sha256.

    Doing it again gives the same files.
    """
    if recipe.replay is None:
        return {}
    memory = _reservoir(recipe, layout, state, chunk - 1)
    for line in read_lines(stream.chunk_file(chunk)):
        memory.offer(line)
    return save_reservoir(layout.replay(chunk), memory)


def _reservoir(recipe: Recipe, layout: RunLayout, state: RunState, chunk: int) -> Reservoir:
    """The reservoir after chunk `chunk`, checked against what was recorded; 0: an empty one."""
    assert recipe.replay is not None
    # With `start_from` chunk 0 has the memory that came along.
    if chunk == 0 and not layout.replay(0).is_dir():
        return Reservoir(recipe.replay.memory, recipe.seed)
    return load_reservoir(layout.replay(chunk), state.record(chunk).replay_sha256)
