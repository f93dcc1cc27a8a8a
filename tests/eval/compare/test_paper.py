"""What goes into a paper: LaTeX that a real TeX compiles, figures, published numbers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eval import published
from eval.compare import compare, figures, tables
from eval.compare.__main__ import main
from eval.compare.comparison import chosen_columns
from eval.metrics import SCORE
from tests.eval.compare.conftest import write_run

FIGURES = ["stream.pdf", "stream.svg", "tasks.pdf", "tasks.svg"]


def _has_tex() -> bool:
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        return False
    asked = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False)
    return asked.returncode == 0


@pytest.mark.skipif(not _has_tex(), reason="needs TeX (Debian texlive-latex-recommended)")
def test_the_tables_compile(good: Path, poor: Path, tmp_path: Path) -> None:
    wanted = ["--columns", "last,avg,forgetting", "--published", "ucit"]
    assert main([str(good), str(poor), "--out", str(tmp_path), *wanted]) == 0
    paper = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
\noindent\input{compare.tex}
\end{document}
"""
    (tmp_path / "paper.tex").write_text(paper, "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_the_chosen_columns_and_the_mark(good: Path, poor: Path) -> None:
    """Three columns, names as in print, bold where the test says so and nowhere else."""
    found = compare([good, poor])
    columns = chosen_columns(found, "last,avg,forgetting")
    latex = tables.latex(found, tables.Choice(columns=columns))
    head, *rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert head.startswith(r"Method & $n$ & Last [\%] & Avg (MAP) [\%] & Forgetting [\%]")
    ours, theirs = rows
    assert ours.startswith("StrLoRA & 1 & $\\mathbf{")
    assert theirs.startswith("LoRA & 1 & $")
    assert "mathbf" not in theirs
    bold = [cell.count("mathbf") for cell in ours.split(" & ")[2:]]
    assert bold == [found.cell("strlora", c.key).best for c in columns]


def test_figures(good: Path, tmp_path: Path) -> None:
    assert main([str(good), "--out", str(tmp_path / "a")]) == 0
    assert main([str(good), "--out", str(tmp_path / "b")]) == 0
    for name in FIGURES:
        one, other = (tmp_path / folder / name for folder in "ab")
        assert one.read_bytes() == other.read_bytes(), "the same runs give the same figure"
    pdf = (tmp_path / "a" / "stream.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf
    svg = (tmp_path / "a" / "tasks.svg").read_text("utf-8")
    assert [f">{text}</text>" in svg for text in ("VQAv2", "OCRVQA", "StrLoRA")] == [True] * 3


def test_a_long_name_covers_no_curve(tmp_path: Path, stream: Path) -> None:
    runs = []
    for rank in (8, 16):
        recipe = {"method": "strlora", "tuner": {"rank": rank, "gate_scale": "num_experts"}}
        runs.append(write_run(tmp_path / f"r{rank}", stream, [0.5, 0.9], recipe=recipe))
    canvas = figures._stream(compare(runs), "std")
    canvas.draw_without_rendering()
    (legend,) = canvas.legends
    above, below = legend.get_window_extent(), canvas.axes[0].get_window_extent()
    assert "tuner.rank=16" in legend.get_texts()[1].get_text()
    assert above.y0 >= below.y1
    assert 0 <= above.x0 < above.x1 <= canvas.bbox.x1


def test_many_long_names_leave_the_axes_their_room(tmp_path: Path, stream: Path) -> None:
    runs = []
    for rank in range(8, 18):
        tuner = {"rank": rank, "gate_scale": "num_experts", "stability_weight": rank / 10}
        recipe = {"method": "strlora", "tuner": tuner}
        runs.append(write_run(tmp_path / f"r{rank}", stream, [0.5, 0.9], recipe=recipe))
    found = compare(runs)
    for canvas in (figures._stream(found, "std"), figures._tasks(found, "std")):
        canvas.draw_without_rendering()
        high = canvas.axes[0].get_window_extent().height / canvas.dpi
        assert high > 0.7, "inches"
        (legend,) = canvas.legends
        label = canvas.axes[0].yaxis.label.get_window_extent()
        assert 0 < label.height < label.y1 <= legend.get_window_extent().y0


def test_every_published_table_can_be_read_and_adds_up() -> None:
    """Means of a row are what the paper prints, up to rounding."""
    assert published.names() == ["coin", "continual-next", "mllm-dcl", "strcvit", "ucit"]
    for name in published.names():
        _, found = published.read_published(name)
        for table in found:
            assert table.score in SCORE
            assert table.source
            assert table.backbone
            for method, (*tasks, mean) in table.values.items():
                if tasks:
                    assert mean == pytest.approx(sum(tasks) / len(tasks), abs=0.02), (name, method)


def test_published_numbers_stand_beside_ours(good: Path, poor: Path, capsys: Any) -> None:
    assert main([str(good), str(poor), "--published", "ucit"]) == 0
    printed = capsys.readouterr().out
    last = compare([good, poor]).cell("lora", "last").value
    (row,) = (line for line in printed.splitlines() if re.match(r"LoRA +- +61\.24", line))
    assert row.split()[:4] == ["LoRA", "-", "61.24", f"{100 * last:.1f}"]
    assert row.endswith("RECAP, table 1, LLaVA-1.5-7B [R]")
    # Where papers differ, their range; what was not run here has a dash.
    (row,) = (line for line in printed.splitlines() if re.match(r"ModalPrompt +- +52\.53 to", line))
    assert row.split()[:6] == ["ModalPrompt", "-", "52.53", "to", "65.52", "-"]
    assert "[S]" in row
    text = tables.text(compare([good]), tables.Choice(published="mllm-dcl"))
    assert re.search(r"\nDCAG +- +69\.08 .*LLaVA-1\.5-7B", text), "two backbones are no range"
    assert re.search(r"\nDCAG +- +68\.40 .*InternVL-Chat", text)
    assert "not run here" in printed
    words = " ".join(printed.split())
    assert "RECAP, table 1: one task a chunk in this order; accuracy after the last task." in words
    assert "not run here (the stream here: fixture-stream)" in words
    assert main([str(good), "--published", "imagenet"]) == 2
    assert "there is coin, continual-next" in capsys.readouterr().err


def test_a_damaged_file_of_published_numbers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    table = "source: x, read: R, backbone: b, protocol: p, score: last, tasks: [A]"
    short = f"title: X\ntables: [{{{table}, values: {{M: [1]}}}}]\n"
    (tmp_path / "x.yaml").write_text(short, "utf-8")
    with pytest.raises(ValueError, match=r"M: found 1 values, expected 1 tasks and a mean"):
        published.read_published("x")
    (tmp_path / "x.yaml").write_text("title: X\ntables: [{source: x}]\n", "utf-8")
    with pytest.raises(ValueError, match="a table without backbone, protocol, read, score"):
        published.read_published("x")


def test_a_method_is_found_under_its_printed_name(tmp_path: Path, stream: Path) -> None:
    run = write_run(tmp_path / "er", stream, [0.5, 0.9], "er")
    assert "Replay (ER)" in tables.text(compare([run]))
    text = tables.text(compare([run]), tables.Choice(published="continual-next"))
    assert re.search(r"\nReplay +- +45\.38 +\d", text)
