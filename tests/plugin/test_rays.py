"""TabulatedRays against nerfstudio's own ray generator."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.model_components.ray_generators import RayGenerator

from eugen_nerf.plugin.rays import TabulatedRays


def cameras(distorted: bool, fisheye: bool = False) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(5, 3, 3, generator=generator)).Q
    poses = torch.cat([rotations, torch.randn(5, 3, 1, generator=generator)], dim=-1)
    # Cameras 0, 2 and 4 share their intrinsics; sizes differ.
    focal = torch.tensor([20.0, 25.0, 20.0, 22.0, 20.0])[:, None]
    width = torch.tensor([16, 20, 16, 12, 16])[:, None]
    height = torch.tensor([12, 10, 12, 14, 12])[:, None]
    distortion = torch.tensor([0.05, -0.02, 0.0, 0.0, 0.001, -0.002]).expand(5, 6).contiguous()
    kind = CameraType.FISHEYE if fisheye else CameraType.PERSPECTIVE
    return Cameras(
        camera_to_worlds=poses,
        fx=focal,
        fy=focal * 1.1,
        cx=width / 2 + 0.3,
        cy=height / 2 - 0.2,
        width=width,
        height=height,
        distortion_params=distortion if distorted else None,
        camera_type=torch.full((5, 1), kind.value),
    )


@pytest.mark.parametrize(("distorted", "fisheye"), [(False, False), (True, False), (True, True)])
def test_equals_nerfstudios_rays(distorted: bool, fisheye: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    all_cameras = cameras(distorted, fisheye)
    camera = torch.randint(5, (200,), generator=generator)
    row = (torch.rand(200, generator=generator) * all_cameras.height[camera, 0]).long()
    column = (torch.rand(200, generator=generator) * all_cameras.width[camera, 0]).long()
    indices = torch.stack([camera, row, column], dim=-1)
    expected = RayGenerator(cameras(distorted, fisheye))(indices)
    rays = TabulatedRays(all_cameras)
    got = rays(indices)
    torch.testing.assert_close(got.origins, expected.origins)
    torch.testing.assert_close(got.directions, expected.directions, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.pixel_area, expected.pixel_area, rtol=1e-3, atol=1e-8)
    assert got.camera_indices[:, 0].tolist() == camera.tolist()
    assert len(rays.table) == 12 * 16 + 10 * 20 + 14 * 12  # cameras with equal intrinsics share theirs


def test_leaves_the_cameras_alone() -> None:
    all_cameras = cameras(False)
    before = all_cameras.camera_to_worlds.clone()
    TabulatedRays(all_cameras)
    assert torch.equal(all_cameras.camera_to_worlds, before)


def test_refuses_a_table_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TabulatedRays, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="too large"):
        TabulatedRays(cameras(False))
