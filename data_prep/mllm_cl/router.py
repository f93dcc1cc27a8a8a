"""Training data for the router of MR-LoRA: a few samples a task, answered with the expert's letter.

Zhao et al., "MLLM-CL" (2025), section 4: after each task the router, an adapter of its own, learns
from 20 samples of every task so far which expert a question belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from data_prep.files import write_blocks
from data_prep.pools import Pool, Slice, rows
from data_prep.published import EXPERTS
from data_prep.records import PLACEHOLDER, Record, encode

FOLDER = "router"


def router_prompt(tasks: list[str], question: str) -> str:
    """Return the question put to the router: which of the experts should answer."""
    experts = "\n".join(
        f"{letter}. {EXPERTS.get(task, task)}"
        for letter, task in zip(ascii_uppercase, tasks, strict=False)
    )
    return (
        "Which expert should answer the question below? Do not answer it; reply with one letter.\n"
        f"{experts}\nQuestion: {question}\nLetter of the expert:"
    )


def router_record(record: Record, tasks: list[str]) -> Record:
    """Return a training sample as the router sees it: its first question, the expert's letter."""
    first = next(turn["content"] for turn in record["messages"] if turn["role"] == "user")
    question = first.replace(PLACEHOLDER, "").strip()
    shown = first.count(PLACEHOLDER)
    return {
        "messages": [
            {"role": "user", "content": PLACEHOLDER * shown + router_prompt(tasks, question)},
            {"role": "assistant", "content": ascii_uppercase[tasks.index(record["task"])]},
        ],
        "images": record["images"][:shown],
        "task": record["task"],
        "id": f"router-{record['id']}",
    }


def write_router(staging: Path, pools: dict[str, Pool], samples: int, seed: int) -> None:
    """Write router/task2.jsonl ...: what the router learns after the 2nd, 3rd, ... task.

    Args:
        staging: folder to write to.
        pools: the tasks in their order.
        samples: of each task.
        seed: of the choice.
    """
    chosen = {
        task: rows(Slice(pool, 0, min(samples, pool.samples), seed + 1))
        for task, pool in pools.items()
    }
    tasks = list(pools)
    for stage in range(2, len(tasks) + 1):
        lines = _lines(chosen, tasks[:stage])
        write_blocks(staging / FOLDER / f"task{stage}.jsonl", lines)


def _lines(chosen: dict[str, list[Record]], tasks: list[str]) -> Iterator[bytes]:
    for task in tasks:
        for record in chosen[task]:
            yield encode(router_record(record, tasks))
