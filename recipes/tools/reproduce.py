"""`reproduce RUN`: repeats a recorded run in a new folder and lists what differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.stream import StreamError
from eval.matrix import read_cells
from recipes.config.problems import shown
from recipes.config.schema import Recipe
from recipes.run_folder.layout import OtherWeightsLayout, RunLayout
from recipes.run_folder.manifest import flat, read_manifest
from recipes.run_folder.state import RunState, load_state
from strlora_tuner.methods.slow_weights.options import KINDS
from strlora_tuner.saved import WEIGHTS

# Kinds of differences, in the order in which they explain each other.
CAUSES = ("config", "data", "model", "versions", "git", "hardware", "processes", "threads",
          "scorers", "environment")  # fmt: skip
RESULTS = ("chunks", "adapters", "scores")


def expect_chunks(recipe: Recipe) -> None:
    """Raise StreamError where chunk files were removed, so that nothing can train on them again."""
    folder = Path(recipe.data.stream) / "chunks"
    names = [f"{index:03d}.jsonl" for index in range(1, recipe.data.chunks + 1)]
    gone = [name for name in names if folder.is_dir() and not (folder / name).is_file()]
    if gone:
        raise StreamError(
            f"{folder}: {', '.join(gone)} were removed after they were trained, so the run cannot "
            "be repeated: bring them back (stream.json has their sha256), or compare with a copy "
            "of the run, --into FOLDER --compare-only"
        )


def differences(first: Path, second: Path) -> dict[str, list[str]]:
    """What differs between two run folders: kind -> lines "key: in the first, in the second".

    Kinds that are equal have no lines. Chunks of the first that the second lacks are named; of the
    others everything that the first has is compared. The second may have more.
    """
    one, two = RunLayout(first), RunLayout(second)
    old, new = read_manifest(one), read_manifest(two)
    differing = {"config": _changed(old["recipe"], new["recipe"], ("run_dir", "start_from"))}
    differing["data"] = _changed(old["data"], new["data"], ("stream",))
    starts = [each.get("start_from", {}).get("sha256") for each in (old, new)]
    differing["data"] += _changed({"start_from": starts[0]}, {"start_from": starts[1]})
    differing["model"] = _changed(old["model"], new["model"], ("path",))
    for kind in CAUSES[3:]:
        differing[kind] = _changed({kind: old.get(kind)}, {kind: new.get(kind)})
    if "environment" not in old:  # earlier versions recorded none
        differing["environment"] = []
    state, later = load_state(one.state), load_state(two.state)
    differing["chunks"] = list(lacking(state, later))
    trained = {chunk.index for chunk in later.chunks if chunk.trained}
    asked = {chunk.index for chunk in later.chunks if chunk.evaluated}
    adapters = _adapters(state, trained), _adapters(later, trained)
    differing["adapters"] = _changed(*adapters, of_first=True)
    scores = _scores(one, asked), _scores(two, asked)
    differing["scores"] = _changed(*scores, of_first=True)
    return differing


def lacking(first: RunState, second: RunState) -> Iterator[str]:
    """Yield a line for each chunk that the first run has done and the second has not."""
    for chunk in first.chunks:
        other = second.record(chunk.index)
        if chunk.trained and not other.trained:
            yield f"chunk {chunk.index}: trained, not trained"
        # Of a stream that has grown, the second may have passed over a chunk (eval.every).
        elif chunk.evaluated and not other.evaluated and not 0 < chunk.index <= second.done:
            yield f"chunk {chunk.index}: evaluated, not evaluated"


def _changed(old: Any, new: Any, but: tuple[str, ...] = (), of_first: bool = False) -> list[str]:
    before, after = dict(flat(old)), dict(flat(new))
    keys = before.keys() if of_first else before.keys() | after.keys()
    return [
        f"{key}: {shown(before.get(key))}, {shown(after.get(key))}"
        for key in sorted(keys)
        if key not in but and before.get(key) != after.get(key)
    ]


def _adapters(state: RunState, chunks: set[int]) -> dict[str, str]:
    """The hash of every tensor file of the chunks' adapters, second sets and routers, too."""
    return {
        f"chunk {chunk.index} {name}": digest
        for chunk in state.chunks
        if chunk.trained and chunk.index in chunks
        for name, digest in (chunk.adapter_sha256 | chunk.router_sha256).items()
        if name.endswith(Path(WEIGHTS).suffix)
    }


def _scores(layout: RunLayout, chunks: set[int]) -> dict[str, str]:
    files = {"": layout.matrix}
    for kind in KINDS:
        files[f"{kind} weights, "] = OtherWeightsLayout(layout.root, kind).matrix
    return {
        f"{weights}chunk {chunk} {task}": f"{score:.6f}"
        for weights, file in files.items()
        for (chunk, task), (score, _) in read_cells(file).items()
        if chunk in chunks
    }


def as_text(first: Path, second: Path, differing: dict[str, list[str]]) -> Iterator[str]:
    """The differences for people, results last with the verdict."""
    yield f"{second} against {first}:"
    for kind in (*CAUSES, *RESULTS):
        yield f"  {kind:<11} {'the same' if not differing[kind] else 'differs'}"
        yield from (f"    {line}" for line in differing[kind])
    count = sum(chunk.trained for chunk in load_state(RunLayout(first).state).chunks)
    if differing["chunks"]:
        yield (
            f"not reproduced: {second} lacks chunks of {first}, see above; let it finish, or copy "
            "it whole, and compare again"
        )
    elif any(differing[kind] for kind in RESULTS):
        yield "not reproduced: the first kinds above that differ are where to look"
    else:
        yield f"reproduced: the adapters of {count} chunks and all scores, bit for bit"


def is_same(differing: dict[str, list[str]]) -> bool:
    """Whether all chunks of the first run are there, with the same adapters and scores."""
    return not any(differing[kind] for kind in RESULTS)
