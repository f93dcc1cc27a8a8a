"""Which adapter of a pool answered which task (MR-LoRA), as a table of the report."""

from __future__ import annotations

from typing import Any

from eval.files import read_json
from eval.report.data import RunData
from eval.report.figure import Table


def choice_table(run: RunData) -> Table | None:
    """Return the router's choices after the newest chunk that has them; None where none has.

    The stage of an adapter is its chunk: no task label was told. `home`: the chunk with most
    samples of the task; `held`: any chunk that held it (eval/expert_choice.py).
    """
    files = sorted(run.root.glob("chunks/*/router.json"))
    if not files:
        return None
    content = read_json(files[-1])
    rows = [_row(task, entry) for task, entry in content["tasks"].items()]
    rows.append(_row("all", {**content, "experts": {}}))
    chunk = content["chunk"]
    caption = (
        f"Which adapter answered after chunk {chunk}. An adapter's stage is its chunk, which stands"
        " for the chunk's most common instructions; no task was told. Right: the chunk with most"
        " samples of the task (home), any chunk that held it (held)"
    )
    head = ["task", "questions", "home, %", "held, %", "no legal letter", "answered by chunk"]
    return Table(caption, head, rows)


def _row(task: str, entry: dict[str, Any]) -> list[str]:
    shares = [("" if entry[key] is None else f"{100 * entry[key]:.1f}") for key in ("home", "held")]
    experts = ", ".join(f"{chunk}: {n}" for chunk, n in entry["experts"].items())
    return [task, str(entry["n"]), *shares, str(entry["illegal"]), experts]
