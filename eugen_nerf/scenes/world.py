"""The world a capture is returned in, and the range of its rays there."""

from __future__ import annotations

import math

import numpy as np

from eugen_nerf.scenes.capture import Capture, Shot
from eugen_nerf.scenes.normalise import (
    LEAST_DISTANCE,
    Centre,
    Orientation,
    WorldChange,
    faces_forward,
    near_depth_of_points,
    normalise,
)

UNBOUNDED_FAR = 1000.0


def change_world(
    capture: Capture,
    poses: np.ndarray,
    bounded: bool,
    orientation: Orientation | None,
    centre: Centre | None,
) -> WorldChange:
    blender = capture.layout == "blender"
    forward = not bounded and faces_forward(poses)
    near_depth = None
    if forward and capture.bounds is not None:
        near_depth = capture.bounds[0]
    elif forward and capture.points is not None:
        near_depth = near_depth_of_points(poses, capture.points)
    if centre is None:
        centre = "none" if blender else "poses" if forward and capture.layout == "llff" else "focus"
    if orientation is None:
        orientation = "none" if blender else "up"
    change = normalise(poses, orientation=orientation, centre=centre, near_depth=near_depth)
    # A bounded Blender scene is measured in units of its box already.
    return WorldChange(change.transform, 1.0) if blender and bounded else change


def unbounded_range(capture: Capture, change: WorldChange) -> tuple[float, float]:
    """Range along rays; the margins make up for bounds that are percentiles of sparse points."""
    if capture.bounds is None:
        return LEAST_DISTANCE, UNBOUNDED_FAR
    near, far = (depth * change.scale for depth in capture.bounds)
    # Bounds are depths along the optical axis; a ray through a corner travels farther to the same depth.
    return 0.9 * near, 1.1 * far * max(_corner_stretch(shot) for shot in capture.shots)


def _corner_stretch(shot: Shot) -> float:
    width, height = shot.intrinsics.stated_size((0, 0))
    fx, fy, _, _ = shot.intrinsics.pixels((width, height))
    return math.hypot(1.0, 0.5 * width / fx, 0.5 * height / fy)


