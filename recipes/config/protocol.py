"""How a method goes through the chunks of a stream: its protocol.

A chunk is counted from 1; chunk 0 is the base model, before any training.
"""

from __future__ import annotations

from typing import ClassVar


class StreamProtocol:
    """Chunk after chunk, each from the adapter of the chunk before; the base of the others."""

    name: ClassVar[str] = "stream"
    # Whether a chunk continues another one's adapter: only then is there a past that replay and
    # EWC can keep, and a later phase of the schedule.
    continues: ClassVar[bool] = True
    # Whether a finished run can go on when its stream has grown.
    grows: ClassVar[bool] = True
    # Whether every adapter stays and a router chooses among them.
    pools: ClassVar[bool] = False
    # What training does at a chunk, for people.
    training_text: ClassVar[str] = "train"

    def trained_chunks(self, count: int) -> list[int]:
        """Those of `count` chunks that leave an adapter."""
        return list(range(1, count + 1))

    def data_chunks(self, chunk: int, count: int) -> list[int]:
        """The chunks whose samples are trained on for the first time at `chunk`."""
        return [chunk]

    def previous(self, chunk: int) -> int | None:
        """The chunk whose adapter `chunk` continues; None: it starts with a fresh one."""
        return chunk - 1 if self.continues and chunk > 1 else None

    def evaluation_points(self, count: int) -> list[int]:
        """The chunks after which scores can be taken: 0 (the base model), and up to the last."""
        return [0, *(self.trained_chunks(count) or [count])]


class JointProtocol(StreamProtocol):
    """One training on all chunks shuffled together, recorded as the last chunk."""

    name = "joint"
    continues = False
    grows = False
    training_text = "train on all chunks shuffled together"

    def trained_chunks(self, count: int) -> list[int]:
        return [count]

    def data_chunks(self, chunk: int, count: int) -> list[int]:
        return list(range(1, count + 1))


class ZeroShotProtocol(StreamProtocol):
    """The base model alone: nothing is trained."""

    name = "zero_shot"
    continues = False

    def trained_chunks(self, count: int) -> list[int]:
        return []


class PoolProtocol(StreamProtocol):
    """A fresh adapter for every chunk, and a router that chooses one for each question."""

    name = "pool"
    continues = False
    pools = True


PROTOCOLS: dict[str, StreamProtocol] = {
    each.name: each() for each in (StreamProtocol, JointProtocol, ZeroShotProtocol, PoolProtocol)
}
