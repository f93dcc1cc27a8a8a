"""docs/own_data.md: its commands, as they stand, from a table to a served and exported model."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import REPO
from tests.recipes.real_host import needs_host

pytestmark = [pytest.mark.slow, needs_host]


def copy_checkout(target: Path) -> None:
    """Copies what git would hand to a fresh clone, uncommitted changes included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=REPO, check=True, capture_output=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (REPO / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target / name)


def test_the_page_s_commands_lead_to_answers(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    clone = tmp_path / "clone"
    copy_checkout(clone)
    page = (clone / "docs" / "own_data.md").read_text("utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M)
    assert len(blocks) == 8
    script = tmp_path / "page.sh"
    timed = (f"echo '## {i}' $SECONDS\n{block}" for i, block in enumerate(blocks, start=1))
    script.write_text("set -e\n" + "".join(timed) + "echo '## end' $SECONDS\n", encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", str(script)],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]

    with (clone / "runs" / "shop" / "matrix.csv").open(encoding="utf-8") as file:
        scores = {(row["chunk"], row["task"]): float(row["score"]) for row in csv.DictReader(file)}
    months = [f"shop.2026-0{month}" for month in (1, 2, 3)]
    assert [task for chunk, task in scores if chunk == "3"] == months
    assert ("1", "shop.2026-03") not in scores  # it came later; the base model answers it
    assert scores["0", "shop.2026-03"] < 0.5 < scores["3", "shop.2026-03"]
    left_out = (clone / "data" / "shop" / "left_out.jsonl").read_text("utf-8").splitlines()
    assert len(left_out) == 1
    spoken = done.stdout.splitlines()
    assert {"blue", "yellow"} <= set(spoken)  # the photos that are asked about, by ask and serve
    assert (clone / "data" / "shop-model" / "adapter_config.json").is_file()
    report = (clone / "runs" / "shop" / "report.html").read_text("utf-8")
    assert "2026-03" in report
