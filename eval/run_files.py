"""What the JSON files of a run folder hold, as far as evaluation writes or reads them.

Files that evaluation writes are TypedDicts, key by key. manifest.json and state.json belong to
recipes; of them only what a report shows is read, and what an older version left out has a default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any, TypedDict, cast

from typing_extensions import NotRequired

from data_prep.files import read_json

ABLATION_FORMAT = 1

JsonObject = dict[str, Any]


class PredictionLine(TypedDict):
    """One line of `chunks/NNN/predictions/<task>.jsonl`: a test question and its answer.

    Attributes:
        prediction: the answer; None: there is none, and `error` says why.
        gold: the right answer as text.
        finish_reason: `stop`: the model ended its answer; `length`: it was cut at the longest
            length allowed; None: the host did not say.
        references, answer_bbox, size, options, synonyms, box_format, answer_type: of the test
            sample, where it has them; scorers read them.
        expert: the chunk whose adapter or router answered, for methods that choose one; 0: one that
            came with `start_from`.
        router_answer, routed: what MR-LoRA's router said, and whether that named an adapter.
        score: in 0..1 under the task's `fixed` scorer, 0 without an answer; CIDEr-D / 10 for
            captions. Version 0.1 wrote none.
        lenient: the same, blind to case and format (eval.form_only); older versions wrote none.
    """

    id: str
    task: str
    prompt: str
    prediction: str | None
    gold: str
    finish_reason: str | None
    images: list[str]
    references: NotRequired[list[str]]
    answer_bbox: NotRequired[str]
    size: NotRequired[list[int]]
    options: NotRequired[list[str]]
    synonyms: NotRequired[list[str]]
    box_format: NotRequired[str]
    answer_type: NotRequired[str]
    expert: NotRequired[int | None]
    router_answer: NotRequired[str]
    routed: NotRequired[bool]
    error: NotRequired[str]
    score: NotRequired[float]
    lenient: NotRequired[float]


class TaskResult(TypedDict):
    """One task in scores.json; null where a number does not exist.

    Attributes:
        score: in 0..1.
        n: test samples, those without an answer included.
        failed: samples without an answer.
        cut: answers that reached the longest length allowed.
        stderr: standard error of `score` over the samples.
        cider: for captions, CIDEr-D x 100 (0 to 1,000), of which `score` is the clipped part.
        unfinished: outputs that end inside a thought, which are empty answers; absent: none.
        constant: the best constant answer's score in 0..1 under a scorer that the recipe names;
            only of the base model (chunk 0).
        lenient: in 0..1, blind to case and format; what it has above `score` was lost in form only.
    """

    score: float | None
    n: int
    failed: int
    cut: int
    stderr: float | None
    lenient: NotRequired[float | None]
    cider: NotRequired[float | None]
    unfinished: NotRequired[int]
    constant: NotRequired[float]


class PublishedScores(TypedDict):
    """What the benchmark's own scripts would print for the same answers, in percent.

    Attributes:
        tasks: by task; null where the script would end with an exception.
        crashes: why it would, by task.
        mean: StrCVIT's mean of nine tasks, else of all; null unless all of them have a score.
    """

    tasks: dict[str, float | None]
    crashes: dict[str, str]
    mean: float | None


class ChunkScores(TypedDict):
    """The content of `chunks/NNN/scores.json`."""

    chunk: int
    tasks: dict[str, TaskResult]
    published: PublishedScores


class RoutedTask(TypedDict):
    """One task in router.json.

    Attributes:
        n: questions.
        dominant_chunk, any_chunk: shares of them that went to a right chunk
            (eval.routing.router_accuracy); null for a task that no chunk held yet.
        illegal: answers of MR-LoRA's router that named no adapter.
        unrouted: questions without a record.
        experts: questions by chunk; "0": those of `start_from`, which are in neither share.
    """

    n: int
    dominant_chunk: float | None
    any_chunk: float | None
    illegal: int
    unrouted: int
    experts: dict[str, int]


class RouterContent(TypedDict):
    """The content of `chunks/NNN/router.json`: which chunk answered which question.

    Attributes:
        chunk: the chunk after which it was measured.
        what: `adapter` (MR-LoRA's router was asked) or `router` (by a chunk's keys).
        n, dominant_chunk, any_chunk, illegal: over all tasks, as in `RoutedTask`.
        tasks: by task.
    """

    chunk: int
    what: str
    n: int
    dominant_chunk: float | None
    any_chunk: float | None
    illegal: int
    tasks: dict[str, RoutedTask]


class Intact(TypedDict):
    """The unchanged adapter in ablation.json: `score` in 0..1, `n` samples for each task."""

    score: float | None
    tasks: dict[str, IntactTask]


class IntactTask(TypedDict):
    """One task of the unchanged adapter."""

    n: int
    score: float | None


class Cost(TypedDict):
    """What a part is worth: the intact score minus the ablated one, and its 95 % interval."""

    score: float | None
    cost: float | None
    low: float | None
    high: float | None


class TaskCost(Cost):
    """The same for one task of `n` samples."""

    n: int


class Ablation(Cost):
    """One ablation: its name, its cost over all tasks and for each of them."""

    name: str
    tasks: dict[str, TaskCost]


class AblationContent(TypedDict):
    """The content of `ablation.json`."""

    format: int
    chunk: int
    intact: Intact
    ablations: list[Ablation]


def read_ablation(path: Path) -> AblationContent:
    """Return the content of `ablation.json`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: another format, or numbers that are missing.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != ABLATION_FORMAT:
        raise ValueError(
            f"{path}: not an ablation of format {ABLATION_FORMAT}; run recipes.ablate again"
        )
    try:
        tasks = {task: float(e["score"] or 0) for task, e in content["intact"]["tasks"].items()}
        for entry in content["ablations"]:
            # Every number is looked at now, so that no page stops half way.
            for numbers in (entry, *(entry["tasks"][task] for task in tasks)):
                [float(numbers[key] or 0) for key in ("score", "cost", "low", "high")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); run recipes.ablate again") from error
    return cast(AblationContent, content)


def _at(*keys: str, default: Any = "") -> Any:
    """A field of Manifest that lies there in the file, not at the top under its own name."""
    return field(default=default, metadata={"at": keys})


@dataclass(frozen=True)
class Manifest:
    """What a report shows of manifest.json; empty where the file, or a key, is missing.

    Attributes:
        name: of the run.
        model: path or hub name of the base model.
        protocol: `stream`, `pool`, `joint` or `zero_shot`.
        seed: of the run.
        stream, stream_name, stream_sha256: folder, name and hash of the stream.
        chunks: how many the run will have; 0: not recorded.
        logging_steps: the host writes a line to its log every so many optimizer steps.
        recipe: the whole recipe.
        tuner: the options of the adapter; None where the method has none.
        start: the adapter that the run goes on from, what it brought and what is missing.
        preset: the preset of these options, and what the recipe changed of it; empty where the
            method has none, and in runs of versions that did not compare the two.
        scorers: sha256 of the file of each scorer of the recipe's own, by its name.
    """

    name: str = ""
    model: str = _at("recipe", "model", "path")
    protocol: str = ""
    seed: int | None = None
    started: str = ""
    processes: int | None = None
    global_batch: int | None = None
    stream: str = _at("data", "stream")
    stream_name: str = _at("data", "name")
    stream_sha256: str = _at("data", "sha256")
    chunks: int = 0
    logging_steps: int = _at("recipe", "swift", "logging_steps", default=1)
    git: JsonObject = field(default_factory=dict)
    versions: JsonObject = field(default_factory=dict)
    hardware: JsonObject = field(default_factory=dict)
    recipe: JsonObject = field(default_factory=dict)
    tuner: JsonObject | None = None
    start: JsonObject = field(default_factory=dict, metadata={"at": ("start_from",)})
    preset: str = ""
    scorers: JsonObject = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Return the recipe's method; recorded with `ewc.released` it is the plain pull, `l2`."""
        name, ewc = str(self.recipe.get("method") or ""), self.recipe.get("ewc") or {}
        return "l2" if name == "ewc_released" and "released" in ewc else name

    def method_name(self, preset: bool) -> str:
        """Return the method's name with the labels it reads, and its preset if asked for."""
        remarks = "; ".join(filter(None, [self.preset if preset else "", self.labels_used]))
        return f"{self.method} ({remarks})" if remarks else self.method

    def block(self, name: str) -> JsonObject:
        """Return a block of the recipe, such as `schedule`; empty where it is missing."""
        return _part(self.recipe, name)

    @property
    def labels_used(self) -> str:
        """Return in words the labels of the test questions that the method reads; empty: none."""
        words = {
            "task": "given the task",
            "template": "given the task's template",
            "number": "given the task: upper bound of routing",
        }
        return words.get(str((self.tuner or {}).get("sentence")), "")


def read_manifest(path: Path) -> Manifest:
    """Return what a report shows of a manifest.json.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no JSON object, or a part of it is of another type.
    """
    content = read_object(path)
    found: JsonObject = {"chunks": len(_part(content, "data").get("chunks") or [])}
    for item in fields(Manifest):
        *blocks, key = item.metadata.get("at", (item.name,))
        block = reduce(_part, blocks, content)
        value = _part(block, key) if item.default_factory is dict else block.get(key)
        if value is not None and item.name != "chunks":
            found[item.name] = value
    return Manifest(**found)


@dataclass(frozen=True)
class ChunkState:
    """What state.json says of one chunk; None: not recorded.

    Attributes:
        index: from 1; 0 is the base model.
        trained: whether it was trained on.
        steps: optimizer steps.
        train_seconds, eval_seconds: wall time, start of the processes included.
        train_memory_gib: most main memory of the host's processes.
    """

    index: int
    trained: bool = False
    steps: int | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    train_memory_gib: float | None = None


@dataclass(frozen=True)
class RunState:
    """What a report shows of state.json.

    Attributes:
        done: chunks that are done; None: not recorded.
        finished: whether all are; None: not recorded.
        chunks: one record a chunk.
    """

    done: int | None = None
    finished: bool | None = None
    chunks: tuple[ChunkState, ...] = ()


def read_state(path: Path) -> RunState:
    """Return what a report shows of a state.json.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no JSON object, or a number in it is none.
    """
    content = read_object(path)
    names = ("steps", "train_seconds", "eval_seconds", "train_memory_gib")
    for record in content.get("chunks") or []:
        for name in names:
            if not isinstance(value := record.get(name), int | float | None):
                raise ValueError(f"{path}: chunks: {name}: found {value!r}, expected a number")
    chunks = [
        ChunkState(int(r.get("index", -1)), bool(r.get("trained")), *(r.get(n) for n in names))
        for r in content.get("chunks") or []
    ]
    return RunState(content.get("done"), content.get("finished"), tuple(chunks))


def chunk_folder(run: Path, chunk: int) -> Path:
    """Return the folder of a chunk's files in a run folder."""
    return run / "chunks" / f"{chunk:03d}"


def rounded(value: float) -> float | None:
    """Return a number as the files hold it: six digits; None where there is none."""
    return round(float(value), 6) if math.isfinite(value) else None


def read_object(path: Path) -> JsonObject:
    """Return the content of a file that holds one JSON object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _part(content: Mapping[str, Any], key: str) -> JsonObject:
    part = content.get(key) or {}
    if not isinstance(part, dict):
        raise ValueError(f"{key}: expected a JSON object, found {part!r}")
    return part
