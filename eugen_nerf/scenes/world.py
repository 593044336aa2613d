"""The world in which a capture is returned, and the range of its rays there."""

from __future__ import annotations

import math

import numpy as np

from eugen_nerf.scenes.capture import Capture, Shot
from eugen_nerf.scenes.normalize import (
    Center,
    Orientation,
    SimilarityTransform,
    faces_forward,
    near_depth_of_points,
    normalize,
)

# Smallest near limit of rays, in units of the returned world: nothing is photographed from closer.
LEAST_DISTANCE = 0.05
UNBOUNDED_FAR = 1000.0
# In units of half the box's side: beyond it, float32 cannot distinguish the front of the box from its back.
BOUNDED_FAR = 1e6


def change_world(
    capture: Capture,
    poses: np.ndarray,
    bounded: bool,
    orientation: Orientation | None,
    center: Center | None,
) -> SimilarityTransform:
    """The change of world for all splits of a capture.

    Args:
        capture: what the files state.
        poses: [N, 3, 4] of all frames that have an image.
        bounded: whether everything is inside the scene box.
        orientation, center: as in `normalize`; None uses the layout's default, see `load_scene`.
    """
    blender = capture.layout == "blender"
    forward = not bounded and faces_forward(poses)
    near_depth = None
    if forward and capture.bounds is not None:
        near_depth = capture.bounds[0]
    elif forward and capture.points is not None:
        near_depth = near_depth_of_points(poses, capture.points)
    if center is None:
        center = "none" if blender else "poses" if forward and capture.layout == "llff" else "focus"
    if orientation is None:
        orientation = "none" if blender else "up"
    change = normalize(poses, orientation=orientation, center=center, near_depth=near_depth)
    # A bounded Blender scene already uses the units of its box.
    return SimilarityTransform(change.transform, 1.0) if blender and bounded else change


def unbounded_range(capture: Capture, change: SimilarityTransform) -> tuple[float, float]:
    """Smallest and largest distance along rays in the returned world, for a capture with a background."""
    if capture.bounds is None:
        return LEAST_DISTANCE, UNBOUNDED_FAR
    near, far = (depth * change.scale for depth in capture.bounds)
    # Bounds are depths along the optical axis; a ray through a corner travels farther to the same depth. The margins
    # compensate for the fact that bounds are percentiles of sparse points.
    return 0.9 * near, 1.1 * far * max(_corner_stretch(shot) for shot in capture.shots)


def bounded_range(half_side: float) -> tuple[float, float]:
    """Smallest and largest distance along rays to the cube [-half_side, half_side]^3, for any camera position.

    Rays of a bounded scene are clipped to its box. Limits taken from the photos' cameras would cut off parts of the box
    for new views that are closer to it or farther away.
    """
    return LEAST_DISTANCE * min(1.0, half_side), BOUNDED_FAR * half_side


def remark_on_astray_cameras(poses: np.ndarray, half_side: float) -> list[str]:
    """A warning if most cameras [N, 3, 4] look past the scene box, which then does not contain what they see."""
    astray = int((~looks_into_box(poses, half_side)).sum())
    if 2 * astray <= len(poses):
        return []
    return [
        f"{astray} of {len(poses)} cameras do not look into the scene box, a cube of half side {half_side:g} "
        "around the origin; set a larger scene scale, or treat the scene as unbounded"
    ]


def looks_into_box(poses: np.ndarray, half_side: float) -> np.ndarray:
    """[N] bool: whether each camera's optical axis meets the cube [-half_side, half_side]^3."""
    origins, directions = poses[:, :, 3], -poses[:, :, 2]
    # Slab test; the small offset avoids dividing zero by zero for directions along an axis.
    inverse = 1.0 / np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    first, second = (-half_side - origins) * inverse, (half_side - origins) * inverse
    enter = np.minimum(first, second).max(axis=1)
    leave = np.maximum(first, second).min(axis=1)
    return leave >= np.maximum(enter, 0.0)


def _corner_stretch(shot: Shot) -> float:
    width, height = shot.intrinsics.stated_size((0, 0))
    fx, fy, _, _ = shot.intrinsics.pixels((width, height))
    return math.hypot(1.0, 0.5 * width / fx, 0.5 * height / fy)
