"""Names of deliveries that no manifest can hold, or that are too long: rejected, and no wedge."""

from __future__ import annotations

import os
import shutil

import pytest

from recipes.watch.inbox import LONGEST
from tests.recipes.watch.test_watch import deliver, look, names, reasons

BROKEN = "caf\udce9"  # what Python makes of the byte E9, é in Latin-1


def test_names_that_no_manifest_can_hold_are_rejected(shop):
    inbox = shop.parent / "inbox"
    deliver(shop, 2, f"{BROKEN}.csv")
    (inbox / "folder").mkdir()
    shutil.move(deliver(shop, 3), inbox / "folder")
    (inbox / "folder" / f"{BROKEN}.png").write_bytes(b"")
    deliver(shop, 4, "z.csv")
    out = look(shop)
    assert names(inbox) == ["accepted", "rejected"]
    assert names(inbox / "accepted") == ["z.csv"]
    assert r"the name 'caf\udce9.csv' is not UTF-8; rename it" in reasons(shop, f"{BROKEN}.csv")
    assert r"the name 'caf\udce9.png' is not UTF-8; rename it" in reasons(shop, "folder")
    assert r"caf\udce9.csv: rejected, the name 'caf\udce9.csv' is not UTF-8" in out


def test_one_that_an_earlier_version_accepted_is_rejected(shop):
    inbox = shop.parent / "inbox"
    (inbox / "accepted").mkdir()
    shutil.move(deliver(shop, 2), inbox / "accepted" / f"{BROKEN}.csv")
    long = "Ä" * 120 + ".csv"  # 244 bytes, with .reasons.txt more than a file system takes
    (inbox / "accepted" / long).write_text("question,answer,day\nWhy?,,2026-02-01\n")
    look(shop)
    assert names(inbox / "accepted") == []
    cut = "Ä" * 100  # 200 bytes
    assert cut in names(inbox / "rejected")
    assert f"{inbox}/rejected/{cut}:2: " in reasons(shop, cut)
    assert "is not UTF-8" in reasons(shop, f"{BROKEN}.csv")


@pytest.mark.parametrize("length", [LONGEST + 1, 255])
def test_names_that_are_too_long_are_rejected_under_a_shorter_one(shop, length):
    deliver(shop, 2, "a" * (length - 4) + ".csv")
    deliver(shop, 3, "b" * (LONGEST - 4) + ".csv")
    look(shop)
    (kept,) = names(shop.parent / "inbox/accepted")
    assert len(os.fsencode(kept)) == LONGEST
    expected = f"a name of {length} bytes, expected at most 200: rename it\n"
    assert reasons(shop, ("a" * (length - 4) + ".csv")[:LONGEST]) == expected
