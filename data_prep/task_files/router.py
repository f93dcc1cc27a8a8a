"""Training data for the router of MR-LoRA: a few samples a task, answered with the expert's letter.

Zhao et al., "MLLM-CL" (2025), section 4: after each task the router, an adapter of its own, learns
from 20 samples of every task so far which expert a question belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data_prep.compose.pools import Pool, Slice, rows
from data_prep.files import Record, write_blocks
from data_prep.published.benchmarks import EXPERTS
from data_prep.sources.records import PLACEHOLDER, HostSample, encode

FOLDER = "router"


def expert_letters(count: int) -> list[str]:
    """Return the names of experts: A to Z; of more than 26, two letters each: AA, AB, ... ZZ.

    Raises:
        ValueError: more than 676 experts.
    """
    if count <= len(ascii_uppercase):
        return list(ascii_uppercase[:count])
    if count > len(ascii_uppercase) ** 2:
        raise ValueError(f"{count} experts: two letters name {len(ascii_uppercase) ** 2} at most")
    return ["".join(pair) for pair in islice(product(ascii_uppercase, repeat=2), count)]


def router_prompt(experts: Sequence[str], question: str) -> str:
    """Return the question put to the router: which of the experts should answer.

    Args:
        experts: what each expert is for; "" where nothing is known but its letter.
        question: the text without image placeholders.
    """
    names = expert_letters(len(experts))
    lines = [f"{name}. {text}" if text else name for name, text in zip(names, experts, strict=True)]
    answer = "one letter" if len(names[0]) == 1 else "its two letters"
    return (
        f"Which expert should answer the question below? Do not answer it; reply with {answer}.\n"
        + "\n".join(lines)
        + f"\nQuestion: {question}\nLetter of the expert:"
    )


def router_question(record: Mapping[str, Any], experts: Sequence[str]) -> Record:
    """Return what the router is asked about a sample: `messages`, one user turn, and `images`.

    The first question's image placeholders come first, then the prompt. Pictures that no turn
    has a placeholder for belong to the first question, as the host reads them.
    """
    asked = [str(turn["content"]) for turn in record["messages"] if turn["role"] == "user"]
    images = list(record.get("images") or [])
    if any(PLACEHOLDER in text for text in asked):
        images = images[: asked[0].count(PLACEHOLDER)]
    prompt = router_prompt(experts, asked[0].replace(PLACEHOLDER, "").strip())
    content = PLACEHOLDER * len(images) + prompt
    return {"messages": [{"role": "user", "content": content}], "images": images}


def router_record(record: Mapping[str, Any], experts: Sequence[str], right: int) -> Record:
    """Return a training sample as the router sees it: its first question, the expert's letter.

    Args:
        record: a training sample.
        experts: as for `router_prompt`.
        right: place of the expert (from 0) that the sample belongs to.
    """
    new = router_question(record, experts)
    letter = expert_letters(len(experts))[right]
    new["messages"].append({"role": "assistant", "content": letter})
    new |= {"task": record["task"]} if "task" in record else {}
    return {**new, "id": f"router-{record['id']}"} if "id" in record else new


def write_router(staging: Path, pools: dict[str, Pool], samples: int, seed: int) -> None:
    """Write router/task2.jsonl ...: what the router learns after the 2nd, 3rd, ... task.

    Args:
        staging: folder to write to.
        pools: the tasks in their order.
        samples: of each task.
        seed: of the choice.
    """
    chosen = {
        # Another order than the chunks have, which take the first rows under `seed`.
        task: rows(Slice(pool, 0, min(samples, pool.samples), seed + 1))
        for task, pool in pools.items()
    }
    tasks = list(pools)
    for stage in range(2, len(tasks) + 1):
        lines = _lines(chosen, tasks[:stage])
        write_blocks(staging / FOLDER / f"task{stage}.jsonl", lines)


def _lines(chosen: dict[str, list[HostSample]], tasks: list[str]) -> Iterator[bytes]:
    experts = [EXPERTS.get(task, task) for task in tasks]
    for place, task in enumerate(tasks):
        for record in chosen[task]:
            yield encode(router_record(record, experts, place))
