"""The result of a layout's reader: photos and cameras exactly as the files state them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from eugen_nerf.scenes.normalize import SimilarityTransform

CameraModel = Literal["pinhole", "opencv", "opencv_fisheye"]
Split = Literal["train", "val", "test"]
Distortion = tuple[float, float, float, float, float, float]
NO_DISTORTION: Distortion = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Intrinsics:
    """A camera as a file states it: in pixels, or as a field of view if the file gives no size.

    None marks values that the file does not state: the size is then the image's, the principal point is its center, and
    the focal length follows from `angle_x` (radians across the width).
    """

    model: CameraModel = "pinhole"
    distortion: Distortion = NO_DISTORTION
    width: int | None = None
    height: int | None = None
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    angle_x: float | None = None
    angle_y: float | None = None

    def stated_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) that the pixel values refer to; `image_size` if the file states none."""
        if self.width is None or self.height is None:
            return image_size
        return self.width, self.height

    def pixels(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """(fx, fy, cx, cy) in pixels of an image of `size` = (width, height) at the stated resolution."""
        width, height = size
        fx = self.fx if self.fx is not None else _focal(self.angle_x, width)
        fy = self.fy if self.fy is not None else _focal(self.angle_y, height)
        # Pixels are square unless the file states otherwise, so one focal length applies to both axes.
        fx, fy = fx if fx is not None else fy, fy if fy is not None else fx
        if fx is None or fy is None:
            raise ValueError("intrinsics need a focal length or a field of view")
        cx = self.cx if self.cx is not None else width / 2
        cy = self.cy if self.cy is not None else height / 2
        return fx, fy, cx, cy


def _focal(angle: float | None, extent: int) -> float | None:
    return None if angle is None else 0.5 * extent / math.tan(0.5 * angle)


@dataclass(frozen=True)
class Shot:
    """One listed photo.

    Attributes:
        name: its name in messages, e.g. "train/r_3".
        source: the file that lists it.
        listed: the path as that file states it.
        image_path: the image found for it; None if there is none.
        camera_to_world: [3, 4] float64, OpenGL axes, in the file's world.
        intrinsics: the camera.
        mask_path: the mask listed for it.
        reduced: downscaled copies of the image by their integer factor, e.g. {4: root/images_4/0001.png}.
    """

    name: str
    source: Path
    listed: str
    image_path: Path | None
    camera_to_world: np.ndarray
    intrinsics: Intrinsics
    mask_path: Path | None = None
    reduced: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Capture:
    """Everything a layout's files state about a scene, before images are checked and the world is normalized.

    Attributes:
        layout: "blender", "transforms", "colmap" or "llff".
        root: the scene's folder.
        shots: every listed photo, of all splits.
        splits: indices into `shots` if the files define splits; None: every n-th photo is held out.
        bounds: nearest and farthest depth of the content in the file's units, if the files state it.
        points: [P, 3] float64 sparse points in the file's world, `colors`: [P, 3] uint8.
        applied: the change from the world before the file was written to the file's, if the file states it.
        warnings: readable warnings.
    """

    layout: str
    root: Path
    shots: tuple[Shot, ...]
    splits: Mapping[str, tuple[int, ...]] | None = None
    bounds: tuple[float, float] | None = None
    points: np.ndarray | None = None
    colors: np.ndarray | None = None
    applied: SimilarityTransform | None = None
    warnings: tuple[str, ...] = ()
