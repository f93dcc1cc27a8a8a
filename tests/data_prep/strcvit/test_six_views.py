"""AD's pictures from DriveLM's raw views: the layout by places and colours, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.published.benchmarks import STRCVIT
from data_prep.published.checklist import missing_folders
from data_prep.strcvit.__main__ import main

COLOURS = {  # as one sees them in the picture, row by row
    "CAM_FRONT_LEFT": (200, 30, 30), "CAM_FRONT": (30, 200, 30), "CAM_FRONT_RIGHT": (30, 30, 200),
    "CAM_BACK_LEFT": (200, 200, 30), "CAM_BACK": (30, 200, 200), "CAM_BACK_RIGHT": (90, 90, 90),
}  # fmt: skip


def drivelm(folder: Path) -> list[str]:
    """Two frames of one scene as DriveLM and nuScenes store them; returns the command's words."""
    frames = {}
    for frame in ("f1", "f2"):
        paths = {}
        for camera in sorted(COLOURS):  # another order than the picture's
            name = f"n015-2018__{camera}__{frame}.jpg"
            view = folder / "nuscenes/samples" / camera / name
            view.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1600, 900), COLOURS[camera]).save(view, quality=95)
            paths[camera] = f"../nuscenes/samples/{camera}/{name}"
        frames[frame] = {"QA": {}, "image_paths": paths}
    content = {"scene7": {"scene_description": "", "key_frames": frames}}
    (folder / "v1_1_train_nus.json").write_text(json.dumps(content), encoding="utf-8")
    words = ["--stitch", "v1_1_train_nus.json", "--views", "nuscenes", "--images", "images"]
    return [*words, "--workers", "1"]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return drivelm(tmp_path)


def test_front_views_stand_above_back_views(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    folder = tmp_path / "images/AD/images/drivelm/stitch"
    assert sorted(path.name for path in folder.iterdir()) == ["scene7_f1.jpg", "scene7_f2.jpg"]
    assert not missing_folders(tmp_path / "images", STRCVIT["AD"])
    pixels = np.asarray(Image.open(folder / "scene7_f1.jpg")).astype(int)
    assert pixels.shape == (896, 2688, 3)
    magenta = (np.abs(pixels - (255, 0, 255)) < 60).all(-1)
    for number, colour in enumerate(COLOURS.values()):
        top, left = 448 * (number // 3), 896 * (number % 3)
        view = pixels[top + 70 : top + 440, left + 10 : left + 886]
        assert np.abs(view - colour).max() < 12, number
        assert magenta[top : top + 60, left : left + 600].sum() > 500, number  # the camera's name
    assert magenta.sum() < 6 * 10_000


def test_a_second_run_makes_only_what_is_missing(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    first, second = sorted((tmp_path / "images/AD/images/drivelm/stitch").iterdir())
    kept, made = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert main(words) == 0
    assert (first.stat().st_mtime_ns, second.read_bytes()) == (kept, made)


def test_what_is_wrong_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = next((tmp_path / "nuscenes/samples/CAM_BACK").glob("*f2.jpg"))
    view.write_bytes(view.read_bytes()[:300])
    assert main(words) == 1
    assert "CAM_BACK__f2.jpg: " in capsys.readouterr().err
    view.unlink()
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "1 of 12 views are not there, the first is nuscenes/samples/CAM_BACK/n015" in told
    content = json.loads((tmp_path / "v1_1_train_nus.json").read_text(encoding="utf-8"))
    del content["scene7"]["key_frames"]["f1"]["image_paths"]["CAM_FRONT"]
    (tmp_path / "v1_1_train_nus.json").write_text(json.dumps(content), encoding="utf-8")
    assert main(words) == 1
    assert "scene7, f1: no path for CAM_FRONT" in capsys.readouterr().err
    (tmp_path / "v1_1_train_nus.json").write_text('[{"id": 1}]', encoding="utf-8")
    assert main(words) == 1
    assert "v1_1_train_nus.json: scenes: expected an object" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(words[:4])
