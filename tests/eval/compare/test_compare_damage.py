"""What is damaged in a run becomes a marked gap, never a number."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.files import read_json, read_jsonl, write_json, write_jsonl
from eval.compare import compare, tables
from eval.significance import NO_INTERVAL
from tests.eval.compare.conftest import write_run
from tests.eval.make_run import make_stream


def _drop_predictions(run: Path) -> None:
    shutil.rmtree(run / "chunks" / "002" / "predictions")


def _double_an_id(run: Path) -> None:
    path = run / "chunks" / "003" / "predictions" / "VQAv2.jsonl"
    lines = read_jsonl(path)
    write_jsonl(path, [*lines, lines[0]])


def _tear_predictions(run: Path) -> None:
    path = run / "chunks" / "003" / "predictions" / "VQAv2.jsonl"
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")


def _lose_a_score(run: Path) -> None:
    """What is written when no sample of a task got an answer: no number."""
    path = run / "matrix.csv"
    rows = [",nan,".join(row.rsplit(",", 2)[::2]) if row.startswith("3,VQAv2") else row
            for row in path.read_text("utf-8").splitlines()]  # fmt: skip
    path.write_text("\n".join(rows) + "\n", "utf-8")
    _fail_answers(run)


def _lose_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()


def _tear_manifest(run: Path) -> None:
    (run / "manifest.json").write_text("{", "utf-8")


def _fail_answers(run: Path) -> None:
    path = run / "chunks" / "003" / "predictions" / "VQAv2.jsonl"
    lines = [line | {"prediction": None, "error": "no memory"} for line in read_jsonl(path)]
    write_jsonl(path, lines)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop_predictions, "002"),
        (_double_an_id, "occurs twice"),
        (_tear_predictions, "not JSON"),
        (_lose_manifest, "manifest.json"),
        (_tear_manifest, "not JSON"),
        (_fail_answers, "prediction file gives nan"),
        (_lose_a_score, "means are over the other tasks"),
    ],
)
def test_damage_becomes_a_marked_gap(
    good: Path, poor: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(poor)
    found = compare([good, poor])
    assert any(words in gap.why for gap in found.gaps), found.gaps
    assert all(gap.what.startswith(("poor", "Streams")) for gap in found.gaps)
    shown = tables.text(found)
    assert "poor: " in shown
    assert found.cell("strlora", "last").value > 0


def test_a_run_that_grew_is_not_ahead_of_the_same_answers_over_the_whole_stream(
    good: Path, tmp_path: Path
) -> None:
    """OCRVQA's test set came with chunk 3: the run that had grown was not asked it before."""
    grown = shutil.copytree(good, tmp_path / "grown")
    manifest = read_json(grown / "manifest.json")
    manifest["recipe"]["method"] = "lora"
    write_json(grown / "manifest.json", manifest)
    rows = (grown / "matrix.csv").read_text("utf-8").splitlines()
    kept = [row for row in rows if not row.startswith(("1,OCRVQA", "2,OCRVQA"))]
    (grown / "matrix.csv").write_text("\n".join(kept) + "\n", "utf-8")
    for chunk in (1, 2):
        (grown / f"chunks/00{chunk}/predictions/OCRVQA.jsonl").unlink()
    of = {tuple(row.split(",")[:2]): float(row.split(",")[2]) for row in rows[1:]}
    last = (of["3", "VQAv2"] + of["3", "OCRVQA"]) / 2
    average = (of["1", "VQAv2"] + of["2", "VQAv2"] + last) / 3
    whole = sum(of[c, task] for c in "123" for task in ("VQAv2", "OCRVQA")) / 6
    assert average != pytest.approx(whole, abs=1e-3)
    found = compare([good, grown])
    for method in ("strlora", "lora"):
        assert found.cell(method, "average").value == pytest.approx(average)
        assert found.cell(method, "last").value == pytest.approx(last)
    assert [test.difference for test in found.tests] == [0.0] * len(found.tests)
    assert [gap.what for gap in found.gaps] == [f"grown: OCRVQA after chunk {c}" for c in (1, 2)]


def test_a_score_that_its_samples_do_not_give_has_no_spread_and_no_test(
    good: Path, poor: Path
) -> None:
    """The best chunk's predictions are lost: what is lost since then cannot be drawn again."""
    before = compare([good, poor])
    shutil.rmtree(poor / "chunks" / "002" / "predictions")
    found = compare([good, poor])
    for key, sampled in (("last", True), ("average", False), ("lost", False), ("maf", False)):
        cell, (test,) = found.cell("lora", key), [t for t in found.tests if t.column == key]
        assert cell.value == before.cell("lora", key).value
        assert math.isfinite(cell.spread.std) == math.isfinite(cell.interval.low) == sampled, key
        assert (math.isfinite(test.p), test.kind) == (sampled, "samples" if sampled else "none")
        assert found.cell("strlora", key).best == sampled
    (gap,) = (gap for gap in found.gaps if "no test" in gap.what)
    assert "Last" not in gap.what
    assert "Avg (MAP), Lost since best" in gap.what
    assert "cannot be read or do not fit matrix.csv" in tables.text(found).replace("\n  ", " ")


def test_a_seed_without_predictions_leaves_its_method_without_a_test(
    good: Path, poor: Path, tmp_path: Path, stream: Path
) -> None:
    """Two seeds, one of them without predictions of a task, against one run of another method."""
    second = write_run(tmp_path / "second", stream, [0.4, 0.9, 0.8], seed=3)
    for path in second.glob("chunks/*/predictions/VQAv2.jsonl"):
        path.unlink()
    found = compare([good, second, poor])
    kinds = {test.column: test.kind for test in found.tests}
    assert [kinds[key] for key in ("last", "last/VQAv2", "last/OCRVQA")] == [
        "none", "none", "samples",
    ]  # fmt: skip
    assert found.cell("strlora", "last").spread.over == "runs"
    assert any(gap.what.startswith("second: no ± and no test") for gap in found.gaps)


def test_a_mean_over_two_tasks_has_not_the_spread_of_one(good: Path, poor: Path) -> None:
    """The last chunk lacks one task, whose score happens to be the other's, and so the mean's."""
    path = poor / "matrix.csv"
    rows = [row.split(",") for row in path.read_text("utf-8").splitlines()]
    at = {(row[0], row[1]): row for row in rows}
    at["3", "OCRVQA"][2] = at["3", "VQAv2"][2]
    path.write_text("\n".join(map(",".join, rows)) + "\n", "utf-8")
    (poor / "chunks" / "003" / "predictions" / "OCRVQA.jsonl").unlink()
    found = compare([good, poor])
    tests = {test.column: test for test in found.tests}
    known = {key: math.isfinite(tests[f"last{key}"].p) for key in ("", "/VQAv2", "/OCRVQA")}
    assert known == {"": False, "/VQAv2": True, "/OCRVQA": False}
    assert tests["last/VQAv2"].kind == "mcnemar"
    spreads = {key: math.isfinite(found.cell("lora", f"last{key}").spread.std) for key in known}
    assert spreads == known


def test_samples_of_other_scores_than_the_matrix_prove_nothing(good: Path, poor: Path) -> None:
    """An edited matrix.csv: StrLoRA's samples are ahead of LoRA's, its scores are not tested."""
    assert compare([good, poor]).cell("strlora", "last").best
    path = good / "matrix.csv"
    rows = [row.split(",") for row in path.read_text("utf-8").splitlines()]
    for row in rows:
        row[2] = "0.990000" if row[0] == "3" else row[2]
    path.write_text("\n".join(map(",".join, rows)) + "\n", "utf-8")
    found = compare([good, poor])
    assert found.cell("strlora", "last").value == pytest.approx(0.99)
    assert not found.cell("strlora", "last").best
    assert {t.kind for t in found.tests if t.column.startswith("last")} == {"none"}
    assert found.cell("strlora", "last").interval == NO_INTERVAL
    assert math.isfinite(found.cell("lora", "last").interval.low)


def test_runs_of_two_streams_are_tested_by_their_last_scores(good: Path, poor: Path) -> None:
    """Also where both have as many chunks; and where the last predictions lack, not by others."""
    manifest = read_json(poor / "manifest.json")
    manifest["data"]["sha256"] = "9" * 64
    write_json(poor / "manifest.json", manifest)
    tested = [t.column.split("/")[0] for t in compare([good, poor]).tests if math.isfinite(t.p)]
    assert tested == ["last"] * 3
    shutil.rmtree(poor / "chunks" / "003" / "predictions")
    assert {t.kind for t in compare([good, poor]).tests} == {"none"}


def test_captions_too_few_for_cider_are_told_where_one_run_has_lost_its_own(tmp_path: Path) -> None:
    names = ["VQAv2", "TextCaps"]
    stream = make_stream(tmp_path / "stream", names, chunks=1, tests=4)
    lost = write_run(tmp_path / "lost", stream, [0.5], "lora", tasks=names)
    other = write_run(tmp_path / "other", stream, [0.9], tasks=names)
    (lost / "chunks" / "001" / "predictions" / "TextCaps.jsonl").unlink()
    for runs in ([lost, other], [other, lost]):
        (said,) = [n for n in tables.notes(compare(runs), tables.ALL) if "chrF" in n]
        assert said.startswith("TextCaps: the test set (4 pictures) is too small for CIDEr")
        assert "StrLoRA " in said
        assert "; LoRA" not in said
