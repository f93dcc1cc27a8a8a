"""Where everything of a run lies. One place, so that no other file builds a path of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.run_files import chunk_folder
from strlora_tuner.methods.slow_weights.options import Kind

ROUTER = "router"  # of a pool: its adapter's folder


# Descriptors, not properties: a layout is a table of names, in which a subclass changes one entry.
class _InRun:
    """A path in the run folder, or in another folder of a layout; its fields stand in braces."""

    def __init__(self, name: str, folder: str = "root") -> None:
        self.name, self.folder = name, folder

    def __get__(self, layout: RunLayout, owner: type[RunLayout]) -> Path:
        folder: Path = getattr(layout, self.folder)
        return folder / self.name.format_map(vars(layout))


class _InChunk:
    """A path in the folder of a chunk, which is called with the chunk's number."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layout: RunLayout, owner: type[RunLayout]) -> Callable[[int], Path]:
        return lambda index: layout.chunk(index) / self.name


@dataclass(frozen=True)
class RunLayout:
    """The run folder; chunk 0 is the base model before the stream."""

    root: Path

    state = _InRun("state.json")
    manifest = _InRun("manifest.json")
    recipe = _InRun("recipe.yaml")
    matrix = _InRun("matrix.csv")
    report = _InRun("report.html")
    # Why the last start of a sweep's run failed; absent unless it did.
    failure = _InRun("failure.txt")
    lock = _InRun("run.lock")
    # What the resident worker itself says, between its jobs.
    worker_log = _InRun("worker.log")
    # All test questions of all tasks, for one `swift infer` process.
    prompts = _InRun("test_prompts.jsonl")
    # Which instruction belongs to which task, for the routing record.
    probe = _InRun("routing_probe.json")
    # The task, or template, of every text, for a method that looks it up; no other run has it.
    task_labels = _InRun("task_labels.json")

    @property
    def known_labels(self) -> Path:
        """The table `task_labels`, by the name of earlier versions where only that one is there."""
        before = self.root / "tasks_told.json"
        return before if before.is_file() and not self.task_labels.is_file() else self.task_labels

    def chunk(self, index: int) -> Path:
        return chunk_folder(self.root, index)

    # The host's own output folder while a chunk is trained; pruned when the chunk is done.
    host = _InChunk("host")
    adapter = _InChunk("adapter")
    # The samples kept of all chunks up to this one, and the state of their reservoir.
    replay = _InChunk("replay")
    # The training file with replayed samples; pruned when the chunk is done.
    replay_file = _InChunk("mixed.jsonl")
    # Training samples of more than model.max_length tokens; absent where there are none.
    too_long = _InChunk("too_long.jsonl")
    # Which adapters may answer after this chunk: what the plug-in of a pool reads.
    pool = _InChunk("pool.json")
    # The chunk's samples on which this and all later routers of a pool are trained.
    router_samples = _InChunk("router_samples.jsonl")
    # What the router after this chunk is trained on: samples of every chunk so far.
    router_data = _InChunk("router.jsonl")
    # Which adapter answered which task, and how often the router was right.
    router_scores = _InChunk("router.json")
    # What trackers write (`swift.report_to`); kept when the host's folder goes.
    trackers = _InChunk("trackers")
    train_log = _InChunk("train.log")
    eval_log = _InChunk("eval.log")
    train_metrics = _InChunk("train_metrics.jsonl")
    # The raw result file of `swift infer`, removed once it is split by task.
    answers = _InChunk("answers.jsonl")
    # Where the host puts base model and adapter in one, for vLLM; removed after scoring.
    merged = _InChunk("adapter-merged")
    predictions = _InChunk("predictions")
    scores = _InChunk("scores.json")
    routing = _InChunk("routing.json")


@dataclass(frozen=True)
class SideLayout(RunLayout):
    """Questions put to a run's adapters beside its evaluations: their files are in `side`."""

    side: Path

    matrix = _InRun("matrix.csv", "side")
    prompts = _InRun("test_prompts.jsonl", "side")

    def chunk(self, index: int) -> Path:
        return self.side

    def adapter(self, index: int) -> Path:
        return RunLayout(self.root).adapter(index)


@dataclass(frozen=True)
class OtherWeightsLayout(RunLayout):
    """The evaluations of the set of weights, `kind`, that does not answer for its chunk."""

    kind: Kind

    matrix = _InRun("matrix-{kind}.csv")

    def chunk(self, index: int) -> Path:
        return super().chunk(index) / self.kind

    def adapter(self, index: int) -> Path:
        return RunLayout(self.root).adapter(index) / self.kind

    def evaluated(self, index: int) -> bool:
        """Whether the evaluation came to its end: its last step removes the raw answers."""
        return self.scores(index).is_file() and not self.answers(index).exists()


@dataclass(frozen=True)
class RouterLayout(RunLayout):
    """Where the training of a router leaves its files, beside those of the chunk's adapter."""

    host = _InChunk("router_host")
    adapter = _InChunk(ROUTER)
    train_log = _InChunk("router.log")
    too_long = _InChunk("router_too_long.jsonl")
    train_metrics = _InChunk("router_metrics.jsonl")
