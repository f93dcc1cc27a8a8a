"""data_prep.check --fix: a clean copy, the source as it was."""

from __future__ import annotations

import json

from data_prep.chunk.__main__ import main as chunk
from data_prep.files import sha256_file
from data_prep.stream import open_stream
from tests.data_prep.check.test_check import WHOLE, damage, found, run, sample, stream
from tests.data_prep.trees import picture


def test_fix_writes_a_clean_copy_and_leaves_the_source_alone(tmp_path, capsys):
    folder = tmp_path / "s"
    for number, name in enumerate(("a", "b", "t", "unused")):
        picture(folder / f"images/{name}.png", number)
    (folder / "images/bad.jpg").write_bytes(WHOLE[:300])
    train = [
        sample("1", "images/a.png"),
        sample("2", "images/bad.jpg"),
        sample("3", "images/none.png"),
        sample("4", "images/b.png"),
        sample("5", "images/t.png"),
    ]
    stream(folder, train, [sample("t", "images/t.png")])
    with (folder / "chunks/001.jsonl").open("a") as file:
        file.write("{broken\n")
    facts = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    out = tmp_path / "clean"
    assert run(folder, "--fix", str(out))[0] == 0
    assert "4 samples left out" in capsys.readouterr().out
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == facts
    assert [json.loads(r)["id"] for r in (out / "chunks/001.jsonl").read_text().splitlines()] == [
        "1",
        "4",
    ]
    left = [json.loads(row) for row in (out / "left_out.jsonl").read_text().splitlines()]
    assert [(row["code"], row["where"].rsplit(":", 1)[1]) for row in left] == [
        ("json", "6"),
        ("image-truncated", "2"),
        ("image-missing", "3"),
        ("leak-image", "5"),
    ]
    assert sorted(p.name for p in (out / "images").iterdir()) == ["a.png", "b.png", "t.png"]
    code, content = run(out)
    assert (code, content["problems"]) == (0, [])
    assert open_stream(out).tasks == ["t"]
    assert run(folder, "--fix", str(out))[0] == 0  # again: nothing to do, nothing changed
    assert run(folder, "--fix", str(folder / "inside"))[0] == 2


def test_a_stream_of_chunk_with_bad_images_can_be_fixed(tmp_path):
    picture(tmp_path / "data/a.png")
    rows = [{"image": f"{name}.png", "question": f"{name}?", "answer": "x"} for name in "ab"]
    (tmp_path / "data/d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "s"
    chunk(["--source", str(tmp_path / "data/d.jsonl"), "--out", str(folder), "--workers", "1"])
    assert found(run(folder)[1]) == ["image-missing"]
    run(folder, "--fix")
    out = tmp_path / "s.clean"
    assert (out / "images").is_symlink()
    assert run(out)[0] == 0


def test_validation_sets_are_checked_and_kept_by_fix(tmp_path):
    folder = stream(tmp_path / "s", [sample("a"), sample("b")], [sample("c", question="Else?")])
    rows = [sample("v", question="More?"), sample("w", question="What is in picture b?")]
    path = folder / "validation/t.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"file": "validation/t.jsonl", "samples": 2, "sha256": sha256_file(path)}
    damage(folder, lambda manifest: manifest["tasks"]["t"].update(validation=entry))
    code, content = run(folder, "--fix", str(tmp_path / "clean"))
    assert (code, found(content)) == (0, ["leak-sample"])
    manifest = json.loads((tmp_path / "clean/stream.json").read_text())
    assert manifest["tasks"]["t"]["validation"]["samples"] == 2
    assert manifest["chunks"][0]["samples"] == 1
    assert run(tmp_path / "clean")[0] == 0
