"""Cameras that circle a scene."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


def orbit_cameras(cameras: Cameras, count: int, size: int, elevation: float = 30.0) -> Cameras:
    """Cameras on a horizontal circle, looking at the origin, where bounded scenes have their object.

    Args:
        cameras: cameras of the scene, whose mean distance and field of view are used.
        count: number of cameras, once around.
        size: side of their square images, pixels.
        elevation: height above the horizon, degrees.
    """
    distance = cameras.camera_to_worlds[:, :3, 3].norm(dim=-1).mean()
    sides = torch.minimum(cameras.width, cameras.height)
    focal = (cameras.fx / sides).mean() * size
    height = torch.deg2rad(torch.tensor(elevation))
    around = torch.arange(count) * (2 * torch.pi / count)
    directions = torch.stack(
        [around.cos() * height.cos(), around.sin() * height.cos(), height.sin().expand(count)], dim=-1
    )
    poses = torch.stack([look_at_origin(distance * direction) for direction in directions])
    return Cameras(poses, float(focal), float(focal), size / 2, size / 2, width=size, height=size)


def look_at_origin(position: Tensor) -> Tensor:
    """Camera-to-world [3, 4] with OpenGL axes (x right, y up, z back) of a camera at [3]; the world's z is up."""
    back = position / position.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back)
    right = right / right.norm()
    return torch.stack([right, torch.linalg.cross(back, right), back, position], dim=-1)
