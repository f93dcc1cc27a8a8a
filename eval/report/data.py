"""All that a report shows, read from the files of a run.

A run may still be going on, and files may be missing or damaged: whatever cannot be read becomes a
`Gap`, a sentence that the report shows in its place. Nothing is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_prep.files import Record, a_few, read_jsonl
from data_prep.stream import MANIFEST, Stream, StreamError
from eval.matrix import Matrix, load_matrix, read_scores
from eval.predictions import TaskScores, task_scores
from eval.routing.record import Routing, load_routing
from eval.routing.router_accuracy import Choices, read_choices
from eval.run_files import (
    AblationContent,
    ChunkScores,
    Manifest,
    RunState,
    chunk_folder,
    read_ablation,
    read_manifest,
    read_state,
)
from eval.scorers.registry import open_scored_stream, scorer_of

Array = NDArray[np.float64]
T = TypeVar("T")
# So many chunks show how routing went; a file of a large model has half a megabyte.
MOST_ROUTING_FILES = 26
UNREADABLE = (OSError, StreamError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Gap:
    """Something that the report cannot show, and why."""

    what: str
    why: str


@dataclass
class RunData:
    """The files of one run.

    Attributes:
        root: the run folder.
        matrix: a[chunk, task]; empty before the first evaluation.
        stream: the stream folder, None where it cannot be read.
        manifest, state: of the run, empty where missing.
        recipe: the text of recipe.yaml.
        scored: sample scores by (chunk, task).
        training: the host's log lines by chunk.
        routing: expert use by chunk.
        choices: by chunk, which chunk's adapter or router the questions took; empty for methods
            that do not choose among chunks.
        gaps: what is missing.
        ablation: what parts of the router are worth; None where not measured.
        last_scores: scores.json of the last evaluated chunk; None where missing.
        other_weights: "fast" or "slow", and the matrix of that set; None: it was not asked.
        folder: what `root` is called beside the runs that it is compared with.
    """

    root: Path
    matrix: Matrix
    stream: Stream | None = None
    manifest: Manifest = field(default_factory=Manifest)
    state: RunState = field(default_factory=RunState)
    recipe: str = ""
    scored: dict[tuple[int, str], TaskScores] = field(default_factory=dict)
    training: dict[int, list[Record]] = field(default_factory=dict)
    routing: dict[int, Routing] = field(default_factory=dict)
    choices: dict[int, Choices] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    ablation: AblationContent | None = None
    last_scores: ChunkScores | None = None
    other_weights: tuple[str, Matrix] | None = None
    folder: str = ""

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.manifest.name or self.root.resolve().name

    @property
    def tasks(self) -> list[str]:
        """Return the evaluated tasks, in the stream's order."""
        return self.matrix.tasks

    @property
    def evaluated(self) -> int:
        """Return the last chunk that has an evaluation."""
        return max(len(self.matrix.values) - 1, 0)

    @property
    def planned(self) -> int:
        """Return how many chunks the run will have; 0 where no file says so."""
        return self.manifest.chunks or (len(self.stream.chunks) if self.stream else 0)

    @property
    def finished(self) -> bool:
        """Tell whether all planned chunks are done."""
        if self.state.finished is not None:
            return self.state.finished
        return bool(self.planned) and (self.state.done or 0) >= self.planned

    def chunk(self, number: int) -> Path:
        """Return the folder of a chunk's files."""
        return chunk_folder(self.root, number)

    @property
    def has_no_stream(self) -> bool:
        """Return whether there is nothing between base model and end: joint training, zero-shot.

        Of such a run only the last scores mean something: it has no stream to forget in.
        """
        return self.manifest.protocol in ("joint", "zero_shot")

    def chunk_label(self, chunk: int) -> str:
        """Return what a chunk is called, with its period or label: "chunk 3 (2026-03)"."""
        if chunk == 0:
            return "base model"
        known = self.stream is not None and chunk <= len(self.stream.chunks)
        name = self.stream.chunk_name(chunk) if self.stream and known else ""
        return f"chunk {chunk} ({name})" if name else f"chunk {chunk}"

    def first_seen(self) -> list[int | None]:
        """Return for each task the first chunk that held it, None: never or not known."""
        if self.has_no_stream:
            return [None] * len(self.tasks)
        seen = self.stream.first_seen() if self.stream else {}
        return [seen.get(task) for task in self.tasks]

    def aggregate(self, task: str) -> Callable[[Array], Array]:
        """Return what turns a task's mean sample score into its score (captions: clipped CIDEr)."""
        return scorer_of(self.stream, task).of_mean if self.stream else np.asarray

    @property
    def method(self) -> str:
        """Return the method's name, its preset, and the labels it reads."""
        return self.manifest.method_name(preset=True)

    @property
    def seed_text(self) -> str:
        """Return the seed for people, with that of a stream that is made from one."""
        if self.manifest.seed is None:
            return "unknown"
        data = self.manifest.block("data")
        made = data.get("source") == "mini" and "seed" in data
        stream = f", stream seed {data['seed']}" if made else ""
        return f"{self.manifest.seed}{stream}"

    def composition(self) -> list[dict[str, int]]:
        """Return for every planned chunk the samples of each task."""
        if self.stream is None:
            return []
        return [dict(chunk.tasks) for chunk in self.stream.chunks[: self.planned]]

    def sample_scores(self, task: str) -> Array:
        """Return the task's sample scores (chunks + 1, n), a row of NaN = not evaluated.

        Columns are the samples of the first evaluation; a chunk with other samples is left out.
        """
        rows = [self.scored.get((chunk, task)) for chunk in range(len(self.matrix.values))]
        known = next((row for row in rows if row is not None), None)
        ids = [] if known is None else known.ids
        table = np.full((len(rows), len(ids)), np.nan)
        for chunk, row in enumerate(rows):
            # Of a chunk without any answer nothing was measured: NaN, never 0.
            if row is not None and row.ids == ids and row.failed < len(ids):
                table[chunk] = row.scores
        return table


def load_run(run_dir: Path, stream_dir: Path | None = None) -> RunData:
    """Read a run folder.

    Args:
        run_dir: the run folder.
        stream_dir: the stream folder; None takes the one that manifest.json names.

    Raises:
        FileNotFoundError: there is no such folder; everything else becomes a gap.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such run; the folder should hold matrix.csv")
    gaps: list[Gap] = []
    manifest = _try(
        gaps, "Configuration", partial(read_manifest, run_dir / "manifest.json"), Manifest()
    )
    state = _try(gaps, "State of the run", partial(read_state, run_dir / "state.json"), RunState())
    stream = _try(gaps, "Stream", lambda: find_stream(run_dir, manifest, stream_dir), None)
    matrix = _try(gaps, "Scores", lambda: _load_matrix(run_dir, stream), _NO_MATRIX)
    recipe = _try(gaps, "Recipe", lambda: (run_dir / "recipe.yaml").read_text("utf-8"), "")
    run = RunData(run_dir, matrix, stream, manifest, state, recipe, gaps=gaps)
    run.other_weights = _try(gaps, "Scores of the other weights", lambda: _other(run), None)
    _read_predictions(run)
    _read_training(run)
    _read_routing(run)
    _read_choices(run)
    what, none = "Training samples too long", list[Gap]()
    run.gaps += _try(gaps, what, lambda: list(_long_samples(run_dir)), none)
    path = run.chunk(run.evaluated) / "scores.json"
    if path.is_file():
        run.last_scores = _try(gaps, "Scores of the last chunk", lambda: read_scores(path), None)
    path = run_dir / "ablation.json"
    if path.is_file():
        run.ablation = _try(gaps, "Ablations", lambda: read_ablation(path), None)
    run.gaps = [Gap(gap.what, without_folders(gap.why, run)) for gap in run.gaps]
    return run


def _long_samples(run: Path) -> Iterator[Gap]:
    """Yield a gap for each training, of a chunk or router, with samples over model.max_length."""
    for path in sorted(run.glob("chunks/*/*too_long.jsonl")):
        rows = [row for row in read_jsonl(path, torn_tail=True) if "file" in row]
        if rows:
            names = a_few([str(row.get("id") or f"line {row['line']}") for row in rows])
            cut = sum(row["done"] == "cut" for row in rows)
            done = f"{cut} cut, {len(rows) - cut} skipped (the next sample took its place)"
            of_router = ", router" if path.name.startswith("router") else ""
            yield Gap(
                f"Chunk {int(path.parent.name)}{of_router}: {len(rows)} training samples too long",
                f"more than {rows[-1]['max_length']} tokens: {done}: {names}",
            )


_NO_MATRIX = Matrix(np.zeros((0, 0)), [], np.zeros((0, 0), dtype=np.int64))


def without_folders(text: str, run: RunData) -> str:
    """Return a text without the folders of this machine: a report is sent to others."""
    folders = [run.root, *([run.stream.root] if run.stream else [])]
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def _try(gaps: list[Gap], what: str, read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except UNREADABLE as error:
        why = f"no key {error}" if isinstance(error, KeyError) else str(error)
        gaps.append(Gap(what, why))
        return otherwise


def find_stream(run_dir: Path, manifest: Manifest, stream_dir: Path | None) -> Stream:
    """Return the stream of a run: `stream_dir`, or the folder that the manifest names.

    A relative folder is looked for from the working folder, then from the folders above the run.

    Raises:
        FileNotFoundError: the manifest names none.
        StreamError, ValueError: it is nowhere, or cannot be used.
    """
    scorers = manifest.block("eval").get("scorer")
    if stream_dir is not None:
        return open_scored_stream(stream_dir, scorers)
    if not manifest.stream:
        raise FileNotFoundError("manifest.json names no stream (data.stream); give --stream FOLDER")
    named = Path(manifest.stream)
    places = [named, *(parent / named for parent in run_dir.resolve().parents)]
    found = next((f for f in places if (f / MANIFEST).is_file()), named)
    return open_scored_stream(found, scorers)


def _load_matrix(run_dir: Path, stream: Stream | None) -> Matrix:
    path = run_dir / "matrix.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there yet: nothing was evaluated")
    matrix = load_matrix(path)
    if stream is None:
        return matrix
    # In the stream's order; a task that the stream does not have is refused, not dropped.
    return load_matrix(path, [task for task in stream.tasks if task in matrix.tasks])


def _other(run: RunData) -> tuple[str, Matrix] | None:
    for kind in ("fast", "slow"):
        if (path := run.root / f"matrix-{kind}.csv").is_file():
            found, rows = load_matrix(path, run.tasks), len(run.matrix.values)
            if len(found.values) > rows:
                why = f"left out: matrix.csv ends with chunk {rows - 1}"
                run.gaps.append(Gap(f"{path.name}: chunks after {rows - 1}", why))
            return kind, replace(found, values=found.values[:rows], samples=found.samples[:rows])
    return None


def _of_chunks(run: RunData, name: str) -> list[tuple[int, Path]]:
    """Return the chunks that have a file of this name, with its path."""
    paths = sorted(path for path in run.root.glob(f"chunks/*/{name}") if path.is_file())
    return [(int(path.parent.name), path) for path in paths if path.parent.name.isdigit()]


def _read_predictions(run: RunData) -> None:
    stream = run.stream
    if stream is None:
        return
    for chunk in range(len(run.matrix.values)):
        folder = run.chunk(chunk) / "predictions"
        for column, task in enumerate(run.tasks):
            if run.matrix.samples[chunk, column] == 0:
                continue
            what = f"Predictions of {task} after chunk {chunk}"
            scored = _try(run.gaps, what, partial(task_scores, folder, stream, task), None)
            if scored is not None:
                run.scored[chunk, task] = scored
                _compare(run, chunk, column, scored)


def _compare(run: RunData, chunk: int, column: int, scored: TaskScores) -> None:
    """Add a gap if matrix.csv and the prediction files tell different stories."""
    written = float(run.matrix.values[chunk, column])
    # matrix.csv has six digits.
    if np.isclose(written, scored.score, atol=2e-6, equal_nan=True):
        return
    what = f"{run.tasks[column]} after chunk {chunk}"
    why = f"matrix.csv says {written:.6f}, its prediction file gives {scored.score:.6f}"
    run.gaps.append(Gap(what, why))


def _read_training(run: RunData) -> None:
    for chunk, path in _of_chunks(run, "train_metrics.jsonl"):
        if chunk > 0:
            what = f"Training log of chunk {chunk}"
            none: list[Record] = []
            run.training[chunk] = _try(run.gaps, what, partial(read_jsonl, path, True), none)
            ended, steps = steps_logged(run, chunk), _steps_trained(run, chunk)
            if not logged_whole(run, chunk):
                why = f"train_metrics.jsonl ends at step {ended} of {steps}: its end is lost"
                run.gaps.append(Gap(what, why))


def step_of(line: Record) -> int:
    """Return a log line's step, 0 without one: ms-swift writes "global_step/max_steps": "5/38"."""
    written = str(line.get("global_step/max_steps", line.get("step", ""))).split("/")[0]
    return int(written) if written.isdigit() else 0


def steps_logged(run: RunData, chunk: int) -> int:
    """Return the step that a chunk's training log ends with; 0 without one."""
    return step_of((run.training.get(chunk) or [{}])[-1])


def logged_whole(run: RunData, chunk: int) -> bool:
    """Return whether a chunk's log goes on to the last step that state.json counts, if it does.

    The host logs every `logging_steps` steps, so that fewer than that may be missing.
    """
    lacking, every = (
        _steps_trained(run, chunk) - steps_logged(run, chunk),
        run.manifest.logging_steps,
    )
    return lacking < max(1, every if isinstance(every, int) else 1)


def _steps_trained(run: RunData, chunk: int) -> int:
    trained = (record for record in run.state.chunks if record.index == chunk and record.trained)
    return next((record.steps or 0 for record in trained), 0)


def _read_routing(run: RunData) -> None:
    stream = run.stream
    if stream is None:
        return
    for chunk, path in _spaced(_of_chunks(run, "routing.json"), MOST_ROUTING_FILES):
        what = f"Routing after chunk {chunk}"
        routing = _try(run.gaps, what, partial(load_routing, path, stream.tasks), None)
        if routing is not None:
            run.routing[chunk] = routing


def _read_choices(run: RunData) -> None:
    mixtures = run.composition()
    trained_as = {t.name: t.trained_as for t in run.stream.tests.values()} if run.stream else {}
    for chunk, path in _of_chunks(run, "router.json") if mixtures else ():
        what = f"Choice of chunks after chunk {chunk}"
        read = partial(read_choices, path, mixtures, trained_as)
        if found := _try(run.gaps, what, read, None):
            run.choices[chunk] = found


def _spaced(items: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """Return at most `most` items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    places = sorted({round(i * (len(items) - 1) / (most - 1)) for i in range(most)})
    return [items[place] for place in places]
