"""What StrCVIT's own scripts print for our predictions: `published` in scores.json.

For comparison with published numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from eval.run_files import PredictionLine, PublishedScores
from eval.scorers.registry import MOST_CIDER, STRCVIT, TASKS, find_task
from eval.scorers.released import ReleasedCrash

# Their generation loop writes a failed sample without its prompt, which these three scripts read.
NEEDS_PROMPT = ("AD", "RS", "Fin")


def published_scores(lines: Mapping[str, Sequence[PredictionLine]]) -> PublishedScores:
    """Return what the published scripts would print for the StrCVIT tasks among prediction lines.

    `mean` is their mean of nine tasks: GQA and ChartQA left out, CIDEr x 100 mixed in unclipped.
    """
    printed: dict[str, float] = {}
    crashes: dict[str, str] = {}
    for task in (name for name in STRCVIT if name in lines):
        try:
            printed[task] = _percent(task, lines[task])
        except ReleasedCrash as error:
            crashes[task] = str(error)
    nine = [name for name in STRCVIT if TASKS[name].in_published_mean]
    whole = all(name in printed for name in nine)
    return {
        "tasks": {t: round(printed[t], 4) if t in printed else None for t in STRCVIT if t in lines},
        "crashes": crashes,
        "mean": round(fmean(printed[name] for name in nine), 4) if whole else None,
    }


def _percent(task: str, lines: Sequence[PredictionLine]) -> float:
    """Return the printed score of one task; TextCaps: CIDEr x 100."""
    failed = any(line["prediction"] is None for line in lines)
    if failed and task in NEEDS_PROMPT:
        raise ReleasedCrash("the published script crashes on a line without a prompt")
    scorer = find_task(task).scorer("released")
    scores = scorer.score_all([_answer(line) for line in lines], [_gold(line) for line in lines])
    return 100.0 * fmean(scores) * (1.0 if scorer.sample is not None else MOST_CIDER)


def _answer(line: PredictionLine) -> str:
    """Return an answer as the published generation loop writes it: the error of a failed one."""
    said = line["prediction"]
    return f"Error: {line.get('error')}" if said is None else said


def _gold(line: PredictionLine) -> dict[str, object]:
    boxes = {key: value for key, value in line.items() if key in ("answer_bbox", "size")}
    return {"answer": line.get("references") or line["gold"], **boxes}
