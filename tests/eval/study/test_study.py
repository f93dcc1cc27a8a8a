"""Tables, tests and documents of a study, against values worked by hand."""

# ruff: noqa: RUF001

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest

from eval.study import stream_figure, tables
from eval.study.__main__ import REPOSITORY, main
from eval.study.groups import leads, method_label, read_study
from eval.study.run_csv import COLUMNS, read_run

# a[chunk, task] in percent; task B is first taught in chunk 2.
Scores = list[tuple[int, int]]


def keep(
    folder: Path,
    method: str,
    stream_seed: int,
    scores: Scores,
    *,
    seed: int = 0,
    settings: str = "",
    keeps: str = "",
    first: tuple[object, object] = (1, 2),
    chunks: tuple[int, ...] = (0, 1, 2, 3),
) -> Path:
    """Writes the CSV of a run; every chunk takes 60 seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{method}-seed{seed}-stream{stream_seed}{len(settings)}.csv"
    run = [method, seed, stream_seed, settings, keeps, "0.2", "0.5"]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for chunk, pair in zip(chunks, scores, strict=True):
            for task, start, score in zip("AB", first, pair, strict=True):
                of_task = [chunk, task, start, score / 100, 80]
                rows.writerow([*run, *of_task, 50, 10, "abcdef0123", "2 cores"])
    return path


def three_runs(folder: Path) -> None:
    """Method x: Avg 50, 52, 54 (chunk means 40 + d, 50 + d, 60 + d); method y: Avg 49, 50, 51."""
    for seed, more in enumerate((0, 2, 4)):
        for method, d in (("x", more), ("y", more // 2 - 1)):
            first = (80 + d, d) if d >= 0 else (80 + 2 * d, 0)
            keep(folder, method, seed, [(0, 0), first, (60 + d, 40 + d), (70 + d, 50 + d)])


def test_scores_are_means_and_standard_deviations_over_the_runs(tmp_path: Path) -> None:
    three_runs(tmp_path)
    text = tables.scores(read_study(tmp_path), whole=True)
    # Avg 50, 52, 54: mean 52, standard deviation 2, t(0.975, 2) = 4.303: 52 +- 4.303 * 2 / sqrt(3).
    # Last is (70 + 50) / 2 = 60, 62, 64.
    # Forgetting: A 80 - 70 = 10, B 40 - 50 = -10 (taught first in chunk 2 of 3): mean 0.
    # Lost since best: A 10, B 0: 5. MAF: after chunk 2 A 20, after chunk 3 A 10, B -10: 10.
    # Backward: A 70 - 80, B 50 - 40: 0. Forward: B chunk 1 - base: 0, 2, 4.
    row = next(line for line in text.splitlines() if line.startswith("| x "))
    assert row == (
        "| x | no | 3 | 62.0 ± 2.0 [57.0, 67.0] | 52.0 ± 2.0 [47.0, 57.0] | 0.0 ± 0.0 | 5.0 ± 0.0 "
        "| 10.0 ± 0.0 | 0.0 ± 0.0 | 2.0 ± 2.0 | 0.20 | 0.50 | 4.0 |"
    )
    assert "Stream seeds 0-2, seeds 0; 6 runs, 0.4 hours" in text
    assert "machine: 2 cores; commit: abcdef0." in text


def test_seeds_of_the_model_on_one_stream_count_as_one(tmp_path: Path) -> None:
    """Last by stream: x 50 and 54, 56 and 60; y 49 and 51, 50 and 52."""
    for method, lasts in (("x", (50, 54, 56, 60)), ("y", (49, 51, 50, 52))):
        for number, last in enumerate(lasts):
            rows = [(0, 0), *[(last, last)] * 3]
            keep(tmp_path, method, number // 2, rows, seed=number % 2)
    study = read_study(tmp_path)
    # x 52 and 58: 55, standard deviation sqrt(18), t(0.975, 1) = 12.706: 55 +- 12.706 * 3.
    assert "| x | no | 2 | 55.0 ± 4.2 [16.9, 93.1] |" in tables.scores(study, whole=True)
    told = tables.provenance(study)
    assert "over n streams, of each the mean over its runs." in told
    assert "seeds 0-1; 8 runs" in told
    # Differences by stream 2 and 7: 4.5 +- 12.706 * 2.5; t = 1.8: p = 1 - 2 atan(1.8) / pi.
    (lead,) = leads(study.groups[0], study.groups[1:], "last")
    assert (lead.pairs, lead.difference) == (2, pytest.approx(0.045))
    assert lead.interval == pytest.approx((-0.27266, 0.36266), abs=1e-5)
    assert lead.p == pytest.approx(0.3228, abs=0.0001)
    # Within streams: x (4 + 4 + 4 + 4) / 2, y (1 + 1 + 1 + 1) / 2.
    assert "x 2.8 and 2.8; y 1.4 and 1.4." in tables.spread_of_seeds(study)
    assert stream_figure.course(study.groups[0]).std == pytest.approx([math.sqrt(18) / 100] * 3)


def test_a_variant_of_the_best_is_not_its_rival_where_others_are(tmp_path: Path) -> None:
    for seed in (0, 1):
        keep(tmp_path, "x", seed, [(0, 0), *[(50, 50 + seed)] * 3])
        keep(tmp_path, "x", seed, [(0, 0), *[(49, 50 - seed)] * 3], settings="ewc={weight: 1}")
    assert "against x + EWC {weight: 1}" in tables.winner(read_study(tmp_path))
    for seed in (0, 1):
        keep(tmp_path, "y", seed, [(0, 0), *[(30, 30 + seed)] * 3])
    told = tables.winner(read_study(tmp_path))
    assert "x has the highest Avg of the 3 methods without data that ran on 2 streams" in told
    assert "nearest of other methods: Avg (MAP) +" in told
    assert "against y" in told
    assert "EWC" not in told


def test_settings_in_another_order_are_the_same(tmp_path: Path) -> None:
    for seed, settings in enumerate(
        ("tuner.rank=8 ewc={weight: 1} tuner.alpha=4", "tuner.alpha=4 tuner.rank=8 ewc={weight: 1}")
    ):
        keep(tmp_path, "x", seed, [(0, 0)] * 4, settings=settings)
    (group,) = read_study(tmp_path).groups
    assert (group.name, group.n) == ("x + EWC {weight: 1}, alpha 4, rank 8", 2)


def test_a_method_that_shares_no_stream_is_not_ranked(tmp_path: Path) -> None:
    for seed in (0, 1):
        keep(tmp_path, "x", seed, [(0, 0), *[(50, 50)] * 3])
        keep(tmp_path, "y", 2 + seed, [(0, 0), *[(90, 90)] * 3])
    keep(tmp_path, "x", 4, [(0, 0), *[(50, 50)] * 3])
    study = read_study(tmp_path)
    assert [group.name for group in study.ranked()] == ["x"]
    assert tables.winner(study).endswith(
        "x is the only method without data, nothing to compare it with"
    )


def test_a_lead_is_paired_by_stream(tmp_path: Path) -> None:
    three_runs(tmp_path)
    keep(tmp_path, "z", 0, [(0, 0), (20, 0), (20, 0), (20, 0)])
    study = read_study(tmp_path)
    assert [group.name for group in study.groups] == ["x", "y", "z"]
    assert [group.name for group in study.ranked()] == ["x", "y"], "one run ranks nobody"
    over_y, over_z = leads(study.groups[0], study.groups[1:], "average")
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3); the two-sided p of t with 2 degrees of
    # freedom is 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14).
    assert over_y.difference == pytest.approx(0.02)
    assert over_y.interval == pytest.approx(
        (0.02 - 0.01 * 4.3027 / math.sqrt(3), 0.02 + 0.01 * 4.3027 / math.sqrt(3)), abs=1e-6
    )
    assert over_y.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert over_y.adjusted == over_y.p, "no test was possible against z: it does not count"
    assert (over_z.pairs, math.isnan(over_z.p)) == (1, True)
    table = tables.lead_table(study)
    assert "| y | 3 | +2.0 | −0.5 to +4.5 | 0.074 |" in table
    assert "| z | 1 | +40.0 | n = 1: no interval | – |" in table
    lead = "+2.0 (95 % interval −0.5 to +4.5, p 0.074: not shown) against y"
    assert tables.winner(study) == (
        f"{tmp_path.name}: x has the highest Avg of the 2 methods without data that ran on 3 "
        "streams, 52.0, and Last 62.0; nearest of other methods: "
        f"Avg (MAP) {lead}; Last {lead}"
    )


def test_a_method_of_fewer_streams_is_no_leader_but_a_rival(tmp_path: Path) -> None:
    three_runs(tmp_path)
    for seed in (0, 1):
        keep(tmp_path, "v", seed, [(0, 0), *[(90, 90)] * 3])
    keep(tmp_path, "u", 0, [(0, 0), *[(95, 95)] * 3])
    study = read_study(tmp_path)
    assert [group.name for group in study.ranked()] == ["x", "y", "v"], "u ran on one of three"
    told = tables.winner(study)
    assert "x has the highest Avg of the 2 methods without data that ran on 3 streams" in told
    # 50 and 52 against 90 twice: -39 +- t(0.975, 1) = 12.706 times 1.
    assert "nearest of other methods: Avg (MAP) −39.0 (95 % interval −51.7 to −26.3" in told
    # p of -39: 1 - 2 atan(39) / pi = 0.016, so it is shown, but no lead; y's is 0.074.
    assert ") against v, shown over 0 of 2; Last " in told
    assert "u" not in told.split("nearest")[1].split()


def test_the_leader_is_found_over_all_runs_of_a_stream(tmp_path: Path) -> None:
    """Method a has 50 with seed 0 and 60 with seed 1, b 54 with seed 0 alone."""
    for stream in (0, 1):
        keep(tmp_path, "a", stream, [(0, 0), *[(50, 50)] * 3])
        keep(tmp_path, "a", stream, [(0, 0), *[(60, 60)] * 3], seed=1)
        keep(tmp_path, "b", stream, [(0, 0), *[(54, 54)] * 3])
    assert [group.name for group in read_study(tmp_path).ranked()] == ["a", "b"]


def test_a_harder_stream_more_costs_nobody_the_lead(tmp_path: Path) -> None:
    """Method b has the higher mean, 64 and 60, and is behind on both streams that it ran on."""
    for seed, level in enumerate((50, 60, 70)):
        keep(tmp_path, "a", seed, [(0, 0), *[(level, level)] * 3])
        if seed:
            keep(tmp_path, "b", seed, [(0, 0), *[(level - 1, level - 1)] * 3])
    study = read_study(tmp_path)
    assert [group.name for group in study.groups] == ["a", "b"]
    assert [group.name for group in study.ranked()] == ["a", "b"]
    said = "a has the highest Avg of the 2 methods without data that ran on 2 streams or more, 60.0"
    assert said in tables.winner(study)


def test_p_is_corrected_over_the_methods(tmp_path: Path) -> None:
    three_runs(tmp_path)
    for seed, less in enumerate((10, 11, 15)):
        keep(tmp_path, "w", seed, [(0, 0), *[(60 - less, 40 - less)] * 3])
    study = read_study(tmp_path)
    # Over w 10, 13, 19 in Avg and 20, 23, 29 in Last: t 5.3 and 9.1, p 0.034 and 0.012, twice.
    avg, last = tables.winner(study).split("; Last ")
    assert (avg[-6:], last[-6:]) == ("0 of 2", "1 of 2")
    first, *others = study.groups
    # Holm over two: the smaller p counts twice, the larger once.
    small, large = sorted(leads(first, others, "average"), key=lambda lead: lead.p)
    assert small.adjusted == pytest.approx(2 * small.p)
    assert large.adjusted == pytest.approx(max(large.p, 2 * small.p))


def test_one_run_of_each_says_that_there_is_no_interval(tmp_path: Path) -> None:
    keep(tmp_path, "x", 0, [(0, 0), (50, 0), (50, 50), (60, 60)])
    alone = "x is the only method without data, nothing to compare it with"
    assert tables.winner(read_study(tmp_path)) == f"{tmp_path.name}: {alone}"
    keep(tmp_path, "y", 0, [(0, 0), (50, 0), (50, 50), (60, 54)])
    study = read_study(tmp_path)
    assert "± " not in tables.scores(study).splitlines()[2]
    assert "(n = 1: no spread is known)" in tables.scores(study)
    assert tables.winner(study).endswith(
        "60.0; nearest of other methods: Avg (MAP) +1.0 (n = 1: no interval) against y; "
        "Last +3.0 (n = 1: no interval) against y"
    )


def test_methods_that_keep_data_and_joint_training_are_beside_the_ranking(tmp_path: Path) -> None:
    keep(tmp_path, "lora", 0, [(0, 0), (50, 0), (50, 50), (60, 60)])
    keep(tmp_path, "er", 0, [(0, 0), (90, 0), (90, 90), (90, 90)], keeps="500 samples")
    keep(tmp_path, "joint", 0, [(0, 0), (95, 91)], keeps="all data", first=("", ""), chunks=(0, 3))
    study = read_study(tmp_path)
    assert [group.name for group in study.groups] == ["LoRA", "Replay (ER)", "Joint"]
    assert [group.name for group in study.ranked()] == ["LoRA"]
    row = "| Joint | all data | 1 | 93.0 | – | – | – |"
    assert row in tables.scores(study), "one training in no order: neither Avg nor forgetting"


@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        ("lora", "", "LoRA"),
        ("lora", "slow_weights={}", "LoRA + slow weights"),
        ("lora", "slow_weights=null", "LoRA"),
        ("lora", "data.size=long slow_weights={}", "LoRA + slow weights"),
        ("lora", "data.size=mini-study", "LoRA, data.size mini-study"),
        ("lora", "schedule.later.learning_rate=0.1", "LoRA, later.learning_rate 0.1"),
        ("strlora_signed", "slow_weights=null", "StrLoRA (signed) without slow weights"),
        ("er", "replay={memory: 500, share: 0.5} tuner.rank=8",
         "Replay (ER) + replay {memory: 500, share: 0.5}, rank 8"),
    ],
)  # fmt: skip
def test_a_setting_has_a_name(tmp_path: Path, method: str, settings: str, name: str) -> None:
    path = keep(tmp_path / "long-reversed", method, 0, [(0, 0)] * 4, settings=settings)
    assert method_label(read_run(path)) == name


def test_the_figure_is_the_score_of_what_was_taught(tmp_path: Path) -> None:
    three_runs(tmp_path)
    line = stream_figure.course(read_study(tmp_path).groups[0])
    # After chunk 1 only A counts: 80, 82, 84; then both: 50, 52, 54 and 60, 62, 64.
    assert line.chunks.tolist() == [1, 2, 3]
    assert line.mean == pytest.approx([0.82, 0.52, 0.62])
    assert line.std == pytest.approx([0.02, 0.02, 0.02])


def test_two_configurations_of_the_same_runs(tmp_path: Path) -> None:
    for name, more in (("tiny", 0), ("tiny_avx2", 3)):
        keep(tmp_path / name, "x", 0, [(0, 0), (50, 10), (50, 50), (60 + more, 60 - more)])
        keep(tmp_path / name, "x", 1, [(0, 0), (50, 10), (50, 50), (60 + more, 60 + more)])
        keep(tmp_path / name, "y", 0, [(0, 0), (50, 10), (50, 50), (59 + 4 * more, 60)])
    text = tables.machines(*(read_study(tmp_path / name) for name in ("tiny", "tiny_avx2")))
    # x: 2 of 6 scores move by 3 in both runs: 1 point each. Last moves by 0 and 3: 1.5.
    # Avg is a mean of three chunks: 0 and 1, 0.5. y: 1 of 6 by 12: 2; Last 6, Avg 2.
    assert "| x | 2 | 1.0 | 1.5 | +1.5 | 0.5 | +0.5 |" in text
    assert "| y | 1 | 2.0 | 6.0 | +6.0 | 2.0 | +2.0 |" in text
    assert "The order of the methods by Avg is not the same." in text


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Documents with markers, and six runs."""
    three_runs(tmp_path / "docs" / "results" / "tiny")
    parts = {
        "README.md": ["scores docs/results/tiny", "machines docs/results/tiny docs/results/none"],
        "docs/study.md": [
            "finding docs/results",
            "figure docs/results/tiny docs/why.svg",
            "streams docs/results",
        ],
    }
    for name, words in parts.items():
        blocks = [f"<!-- study: {word} -->\n<!-- study ends -->" for word in words]
        (tmp_path / name).write_text("\n\n".join(["# Words of ours", *blocks]) + "\n", "utf-8")
    return tmp_path


def test_the_figure_has_the_methods_that_ran_on_all_streams(repository: Path) -> None:
    keep(repository / "docs" / "results" / "tiny", "v", 0, [(0, 0), *[(90, 90)] * 3])
    assert main(["--root", str(repository)]) == 0
    page = (repository / "docs" / "study.md").read_text("utf-8")
    assert "| v | no | 1 | 90.0 |" in page
    described = page.split("![Line chart: ")[1].split("](why.svg)")[0]
    assert "x 82.0 after chunk 1 and 62.0 after chunk 3; y" in described
    assert "v 90.0" not in described


def test_documents_are_written_and_checked(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--root", str(repository)]
    assert main([*asked, "--check"]) == 1
    assert "README.md:4: found '<!-- study ends -->'" in capsys.readouterr().err
    assert main(asked) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["written: README.md", "written: docs/study.md", "written: docs/why.svg"]
    assert out[-1].startswith("tiny: x has the highest Avg of the 2 methods without data")
    page = (repository / "docs" / "study.md").read_text("utf-8")
    alt, link = re.findall(r"!\[(.*)\]\((.*)\)", page)[0]
    assert link == "why.svg"
    assert "x 82.0 after chunk 1 and 62.0 after chunk 3" in alt
    assert "### `tiny`" in page
    assert tables.NOTHING in (repository / "README.md").read_text("utf-8"), "no other machine"
    assert main(asked) == 0
    assert "written" not in capsys.readouterr().out, "nothing changed"
    assert main([*asked, "--check"]) == 0


def test_the_check_names_the_first_difference(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--root", str(repository)]
    assert main(asked) == 0
    page = repository / "README.md"
    page.write_text(page.read_text("utf-8").replace("| x | no | 3 | 62.0", "| x | no | 3 | 72.0"))
    assert main([*asked, "--check"]) == 1
    err = capsys.readouterr().err
    assert "README.md:6: found '| x | no | 3 | 72.0" in err
    assert "the CSVs give '| x | no | 3 | 62.0" in err
    assert main(asked) == 0

    figure = repository / "docs" / "why.svg"
    figure.write_text(figure.read_text("utf-8").replace("x 82.0 after", "x 83.0 after"), "utf-8")
    assert main([*asked, "--check"]) == 1
    assert (
        "docs/why.svg: was not drawn from the CSVs in docs/results/tiny" in capsys.readouterr().err
    )


def test_named_methods_stand_without_trials_of_other_settings(tmp_path: Path) -> None:
    tried = ("", "data.size=tiny slow_weights={}")
    for settings in (*tried, "ewc={weight: 100}", "slow_weights={} tuner.gate=topk"):
        keep(tmp_path / "tiny", "lora", 0, [(0, 0)] * 4, settings=settings)
    named = read_study(tmp_path / "tiny").only(["lora"])
    assert [run.settings for run in named.runs] == list(tried)


def test_a_block_may_name_its_methods(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, page = ["--root", str(repository)], repository / "README.md"
    blocks = ["scores docs/results/tiny methods=y", "figure docs/results/tiny why.svg methods=y"]
    page.write_text("".join(f"<!-- study: {block} -->\n<!-- study ends -->\n" for block in blocks))
    assert main(asked) == 0
    text = page.read_text("utf-8")
    assert "| y | no | 3 | 60.0 ± 1.0" in text
    assert "Line chart: mean score in percent of the tasks seen so far, over the chunks. y " in text
    assert "x" not in re.findall(r"^\| (\w+) \|", text, re.MULTILINE)
    assert main([*asked, "--check"]) == 0
    page.write_text(text.replace("tiny methods=y", "tiny methods=y,z"))
    assert main(asked) == 2
    assert "docs/results/tiny: no run of z" in capsys.readouterr().err


def test_what_cannot_be_read_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, results = ["--root", str(repository)], repository / "docs" / "results" / "tiny"
    copy = results / "copy.csv"
    copy.write_text((results / "x-seed0-stream00.csv").read_text("utf-8"), "utf-8")
    assert main(asked) == 2
    assert "x-seed0-stream00.csv: the same run twice; remove one" in capsys.readouterr().err
    copy.write_text("chunk,task\n1,A\n", "utf-8")
    assert main(asked) == 2
    assert "copy.csv: expected rows of method, seed" in capsys.readouterr().err
    lines = (results / "x-seed0-stream00.csv").read_text("utf-8").splitlines(keepends=True)
    copy.write_text("".join(lines[:-1]), "utf-8")
    assert main(asked) == 2
    assert "copy.csv: " in (told := capsys.readouterr().err)
    assert "chunk 3 has no row of B" in told
    copy.unlink()
    page = repository / "README.md"
    page.write_text("<!-- study: score docs/results/tiny -->\n<!-- study ends -->\n", "utf-8")
    assert main(asked) == 2
    err = capsys.readouterr().err
    assert (
        "README.md: found '<!-- study: score docs/results/tiny -->', expected scores (1 path" in err
    )
    page.write_text("<!-- study: scores docs/results/tiny -->\n", "utf-8")
    assert main(asked) == 2
    assert "a marker stands alone" in capsys.readouterr().err


def test_the_pages_of_this_repository_say_what_its_results_are() -> None:
    assert main(["--check", "--root", str(REPOSITORY)]) == 0
