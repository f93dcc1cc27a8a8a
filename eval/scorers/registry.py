"""The benchmark tasks: one line a task, its `fixed` scorer and its `released` scorer."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from eval.scorers import Scorer, find_scorer


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: as on the command line.
        fixed: name of the default scorer.
        released: name of the scorer that follows the published script; None: none is known.
        in_published_mean: StrCVIT's published mean leaves GQA and ChartQA out.
    """

    name: str
    fixed: str
    released: str | None
    in_published_mean: bool = True

    def scorer(self, variant: str) -> Scorer:
        """Return the scorer of this task; raises ValueError where no such variant is known."""
        name = self.fixed if variant == "fixed" else self.released
        if name is None:
            raise ValueError(
                f"task {self.name!r}: no published scorer is known; use --variant fixed"
            )
        return find_scorer(name, variant)


_ALL = (
    Task("AD", "choice", "contained"),
    Task("RS", "choice", "contained"),
    Task("Fin", "compact", "equal_compacted"),
    Task("ImageNet", "label", "two_way_substring"),
    Task("Places365", "label", "two_way_substring"),
    Task("ChartQA", "relaxed", "substring", in_published_mean=False),
    Task("VQAv2", "vqa", "vqa"),
    Task("OCRVQA", "exact", "equal_lower"),
    Task("GQA", "vqa", "equal_lower_prediction", in_published_mean=False),
    Task("Grounding", "grounding", "grounding"),
    Task("TextCaps", "caption", "caption"),
    # MLLM-CL: domains, then abilities. Math was scored by a language model's judgement, for APP no
    # script was published: there is nothing to reproduce.
    Task("MLLM-CL/RS", "contains", "held"),
    Task("MLLM-CL/Med", "contains", "held"),
    Task("MLLM-CL/AD", "contains", "held"),
    Task("MLLM-CL/Sci", "science", "science"),
    Task("MLLM-CL/Fin", "compact", "equal_compacted"),
    Task("MLLM-CL/OCR", "ocr", "held_any"),
    Task("MLLM-CL/Math", "number", None),
    Task("MLLM-CL/VP", "contains", "held_compacted"),
    Task("MLLM-CL/APP", "choice", None),
)
TASKS = {task.name: task for task in _ALL}
STRCVIT = tuple(name for name in TASKS if not name.startswith("MLLM-CL/"))


def find_task(name: str) -> Task:
    """Return the task called `name`; raises ValueError that lists the known ones."""
    if name in TASKS:
        return TASKS[name]
    near = get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"task: found {name!r}, expected one of {list(TASKS)}{hint}")
