"""The camera that circles the scene."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras

from eugen_nerf.bench.orbit import look_at_origin, orbit_cameras


def photos() -> Cameras:
    poses = torch.stack([look_at_origin(torch.tensor(p)) for p in ([4.0, 0.0, 0.5], [0.0, 3.0, 1.0])])
    return Cameras(poses, 100.0, 100.0, 40.0, 30.0, width=80, height=60)


def test_the_orbit_looks_at_the_origin_from_all_sides() -> None:
    cameras = orbit_cameras(photos(), 8, 120)
    poses = cameras.camera_to_worlds
    positions, rotation = poses[:, :3, 3], poses[:, :3, :3]
    expected = photos().camera_to_worlds[:, :3, 3].norm(dim=-1).mean()
    torch.testing.assert_close(positions.norm(dim=-1), expected.expand(8))
    torch.testing.assert_close(positions[:, 2], (0.5 * expected).expand(8))  # elevation 30 degrees
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(8, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(8))
    torch.testing.assert_close(rotation[:, :, 2] * expected, positions)  # the back axis points away from the origin
    assert bool((rotation[:, 2, 1] > 0).all())  # upright
    torch.testing.assert_close(positions.mean(0)[:2], torch.zeros(2), atol=1e-5, rtol=0)


def test_the_field_of_view_is_that_of_the_photos_shorter_side() -> None:
    cameras = orbit_cameras(photos(), 2, 120)
    assert (int(cameras.width[0]), int(cameras.height[0])) == (120, 120)
    assert float(cameras.fx[0]) == 200.0
    assert float(cameras.cx[0]) == 60.0
