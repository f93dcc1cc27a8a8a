"""DriveLM's six camera views as one picture: what AD's images are made of.

The layout is that of InternVL's Domain Adaptation data, whose folder images/drivelm/stitch StrCVIT
names for AD (internvl_chat/tools/images_stitching.py there; neither StrCVIT's page nor its code
says more): each view shrunk to 896 x 448, its camera's name in magenta in its upper left corner,
front views above and back views below, left to right; 2,688 x 896 pixels, JPEG, called
SCENE_FRAME.jpg.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from data_prep.errors import DataError, shown
from data_prep.files import read_json, write_blocks
from data_prep.parallel import ordered_map

FOLDER = "AD/images/drivelm/stitch"
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT",
           "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")  # fmt: skip
WIDTH, HEIGHT, COLUMNS = 896, 448, 3
_MAGENTA, _LETTERS = (255, 0, 255), 50
_SAMPLES = "samples/"  # where nuScenes keeps the pictures of its key frames


@dataclass(frozen=True)
class Frame:
    """One picture to make: its name, and its six views in the order of `CAMERAS`."""

    name: str
    views: tuple[Path, ...]


def read_frames(annotations: Path, nuscenes: Path) -> list[Frame]:
    """Return the key frames of a DriveLM file (v1_1_train_nus.json).

    Args:
        annotations: scene -> key_frames -> frame -> image_paths -> camera -> path.
        nuscenes: the folder that holds nuScenes' `samples`.

    Raises:
        DataError: the file has another form, or a view is not there.
    """
    scenes = _mapping(read_json(annotations), annotations, "scenes")
    frames = []
    for scene, content in scenes.items():
        keys = _mapping(content, annotations, scene, "key_frames")
        for frame, inner in keys.items():
            paths = _mapping(inner, annotations, f"{scene}, {frame}", "image_paths")
            absent = [camera for camera in CAMERAS if not isinstance(paths.get(camera), str)]
            if absent:
                raise DataError(
                    "drivelm", f"{annotations}: {scene}, {frame}: no path for {', '.join(absent)}"
                )
            # The file names them as ../nuscenes/samples/...: where that lies is the user's affair.
            below = (paths[camera].rpartition(_SAMPLES)[2] for camera in CAMERAS)
            views = tuple(nuscenes / _SAMPLES / path for path in below)
            frames.append(Frame(f"{scene}_{frame}", views))
    missing = [view for frame in frames for view in frame.views if not view.is_file()]
    if missing:
        raise DataError(
            "drivelm",
            f"{len(missing)} of {6 * len(frames)} views are not there, the first is {missing[0]}: "
            f"give as --views the folder of nuScenes that holds {_SAMPLES}CAM_FRONT",
        )
    return frames


def _mapping(value: object, path: Path, where: str, key: str = "") -> Mapping[str, Any]:
    content = value.get(key) if key and isinstance(value, dict) else value
    if not isinstance(content, dict):
        raise DataError(
            "drivelm",
            f"{path}: {where}: expected an object{f' in {key!r}' if key else ''}, found "
            f"{shown(content)}; give DriveLM's own file, such as v1_1_train_nus.json",
        )
    return content


def stitch(frames: Iterable[Frame], images: Path, workers: int) -> Iterator[str]:
    """Make the pictures that are not there yet below the image root; yield each name.

    Raises:
        DataError: a view cannot be read.
    """
    folder = images / FOLDER
    yield from ordered_map(partial(_write, folder), frames, workers)


def _write(folder: Path, frame: Frame) -> str:
    target = folder / f"{frame.name}.jpg"
    if not target.is_file():
        # By way of memory: a kill leaves no half picture, which the next run would take for made.
        data = BytesIO()
        stitched(frame.views).save(data, "JPEG")
        write_blocks(target, [data.getvalue()])
    return frame.name


def stitched(views: Iterable[Path]) -> Image.Image:
    """Return one picture of six views, in the order of `CAMERAS`; DataError if one is broken."""
    whole = Image.new("RGB", (COLUMNS * WIDTH, 2 * HEIGHT))
    # matplotlib brings this font; what a machine has installed differs.
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"), _LETTERS
    )
    for number, (camera, path) in enumerate(zip(CAMERAS, views, strict=True)):
        try:
            with Image.open(path) as picture:
                view = picture.convert("RGB").resize((WIDTH, HEIGHT))
        except OSError as error:
            raise DataError("drivelm", f"{path}: {error}; fetch this file again") from error
        ImageDraw.Draw(view).text((0, 0), camera, fill=_MAGENTA, font=font)
        row, column = divmod(number, COLUMNS)
        whole.paste(view, (column * WIDTH, row * HEIGHT))
    return whole
