"""The run's scores for TensorBoard: `tensorboard --logdir RUN/tensorboard`.

One event file a chunk, step = chunk. A file is written again only when its numbers changed, so the
same call after every chunk appends to what TensorBoard has read.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from data_prep.files import write_blocks
from eval.metrics import STREAM_SCORES, mean_over
from eval.report.data import RunData
from eval.routing import diagnosis

FOLDER = "tensorboard"


def scalars_of(run: RunData, chunk: int) -> dict[str, float]:
    """Return the numbers of one chunk by tag; what is not known is left out.

    `score/<task>` and `stream/<score>` in 0..1 as they were after this chunk, `routing/...` where
    the tuner recorded it, `choice/...` where questions were sent to chunks.
    """
    a, first = run.matrix.values[: chunk + 1], run.first_seen()
    found = {f"score/{task}": float(a[chunk, i]) for i, task in enumerate(run.tasks)}
    if chunk > 0:
        scores = STREAM_SCORES[:1] if run.has_no_stream else STREAM_SCORES
        found |= {f"stream/{s.key}": float(s.mean(a, first)) for s in scores}
    routing = run.routing.get(chunk)
    if routing is not None and routing.tasks:
        found["routing/nmi"] = float(mean_over(routing.nmi))
        found["routing/overlap"] = diagnosis.off_diagonal(diagnosis.overlap(routing.use))
        past = [c for c in sorted(run.routing) if c <= chunk and run.routing[c].tasks][-2:]
        changes = diagnosis.kept_changes({c: run.routing[c] for c in past}, run.tasks)
        found["routing/kept_sets_changed"] = float(mean_over(changes[-1]))
        found["routing/task_entropy"] = float(mean_over(routing.task_entropy.ravel()))
        found["routing/token_entropy"] = float(mean_over(routing.token_entropy.ravel()))
    choices = run.choices.get(chunk)
    if choices is not None:
        found |= {f"choice/{name}": value for name, value in asdict(choices.total).items()}
        found["choice/illegal"] = choices.illegal_share
    return {tag: value for tag, value in found.items() if math.isfinite(value)}


def write_scalars(run: RunData) -> Path | None:
    """Write the event files of all evaluated chunks and return their folder.

    None where TensorBoard is not installed (ms-swift brings it) or nothing was evaluated.
    """
    if find_spec("tensorboard") is None or not run.tasks:
        return None
    folder = run.root / FOLDER
    for chunk in range(len(run.matrix.values)):
        scalars = scalars_of(run, chunk)
        path = folder / f"events.out.tfevents.{chunk:010d}.stream"
        if scalars:
            content = _events(chunk, scalars, _written(run, chunk))
            if not path.is_file() or path.read_bytes() != content:
                write_blocks(path, [content])
    return folder


def _written(run: RunData, chunk: int) -> float:
    """Return when a chunk was evaluated, in seconds since the epoch."""
    files = [run.chunk(chunk) / "scores.json", run.root / "matrix.csv"]
    return float(next((int(f.stat().st_mtime) for f in files if f.is_file()), 0))


def _events(chunk: int, scalars: dict[str, float], written: float) -> bytes:
    """Return the content of an event file: its version, then one event with all scalars."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    # TensorBoard's own writers put clock and host into file and name: no two would be equal.
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=written, file_version="brain.Event:2").SerializeToString())
    event = Event(wall_time=written, step=chunk, summary=Summary(value=values))
    writer.write(event.SerializeToString())
    return stream.getvalue()
