"""Score any file of answers: `python -m eval.score --task VQAv2 --variant fixed FILE`.

FILE is JSON Lines of {question_id, gold, prediction}; Grounding's gold is {answer_bbox, size},
TextCaps' a list of captions. One JSON line a sample goes to standard output, {question_id, score}
with score in 0..1 (captions: CIDEr-D / 10, and `cider` beside it), then a summary to standard
error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.files import Record, read_jsonl
from eval.scorers import MOST_CIDER, Scorer
from eval.tasks import TASKS, find_task

REQUIRED = ("question_id", "gold", "prediction")


def score_records(records: Sequence[Record], scorer: Scorer) -> list[Record]:
    """Return one result a record, in order: question_id, score, and `error` where there is none.

    A missing answer (null, or an `error` in the record) and a record that cannot be scored earn
    0 and say so; they never reach the scorer.
    """
    if scorer.sample is None:
        return _score_captions(records, scorer)
    return [_score_one(record, scorer) for record in records]


def _problem(record: Record) -> str | None:
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        return f"missing keys {missing}; expected {list(REQUIRED)}"
    if record.get("error"):
        return f"no answer: {record['error']}"
    if record["prediction"] is None:
        return "no answer"
    if not isinstance(record["prediction"], str):
        return f"prediction: found {record['prediction']!r}, expected text"
    return None


def _score_one(record: Record, scorer: Scorer) -> Record:
    problem = _problem(record)
    score = 0.0
    if problem is None and scorer.sample is not None:
        try:
            score = scorer.sample(record["prediction"], record)
        except (ValueError, TypeError) as error:
            problem = str(error)
    return _result(record, score, problem)


def _score_captions(records: Sequence[Record], scorer: Scorer) -> list[Record]:
    # Document frequencies are the whole file's, failed samples included.
    usable = [r for r in records if isinstance(r.get("gold"), list | str) and r["gold"]]
    answers = ["" if _problem(r) else r["prediction"] for r in usable]
    scores = dict(zip(map(id, usable), scorer.score_all(answers, usable), strict=True))
    results = []
    for record in records:
        problem = _problem(record)
        if problem is None and id(record) not in scores:
            problem = f"gold: found {record['gold']!r}, expected a list of captions"
        result = _result(record, 0.0 if problem else scores[id(record)], problem)
        results.append(result | {"cider": result["score"] * MOST_CIDER})
    return results


def _result(record: Record, score: float, problem: str | None) -> Record:
    result: Record = {"question_id": record.get("question_id"), "score": score}
    return result | ({"error": problem} if problem else {})


def summarise(task: str, variant: str, results: Sequence[Record], scorer: Scorer) -> str:
    """Return the summary line; captions are reported as CIDEr x 100."""
    failed = sum("error" in result for result in results)
    if not results:
        return f"{task} ({variant}): no samples, nothing to score"
    scores = [float(result["score"]) for result in results]
    mean = 100.0 * sum(scores) / len(scores) * (1.0 if scorer.sample else MOST_CIDER)
    text = f"{task} ({variant}): {mean:.2f} over {len(results)} samples, {failed} failed"
    return text + (" (failed samples earn nothing)" if failed else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after a message if the file or task cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m eval.score", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--task", required=True, help=", ".join(TASKS))
    parser.add_argument("--variant", default="fixed", choices=["fixed", "released"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        scorer = find_task(options.task).scorer(options.variant)
        records = read_jsonl(options.file)
    except (ValueError, OSError) as error:
        print(f"eval.score: {error}", file=sys.stderr)
        return 2
    results = score_records(records, scorer)
    for result in results:
        print(json.dumps(result, ensure_ascii=False))
    print(summarise(options.task, options.variant, results, scorer), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
