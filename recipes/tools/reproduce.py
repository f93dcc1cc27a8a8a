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
from recipes.run_folder.state import load_state
from strlora_tuner.methods.slow_weights.options import KINDS
from strlora_tuner.saved import WEIGHTS

# Kinds of differences, in the order in which they explain each other.
CAUSES = ("config", "data", "model", "versions", "git", "hardware", "processes", "threads",
          "scorers", "environment")  # fmt: skip
RESULTS = ("adapters", "scores")


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

    Kinds that are equal have no lines; only chunks that both runs have are compared.
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
    differing["adapters"] = _changed(_adapters(one), _adapters(two), both=True)
    differing["scores"] = _changed(_scores(one), _scores(two), both=True)
    return differing


def _changed(old: Any, new: Any, but: tuple[str, ...] = (), both: bool = False) -> list[str]:
    before, after = dict(flat(old)), dict(flat(new))
    keys = before.keys() & after.keys() if both else before.keys() | after.keys()
    return [
        f"{key}: {shown(before.get(key))}, {shown(after.get(key))}"
        for key in sorted(keys)
        if key not in but and before.get(key) != after.get(key)
    ]


def _adapters(layout: RunLayout) -> dict[str, str]:
    """The hash of every tensor file of every chunk's adapter, its second set of weights, too."""
    return {
        f"chunk {chunk.index} {name}": digest
        for chunk in load_state(layout.state).chunks
        if chunk.trained
        for name, digest in chunk.adapter_sha256.items()
        if name.endswith(Path(WEIGHTS).suffix)
    }


def _scores(layout: RunLayout) -> dict[str, str]:
    files = {"": layout.matrix}
    for kind in KINDS:
        files[f"{kind} weights, "] = OtherWeightsLayout(layout.root, kind).matrix
    return {
        f"{weights}chunk {chunk} {task}": f"{score:.6f}"
        for weights, file in files.items()
        for (chunk, task), (score, _) in read_cells(file).items()
    }


def as_text(first: Path, second: Path, differing: dict[str, list[str]]) -> Iterator[str]:
    """The differences for people, results last with the verdict."""
    yield f"{second} against {first}:"
    for kind in (*CAUSES, *RESULTS):
        yield f"  {kind:<11} {'the same' if not differing[kind] else 'differs'}"
        yield from (f"    {line}" for line in differing[kind])
    count = sum(chunk.trained for chunk in load_state(RunLayout(second).state).chunks)
    if any(differing[kind] for kind in RESULTS):
        yield "not reproduced: the first kinds above that differ are where to look"
    else:
        yield f"reproduced: the adapters of {count} chunks and all scores, bit for bit"


def is_same(differing: dict[str, list[str]]) -> bool:
    """Whether adapters and scores are the same."""
    return not any(differing[kind] for kind in RESULTS)
