"""What a run with `start_from` goes on from: noted beside the copied adapter, its chunk 0."""

from __future__ import annotations

from typing import TypedDict

from data_prep.files import read_json
from recipes.run_folder.layout import RunLayout
from strlora_tuner.saved import CONFIG

FACTS = "start.json"


class Start(TypedDict):
    """The adapter's folder, and sha256 of its files and of the replay memory's.

    `carried` and `missing` name what of the method's state came along, and what did not.
    """

    source: str
    sha256: dict[str, str]
    replay_sha256: dict[str, str]
    carried: list[str]
    missing: list[str]


def read_start(layout: RunLayout) -> Start | None:
    """What was copied into a run folder; None where the run starts with a fresh adapter."""
    path = layout.adapter(0) / FACTS
    facts: Start | None = read_json(path) if path.is_file() else None
    return facts


def start_text(facts: Start) -> str:
    """The same in a sentence."""
    lacking = f"; missing: {', '.join(facts['missing'])}" if facts["missing"] else ""
    return f"goes on from {facts['source']}, with {', '.join(facts['carried'])}{lacking}"


def chunks_before(layout: RunLayout) -> int:
    """Chunks whose routers or LoRAs came with `start_from`: the adapter counts on from them."""
    adapter = RunLayout(layout.root).adapter(0)  # that of the run, whichever set is asked
    if not (adapter / FACTS).is_file():
        return 0
    return int(read_json(adapter / CONFIG).get("past_chunks", -1)) + 1
