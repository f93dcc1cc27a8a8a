"""Where a lead holds, stream by stream, against values worked by hand."""

# ruff: noqa: RUF001

from __future__ import annotations

from pathlib import Path

from eval.study import across_streams, tables
from eval.study.documents import studies
from tests.eval.study.test_study import keep

SLOW = "slow_weights={}"


def both(folder: Path, *leads: int) -> None:
    """Runs of both methods on as many streams, one `lead` points above the other everywhere."""
    for seed, lead in enumerate(leads):
        keep(folder, "strlora_signed", seed, [(0, 0), *[(50 + lead, 50 + lead)] * 3])
        keep(folder, "lora", seed, [(0, 0), *[(50, 50)] * 3], settings=SLOW)


def test_every_stream_that_both_ran_on_has_a_row(tmp_path: Path) -> None:
    both(tmp_path / "tiny-study", 4, 8)
    both(tmp_path / "unheard", 1, 11)
    both(tmp_path / "long", 7)
    both(tmp_path / "tiny_avx2", 30, 31)  # another configuration is no stream
    keep(tmp_path / "mini-study", "strlora_signed", 0, [(0, 0), *[(50, 50)] * 3])
    keep(tmp_path / "mini-study", "lora", 1, [(0, 0), *[(50, 50)] * 3], settings=SLOW)
    # 4 and 8: mean 6, sd sqrt(8); 12.706 sqrt(8 / 2) = 25.4; t = 3, p = 1 - 2 arctan(3) / pi =
    # 0.205. 1 and 11: mean 6, sd sqrt(50), 63.5; t = 1.2, p = 0.442. Holm: 2 x 0.205, and 0.442.
    first, second = "+6.0 | −19.4 to +31.4 | 0.410", "+6.0 | −57.5 to +69.5 | 0.442"
    lines = across_streams.table(studies(tmp_path)).splitlines()
    alone = "+7.0 | n = 1: no interval | –"
    assert lines[2] == f"| `long` | 100 chunks of the `mini` kind | 1 | {alone} | {alone} |"
    assert sorted(lines[3:5]) == [
        f"| `tiny-study` | 8 chunks, 6 tasks, mixed | 2 | {first} | {first} |",
        f"| `unheard` |  | 2 | {second} | {second} |",
    ]
    assert len(lines) == 7
    assert "p corrected over 2 streams (Holm)" in lines[-1], "one of the three has one pair alone"


def test_without_a_shared_stream_there_is_no_table(tmp_path: Path) -> None:
    keep(tmp_path / "tiny", "strlora_signed", 0, [(0, 0), *[(50, 50)] * 3])
    assert across_streams.table(studies(tmp_path)) == tables.NOTHING
