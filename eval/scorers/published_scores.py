"""What a benchmark's own scripts print for our predictions: `published` in scores.json.

For comparison with published numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from eval.run_files import PredictionLine, PublishedScores
from eval.scorers.answer_text import gold_answers
from eval.scorers.registry import MOST_CIDER, PREFIXES, STRCVIT, TASKS, Task
from eval.scorers.released import ReleasedCrash

# Their generation loop writes a failed sample without its prompt, which these three scripts read.
NEEDS_PROMPT = ("AD", "RS", "Fin")
_READ = ("answer_bbox", "size", "answer_type", "prompt", "images")  # beside the gold


def published_scores(
    lines: Mapping[str, Sequence[PredictionLine]], stream: str = ""
) -> PublishedScores:
    """Return what the published scripts would print for a benchmark's tasks among prediction lines.

    `mean` is StrCVIT's mean of nine tasks: GQA and ChartQA left out, CIDEr x 100 mixed in
    unclipped; of other benchmarks the mean of all tasks, once all are there and have a script.

    Args:
        lines: by task.
        stream: the name of the stream, which says whose scripts; StrCVIT's for any other.
    """
    printed: dict[str, float] = {}
    crashes: dict[str, str] = {}
    prefix = PREFIXES.get(stream, "")
    known = [name for name in TASKS if name.startswith(prefix)] if prefix else list(STRCVIT)
    tasks = {name.removeprefix(prefix): TASKS[name] for name in known}
    asked = [
        name for name, task in tasks.items() if name in lines and (task.released or task.printed)
    ]
    for name in asked:
        try:
            printed[name] = _percent(tasks[name], lines[name])
        except ReleasedCrash as error:
            crashes[name] = str(error)
    wanted = [name for name, task in tasks.items() if task.in_published_mean]
    if prefix == "MLLM-CL/":  # one of the two benchmarks that share it
        wanted = [name for name in wanted if name in lines]
    whole = all(name in printed for name in wanted)
    return {
        "tasks": {t: round(printed[t], 4) if t in printed else None for t in asked},
        "crashes": crashes,
        "mean": round(fmean(printed[name] for name in wanted), 4) if whole and wanted else None,
    }


def _percent(task: Task, lines: Sequence[PredictionLine]) -> float:
    """Return the printed score of one task; TextCaps: CIDEr x 100, UCIT's captions: of a mean."""
    failed = any(line["prediction"] is None for line in lines)
    if failed and task.name in NEEDS_PROMPT:
        raise ReleasedCrash("the published script crashes on a line without a prompt")
    answers, golds = [_answer(line) for line in lines], [_gold(line) for line in lines]
    if task.printed:
        return task.printed(answers, [gold_answers(gold) for gold in golds])
    scorer = task.scorer("released")
    scores = scorer.score_all(answers, golds)
    return 100.0 * fmean(scores) * (1.0 if scorer.sample is not None else MOST_CIDER)


def _answer(line: PredictionLine) -> str:
    """Return an answer as the published generation loop writes it: the error of a failed one."""
    said = line["prediction"]
    return f"Error: {line.get('error')}" if said is None else said


def _gold(line: PredictionLine) -> dict[str, object]:
    more = {key: value for key, value in line.items() if key in _READ}
    return {"answer": line.get("references") or line["gold"], **more}
