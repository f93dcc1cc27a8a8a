"""Where everything of a run lies. One place, so that no other file builds a path of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from strlora_tuner.methods.slow_weights.options import Kind

ROUTER = "router"  # of a pool: its adapter's folder


@dataclass(frozen=True)
class RunLayout:
    """The run folder; chunk 0 is the base model before the stream."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def matrix(self) -> Path:
        return self.root / "matrix.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def failure(self) -> Path:
        """Why the last start of a sweep's run failed; absent unless it did."""
        return self.root / "failure.txt"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def worker_log(self) -> Path:
        """What the resident worker itself says, between its jobs."""
        return self.root / "worker.log"

    @property
    def prompts(self) -> Path:
        """All test questions of all tasks, for one `swift infer` process."""
        return self.root / "test_prompts.jsonl"

    @property
    def probe(self) -> Path:
        """Which instruction belongs to which task, for the routing record."""
        return self.root / "routing_probe.json"

    @property
    def tasks(self) -> Path:
        """The task of every text, for a method that reads labels; no other run has it."""
        return self.root / "tasks_told.json"

    def chunk(self, index: int) -> Path:
        return self.root / "chunks" / f"{index:03d}"

    def host(self, index: int) -> Path:
        """The host's own output folder while a chunk is trained; pruned when the chunk is done."""
        return self.chunk(index) / "host"

    def adapter(self, index: int) -> Path:
        return self.chunk(index) / "adapter"

    def replay(self, index: int) -> Path:
        """The samples kept of all chunks up to this one, and the state of their reservoir."""
        return self.chunk(index) / "replay"

    def mixed(self, index: int) -> Path:
        """The training file with replayed samples; pruned when the chunk is done."""
        return self.chunk(index) / "mixed.jsonl"

    def too_long(self, index: int) -> Path:
        """Training samples of more than model.max_length tokens; absent where there are none."""
        return self.chunk(index) / "too_long.jsonl"

    def pool(self, index: int) -> Path:
        """Which adapters may answer after this chunk: what the plug-in of a pool reads."""
        return self.chunk(index) / "pool.json"

    def router_samples(self, index: int) -> Path:
        """The chunk's samples on which this and all later routers of a pool are trained."""
        return self.chunk(index) / "router_samples.jsonl"

    def router_data(self, index: int) -> Path:
        """What the router after this chunk is trained on: samples of every chunk so far."""
        return self.chunk(index) / "router.jsonl"

    def router_scores(self, index: int) -> Path:
        """Which adapter answered which task, and how often the router was right."""
        return self.chunk(index) / "router.json"

    def trackers(self, index: int) -> Path:
        """What trackers write (`swift.report_to`); kept when the host's folder goes."""
        return self.chunk(index) / "trackers"

    def train_log(self, index: int) -> Path:
        return self.chunk(index) / "train.log"

    def eval_log(self, index: int) -> Path:
        return self.chunk(index) / "eval.log"

    def train_metrics(self, index: int) -> Path:
        return self.chunk(index) / "train_metrics.jsonl"

    def answers(self, index: int) -> Path:
        """The raw result file of `swift infer`, removed once it is split by task."""
        return self.chunk(index) / "answers.jsonl"

    def merged(self, index: int) -> Path:
        """Where the host puts base model and adapter in one, for vLLM; removed after scoring."""
        return self.chunk(index) / "adapter-merged"

    def predictions(self, index: int) -> Path:
        return self.chunk(index) / "predictions"

    def scores(self, index: int) -> Path:
        return self.chunk(index) / "scores.json"

    def routing(self, index: int) -> Path:
        return self.chunk(index) / "routing.json"


@dataclass(frozen=True)
class SideLayout(RunLayout):
    """Questions put to a run's adapters beside its evaluations: their files are in `side`."""

    side: Path

    @property
    def matrix(self) -> Path:
        return self.side / "matrix.csv"

    @property
    def prompts(self) -> Path:
        return self.side / "test_prompts.jsonl"

    def chunk(self, index: int) -> Path:
        return self.side

    def adapter(self, index: int) -> Path:
        return RunLayout(self.root).adapter(index)


@dataclass(frozen=True)
class OtherWeightsLayout(RunLayout):
    """The evaluations of the set of weights, `kind`, that does not answer for its chunk."""

    kind: Kind

    @property
    def matrix(self) -> Path:
        return self.root / f"matrix-{self.kind}.csv"

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

    def host(self, index: int) -> Path:
        return self.chunk(index) / "router_host"

    def adapter(self, index: int) -> Path:
        return self.chunk(index) / ROUTER

    def train_log(self, index: int) -> Path:
        return self.chunk(index) / "router.log"

    def too_long(self, index: int) -> Path:
        return self.chunk(index) / "router_too_long.jsonl"

    def train_metrics(self, index: int) -> Path:
        return self.chunk(index) / "router_metrics.jsonl"
