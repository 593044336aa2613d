"""Reads the layout of the NeRF synthetic scenes: one transforms_{train,val,test}.json per split.

Source of the layout: "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis", ECCV 2020.
"""

from __future__ import annotations

import os
from pathlib import Path

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.capture import Capture, Shot
from eugen_nerf.scenes.image_files import ImageFinder
from eugen_nerf.scenes.transforms import read_frames, read_listed_points
from eugen_nerf.scenes.validate import read_json_object

SPLITS = ("train", "val", "test")


def split_file(root: Path, split: str) -> Path:
    """The file that lists the frames of a split."""
    return root / f"transforms_{split}.json"


def read_blender(root: Path) -> Capture:
    """Read every split file present. Frames keep the order of the files, in which test views form a path.

    Args:
        root: the scene's folder.

    Raises:
        SceneError: there is no split file, or one is malformed. The message names the file, the frame and the key.
    """
    finder = ImageFinder()
    shots: list[Shot] = []
    splits = {}
    points, colors = None, None
    warnings: tuple[str, ...] = ()
    for split in SPLITS:
        path = split_file(root, split)
        if not os.path.isfile(path):
            continue
        meta = read_json_object(path)
        frames = read_frames(path, meta, finder)
        if points is None:
            points, colors, remarks = read_listed_points(path, meta)
            warnings += remarks
        splits[split] = tuple(range(len(shots), len(shots) + len(frames)))
        shots.extend(frames)
    if not splits:
        raise SceneError(f"{root}: none of {', '.join(split_file(root, s).name for s in SPLITS)} exists")
    return Capture("blender", root, tuple(shots), splits, points=points, colors=colors, warnings=warnings)
