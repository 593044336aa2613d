"""Normalize a capture's arbitrary world for a radiance field: upright, centered, of unit size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Orientation = Literal["up", "none"]
Center = Literal["focus", "poses", "none"]

# Cosine of 60 degrees: a capture is not forward-facing if a view deviates from the mean direction by more than this.
FORWARD_COSINE = 0.5
# Mean squared sine between viewing directions (2 degrees). Below it, noise dominates the position of the common point.
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class SimilarityTransform:
    """The similarity x' = scale * (transform x); transform [3, 4] is a rotation and a translation."""

    transform: np.ndarray
    scale: float

    def poses(self, poses: np.ndarray) -> np.ndarray:
        """Camera-to-world matrices [..., 3, 4] in the new world."""
        rotation = self.transform[:, :3] @ poses[..., :3]
        return np.concatenate([rotation, self.points(poses[..., 3])[..., None]], axis=-1)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] in the new world."""
        return self.scale * (points @ self.transform[:, :3].T + self.transform[:, 3])

    def after(self, first: SimilarityTransform) -> SimilarityTransform:
        """The composition: `first`, then this one."""
        rotation, translation = self.transform[:, :3], self.transform[:, 3:]
        moved = rotation @ first.transform[:, 3:] + translation / first.scale
        return SimilarityTransform(
            np.concatenate([rotation @ first.transform[:, :3], moved], axis=1), self.scale * first.scale
        )


def normalize(
    poses: np.ndarray,
    *,
    orientation: Orientation = "up",
    center: Center = "focus",
    near_depth: float | None = None,
) -> SimilarityTransform:
    """Choose the world in which the cameras fit into the cube [-1, 1]^3.

    Args:
        poses: [N, 3, 4] camera-to-world, OpenGL axes.
        orientation: "up" turns the photographer's up to +z; "none" keeps the axes.
        center: the new origin: "focus", the point the cameras look at (or the mean camera position if they have no
            common point); "poses", the mean camera position; "none", the origin of the file.
        near_depth: depth of the nearest content in the file's units, if known. Used for forward-facing cameras around
            the origin, which then see this content at a distance of 1, where the contraction of mip-NeRF 360 (CVPR
            2022, eq. 10) begins, or less if the cameras are farther apart than this depth.

    Returns:
        The change of world.
    """
    origins = poses[:, :, 3]
    point = np.zeros(3)
    around_cameras = center == "poses"
    if center == "focus":
        focus = focus_point(poses)
        around_cameras = focus is None
        point = np.zeros(3) if focus is None else focus
    if around_cameras:
        point = origins.mean(axis=0)
    rotation = _upright(poses) if orientation == "up" else np.eye(3)
    change = SimilarityTransform(np.concatenate([rotation, -(rotation @ point)[:, None]], axis=1), 1.0)
    reach = float(np.abs(change.points(origins)).max())
    if near_depth is not None and around_cameras and faces_forward(poses):
        # The baseline is usually much shorter than the distance to the scene, but the cameras must stay in the cube.
        reach = max(reach, near_depth)
    # A panorama from a single position has no extent.
    return SimilarityTransform(change.transform, 1.0 / reach if reach > 1e-9 else 1.0)


def faces_forward(poses: np.ndarray) -> bool:
    """Whether all cameras [N, 3, 4] look in roughly the same direction, as in the LLFF scenes."""
    directions = -poses[:, :, 2]
    mean = directions.mean(axis=0)
    length = float(np.linalg.norm(mean))
    return length > 1e-6 and bool((directions @ mean / length > FORWARD_COSINE).all())


def focus_point(poses: np.ndarray) -> np.ndarray | None:
    """The point closest to the optical axes of the cameras that have it in front of them.

    Args:
        poses: [N, 3, 4] camera-to-world, OpenGL axes.

    Returns:
        [3], or None if the axes are nearly parallel or if fewer than half of the cameras look toward it.
    """
    origins, directions = poses[:, :, 3], -poses[:, :, 2]
    # Relative to the mean camera position, so that geographic coordinates lose no digits.
    middle = origins.mean(axis=0)
    origins = origins - middle
    facing = np.ones(len(poses), dtype=bool)
    for _ in range(10):
        matrix, right = axes_equations(origins[facing], directions[facing])
        if np.linalg.eigvalsh(matrix)[0] < LEAST_SPREAD:
            return None
        point = np.linalg.solve(matrix, right)
        now = ((point - origins) * directions).sum(axis=1) > 0
        if 2 * now.sum() < len(poses):
            return None
        if (now == facing).all():
            return point + middle
        facing = now
    return None


def axes_equations(origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The equations matrix x = right for the point x closest to the axes in the least-squares sense.

    Args:
        origins: [N, 3] a point on each axis.
        directions: [N, 3] unit vectors along the axes.

    Returns:
        matrix [3, 3], singular if the axes are parallel, and right [3], both means over the axes.
    """
    # Projectors onto the planes orthogonal to each axis: |P (x - o)| is the distance of x from the axis.
    projectors = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    return projectors.mean(axis=0), np.einsum("nij,nj->i", projectors, origins) / len(origins)


def near_depth_of_points(poses: np.ndarray, points: np.ndarray) -> float | None:
    """Depth beyond which 99% of the sparse points [P, 3] in front of the cameras [N, 3, 4] lie."""
    # A thousand of each suffice for a percentile and keep large models fast.
    poses, points = (x[:: max(1, len(x) // 1000)] for x in (poses, points))
    depths = np.einsum("npj,nj->np", points[None] - poses[:, None, :, 3], -poses[:, :, 2])
    depths = depths[depths > 1e-9]
    return float(np.percentile(depths, 1)) if depths.size else None


def _upright(poses: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] that takes the up direction of the photos to +z."""
    mean_up = poses[:, :, 1].mean(axis=0)
    length = float(np.linalg.norm(mean_up))
    # The mean of the photos' up directions is tilted if the cameras look down from one side only. Since people hold
    # cameras level, the vertical is the direction orthogonal to all image rows.
    vertical, doubt = _common_normal(poses[:, :, 0])
    along_mean = float(vertical @ mean_up)
    # Phones store portrait photos rotated by 90 degrees, so that rows and columns swap roles. The photos alone then do
    # not distinguish up from down; the sign assumes that cameras look down on the object they circle.
    sideways, sideways_doubt = _common_normal(poses[:, :, 1])
    looking = float(-(poses[:, :, 2] @ sideways).mean())
    if sideways_doubt < 0.1 and sideways_doubt < 0.2 * doubt and abs(looking) > 0.1:
        return _rotation_to_z(-np.sign(looking) * sideways)
    if doubt < 0.3 and abs(along_mean) > 0.5 * length and length > 1e-6:
        return _rotation_to_z(np.sign(along_mean) * vertical)
    return _rotation_to_z(mean_up / length) if length > 1e-6 else np.eye(3)


def _common_normal(axes: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit vector [3] most orthogonal to the unit vectors [N, 3], and its uncertainty in [0, 1].

    The uncertainty is the ratio of the vectors' spread along their common normal to that along the next direction. It
    is 1 if the vectors are nearly parallel, since every normal of theirs is then equally good.
    """
    values, vectors = np.linalg.eigh(axes.T @ axes / len(axes))
    if values[1] < 0.03:
        return vectors[:, 0], 1.0
    return vectors[:, 0], float(max(values[0], 0.0) / values[1])


def _rotation_to_z(direction: np.ndarray) -> np.ndarray:
    """The smallest rotation [3, 3] that takes a unit vector to +z."""
    x, y, z = direction
    if z < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    # Rodrigues' formula for the axis direction x e_z; the components already contain sine and cosine.
    cross = np.array([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])
    return np.eye(3) + cross + cross @ cross / (1.0 + z)
