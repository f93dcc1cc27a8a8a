"""Every number of the report once more from the run's files, by code of its own.

Nothing of `eval` computes here: CSV, JSON and arithmetic only. The invented answers of the fixture
are the gold text or something else, so that equality is the score (captions apart).
"""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from eval.report import write_report
from eval.routing.stage_ablation import write_ablation
from tests.eval.make_run import ablate_run, make_run
from tests.eval.report.page_reader import Rows, cards_of, mean, shown, tables_of

CHUNKS = 4
ABLATIONS = ["stage1_off", "without_expert_2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with ablations and its report."""
    run, stream = make_run(tmp_path_factory.mktemp("numbers"), chunks=CHUNKS, done=CHUNKS, tests=16)
    ablate_run(run, stream, ABLATIONS, CHUNKS)
    write_ablation(run, stream, CHUNKS, ABLATIONS)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def tables(page: str) -> dict[str, Rows]:
    return tables_of(page)


@pytest.fixture(scope="module")
def a(run: Path) -> dict[tuple[int, str], float]:
    with (run / "matrix.csv").open(encoding="utf-8") as file:
        return {(int(r["chunk"]), r["task"]): float(r["score"]) for r in csv.DictReader(file)}


@pytest.fixture(scope="module")
def stream(run: Path) -> dict:
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    return json.loads((Path(manifest["data"]["stream"]) / "stream.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def routing(run: Path) -> dict[int, dict]:
    files = {c: run / "chunks" / f"{c:03d}" / "routing.json" for c in range(1, CHUNKS + 1)}
    return {c: json.loads(file.read_text("utf-8")) for c, file in files.items()}


def _lines(run: Path, folder: str, task: str) -> list[dict]:
    text = (run / folder / "predictions" / f"{task}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _right(run: Path, folder: str, task: str) -> list[float]:
    return [float(line["prediction"] == line["gold"]) for line in _lines(run, folder, task)]


def test_matrix_from_the_predictions(run: Path, a: dict, stream: dict, tables: dict) -> None:
    rows = tables["score after each chunk, in percent"]
    tasks = list(stream["tasks"])
    assert rows[0] == ["after", *tasks, "mean"]
    for chunk, row in enumerate(rows[1:]):
        for task, cell in zip(tasks, row[1:-1], strict=True):
            if task != "TextCaps":
                assert cell == shown(mean(_right(run, f"chunks/{chunk:03d}", task)))
            assert cell == shown(a[chunk, task])
        assert row[-1] == shown(mean([a[chunk, t] for t in tasks]))
    assert len(rows) == CHUNKS + 2


def test_means(a: dict, stream: dict, tables: dict) -> None:
    rows = tables["mean score after each chunk, in percent; the matrix below has every task"]
    for chunk, row in enumerate(rows[1:]):
        values = {task: a[chunk, task] for task in stream["tasks"]}
        assert row[1] == shown(mean(list(values.values())))
        assert row[2].split(" ")[1] == shown(max(values.values()))
        assert row[3].split(" ")[1] == shown(min(values.values()))


def test_headline_numbers(a: dict, stream: dict, page: str) -> None:
    cards, tasks = cards_of(page), list(stream["tasks"])
    first = {
        t: min((c["index"] for c in stream["chunks"] if c["tasks"].get(t)), default=None)
        for t in tasks
    }
    best = {t: max(a[c, t] for c in range(1, CHUNKS)) for t in tasks}
    seen = [t for t in tasks if first[t] is not None and first[t] < CHUNKS]
    later = [t for t in tasks if first[t] is not None and first[t] > 1]
    expected = {
        "Last": mean([a[CHUNKS, t] for t in tasks]),
        "Average": mean([mean([a[c, t] for t in tasks]) for c in range(1, CHUNKS + 1)]),
        "Forgetting": mean([best[t] - a[CHUNKS, t] for t in seen]),
        "Base model": mean([a[0, t] for t in tasks]),
        "Backward transfer": mean([a[CHUNKS, t] - a[first[t], t] for t in seen]),
        "Forward transfer": mean([a[first[t] - 1, t] - a[0, t] for t in later]),
        "Lost since best": mean([max(best[t], a[CHUNKS, t]) - a[CHUNKS, t] for t in tasks]),
        "Majority answer": 0.2,
    }
    assert {name: cards[name][0] for name in expected} == {
        name: shown(value) for name, value in expected.items()
    }


def test_standard_error_of_last(run: Path, page: str) -> None:
    """Against the formula for independent tasks; bootstrap noise is a few percent."""
    total = 0.0
    scores = json.loads((run / "chunks" / f"{CHUNKS:03d}" / "scores.json").read_text("utf-8"))
    entries = {t: e for t, e in scores["tasks"].items() if t != "TextCaps"}
    for entry in entries.values():
        total += (entry["stderr"] * math.sqrt((entry["n"] - 1) / entry["n"])) ** 2
    low = math.sqrt(total) / len(scores["tasks"])
    value = float(cards_of(page)["Last"][1])
    assert 0.85 * 100 * low <= value <= 1.5 * 100 * low + 0.5


def test_composition(stream: dict, tables: dict) -> None:
    mixture = tables["training samples by task"]
    for chunk, row in zip(stream["chunks"], mixture[1:], strict=True):
        assert row[1:] == [str(chunk["tasks"].get(t, 0)) for t in mixture[0][1:]]


def test_task_table(a: dict, stream: dict, tables: dict) -> None:
    rows = tables["all tasks, scores in percent; failed: over all chunks"]
    for row in rows[1:]:
        cell = dict(zip(rows[0], row, strict=True))
        task = cell["task"]
        best = max(a[c, task] for c in range(1, CHUNKS))
        first = min(c["index"] for c in stream["chunks"] if c["tasks"].get(task))
        assert cell["scorer"] == stream["tasks"][task]["scorer"]
        assert (cell["samples"], cell["failed"], cell["first chunk"]) == ("16", "0", str(first))
        expected = {
            "majority": 0.2,
            "base": a[0, task],
            "best": max(a[c, task] for c in range(1, CHUNKS + 1)),
            "last": a[CHUNKS, task],
            "forgetting": best - a[CHUNKS, task] if first < CHUNKS else math.nan,
            "backward transfer": a[CHUNKS, task] - a[first, task] if first < CHUNKS else math.nan,
            "forward transfer": a[first - 1, task] - a[0, task] if first > 1 else math.nan,
        }
        for name, value in expected.items():
            assert cell[name].split(" ")[0] == shown(value), (task, name)


def _nmi(groups: list[dict], layer: int) -> float:
    pairs = {(g["name"], m): g["rows"] * w for g in groups for m, w in g["sets"][layer].items()}
    total = sum(pairs.values())

    def entropy(weights: list[float]) -> float:
        return -sum(w / total * math.log(w / total) for w in weights if w)

    tasks = entropy([g["rows"] for g in groups])
    sets = entropy([sum(w for (_, m), w in pairs.items() if m == mask)
                    for mask in {m for _, m in pairs}])  # fmt: skip
    return 2 * (tasks + sets - entropy(list(pairs.values()))) / (tasks + sets)


def _overlap(one: dict, other: dict) -> float:
    layers = zip(one["use"], other["use"], strict=True)
    return mean([sum(min(pair) for pair in zip(x, y, strict=True)) for x, y in layers])


def test_experts_by_task_layer_and_chunk(routing: dict, tables: dict) -> None:
    rows = iter(tables["expert use by task and chunk, in percent"][1:])
    for chunk, record in routing.items():
        for group in record["groups"]:
            weights = [mean([layer[e] for layer in group["use"]]) for e in range(4)]
            kept = [mean([layer[e] for layer in group["selected"]]) for e in range(4)]
            stages = [f"{mean(group[key]):.3f}" for key in ("task_entropy", "token_entropy")]
            name = f"{group['name']}, chunk {chunk}"
            assert next(rows) == [name, *map(shown, weights + kept), *stages]
    last = routing[CHUNKS]
    rows = iter(tables[f"routing by layer after chunk {CHUNKS}, means over tasks"][1:])
    for n, name in enumerate(last["layers"]):
        short = f"{name.split('.')[3]} {name.split('.')[-1]}"
        stages = [mean([group[key][n] for group in last["groups"]])
                  for key in ("task_entropy", "token_entropy")]  # fmt: skip
        numbers = [f"{value:.3f}" for value in (_nmi(last["groups"], n), *stages)]
        weights = [shown(mean([group["use"][n][e] for group in last["groups"]])) for e in range(4)]
        assert next(rows) == [short, *numbers, *weights]


def test_separation_overlap_and_similarity(routing: dict, tables: dict) -> None:
    last = routing[CHUNKS]
    names = [g["name"] for g in last["groups"]]
    layers = range(len(last["layers"]))
    course = {c: [_nmi(r["groups"], n) for n in layers] for c, r in routing.items()}
    rows = tables["routing over the stream"]
    assert [row[1] for row in rows[1:]] == [f"{mean(course[c]):.3f}" for c in course]
    shared = [[_overlap(x, y) for y in last["groups"]] for x in last["groups"]]
    rows = tables[f"overlap of tasks after chunk {CHUNKS}, in percent"]
    assert rows[1:] == [[n, *map(shown, row)] for n, row in zip(names, shared, strict=True)]
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    alike = {pair: mean([layer[k] for layer in last["cka"]]) for k, pair in enumerate(pairs)}
    off = [value for i, row in enumerate(shared) for j, value in enumerate(row) if i != j]
    newest = tables["routing over the stream"][-1]
    assert newest[2:4] == [f"{mean(off):.3f}", f"{mean(list(alike.values())):.3f}"]


def test_drift_and_entropies(routing: dict, tables: dict) -> None:
    groups = {c: r["groups"] for c, r in routing.items()}
    rows, by_chunk = (
        tables["drift of each task's routing since the chunk before, in percent"],
        tables["routing over the stream"],
    )
    assert set(rows[1][1:]) == {by_chunk[1][4]} == {"–"}  # noqa: RUF001
    for (before, after), row, all_tasks in zip(
        pairwise(groups), rows[2:], by_chunk[2:], strict=True
    ):
        moved = [1 - _overlap(x, y) for x, y in zip(groups[before], groups[after], strict=True)]
        assert row == [f"chunk {after}", *map(shown, moved)]
        assert all_tasks[4] == f"{mean(moved):.3f}"
    for chunk, row in zip(groups, by_chunk[1:], strict=True):
        stages = [mean([mean(g[key]) for g in groups[chunk]])
                  for key in ("task_entropy", "token_entropy")]  # fmt: skip
        assert row[6:] == [f"{value:.3f}" for value in stages]


def test_changes_of_kept_sets(routing: dict, tables: dict) -> None:
    by_chunk = tables["routing over the stream"]
    assert by_chunk[1][5] == "–"  # noqa: RUF001
    for (before, after), row in zip(pairwise(routing), by_chunk[2:], strict=True):
        shares = []
        for task in (group["name"] for group in routing[after]["groups"]):
            old, new = (
                {i["text"]: i["kept"] for i in routing[c]["instructions"] if i["group"] == task}
                for c in (before, after)
            )
            assert old.keys() == new.keys()
            pairs = [(a, b) for text in old for a, b in zip(old[text], new[text], strict=True)]
            known = [pair for pair in pairs if None not in pair]
            assert 0 < len(known) < len(pairs)
            shares.append(mean([float(a != b) for a, b in known]))
        assert row[5] == f"{mean(shares):.3f}"


def test_ablations(run: Path, tables: dict) -> None:
    rows = tables[f"ablations after chunk {CHUNKS}, in percent; first row: intact scores"]
    intact = dict(zip(rows[0], rows[1], strict=True))
    tasks = [name.removesuffix(": cost") for name in rows[0][4:]]
    for name, row in zip(ABLATIONS, rows[2:], strict=True):
        cell = dict(zip(rows[0], row, strict=True))
        costs = {}
        for task in tasks:
            if task == "TextCaps":
                costs[task] = float(cell[f"{task}: cost"].replace("\u2212", "-")) / 100
                continue
            before = _right(run, f"chunks/{CHUNKS:03d}", task)
            after = _right(run, f"ablation/{name}", task)
            costs[task] = mean(before) - mean(after)
            assert intact[f"{task}: cost"] == shown(mean(before))
            assert cell[f"{task}: cost"] == shown(costs[task])
        assert float(cell["cost"].replace("\u2212", "-")) == pytest.approx(
            100 * mean(list(costs.values())), abs=0.06
        )
        low, high = (float(v.replace("\u2212", "-")) for v in cell["95 % interval"].split(" to "))
        # Half the paired interval, by the formula for independent tasks (captions left out).
        variance = 0.0
        for task in (t for t in tasks if t != "TextCaps"):
            pairs = zip(_right(run, f"chunks/{CHUNKS:03d}", task),
                        _right(run, f"ablation/{name}", task), strict=True)  # fmt: skip
            gaps = [x - y for x, y in pairs]
            variance += mean([(g - mean(gaps)) ** 2 for g in gaps]) / len(gaps)
        half = 196 * math.sqrt(variance) / len(tasks)
        assert 0.8 * half <= (high - low) / 2 <= 1.6 * half + 0.5


def test_timing_memory_and_losses(run: Path, tables: dict) -> None:
    rows = tables["steps, wall time and peak memory by chunk"]
    state = json.loads((run / "state.json").read_text("utf-8"))
    assert rows[-1][1] == str(sum(c["steps"] for c in state["chunks"]))
    assert rows[-1][2] == f"{sum(c['train_seconds'] for c in state['chunks']):.0f}"
    assert rows[-1][3] == f"{sum(c['eval_seconds'] for c in state['chunks']):.0f}"
    logs = {
        chunk: [json.loads(line) for line in
                (run / "chunks" / f"{chunk:03d}" / "train_metrics.jsonl").read_text().splitlines()]
        for chunk in range(1, CHUNKS + 1)
    }  # fmt: skip
    assert rows[2][4] == f"{max(line.get('memory(GiB)', 0) for line in logs[1]):.2f}"
    for caption, key in (
        ("language-model loss by optimizer step", "loss"),
        ("routing-stability loss by optimizer step", "stability_loss"),
    ):
        values = [line[key] for log in logs.values() for line in log if key in line]
        found = tables[caption][1:]
        every = math.ceil(len(values) / 60)
        assert [row[1] for row in found] == [f"{v:.4g}" for v in values[::every]]
        assert [row[0] for row in found] == [str(s) for s in range(1, len(values) + 1, every)]


def test_published_scores(run: Path, tables: dict) -> None:
    """These three published scripts ask for equality, as the invented answers are made for."""
    rows = tables[f"scores as the published scripts print them, after chunk {CHUNKS}"]
    found = {row[0]: row for row in rows[1:]}
    for task in ("VQAv2", "OCRVQA", "Grounding"):
        right = 100 * mean(_right(run, f"chunks/{CHUNKS:03d}", task))
        assert found[task][1:3] == [f"{right:.1f}"] * 2
    scores = json.loads((run / "chunks" / f"{CHUNKS:03d}" / "scores.json").read_text("utf-8"))
    assert found["TextCaps"][3] == f"CIDEr {scores['tasks']['TextCaps']['cider']:.1f}"


def test_examples_are_the_answers(run: Path, page: str) -> None:
    """Each panel shows what the prediction files say about that question, chunk after chunk."""
    told = page.split('<article class="example">')[1:]
    assert len(told) == 5
    for part in told:
        task = part.split('<p class="task">')[1].split("<")[0]
        prompt = part.split('<p class="prompt">')[1].split("<")[0]
        courses = [_lines(run, f"chunks/{c:03d}", task) for c in range(CHUNKS + 1)]
        at = next(i for i, line in enumerate(courses[0]) if line["prompt"] == prompt)
        answers = [lines[at]["prediction"] for lines in courses]
        changes = [answers[0], *(y for x, y in pairwise(answers) if x != y)]
        said = [s.split("<")[0] for s in part.split('<span class="said">')[1:]]
        assert said == changes
