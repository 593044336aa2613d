"""Rays of pixels and of whole images against nerfstudio's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.model_components.ray_generators import RayGenerator

from eugen_nerf.plugin.rays import ImageRayGenerator, ImageRays, TabulatedRays, z_order


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


LENSES = pytest.mark.parametrize(("distorted", "fisheye"), [(False, False), (True, False), (True, True)])


@LENSES
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


@pytest.mark.parametrize("kind", [CameraType.ORTHOPHOTO, CameraType.OMNIDIRECTIONALSTEREO_L, CameraType.VR180_R])
def test_refuses_rays_that_do_not_start_at_one_point(kind: CameraType) -> None:
    mixed = cameras(False)
    mixed.camera_type[3] = kind.value
    with pytest.raises(ValueError, match="do not start at one point"):
        TabulatedRays(mixed)


def test_a_fisheye_lens_looks_straight_ahead_in_its_middle() -> None:
    """nerfstudio divides 0 by 0 in the pixel whose center is the principal point."""
    camera = cameras(False, True)[0:1]
    camera.cx[:], camera.cy[:] = 8.5, 6.5
    expected = -camera.camera_to_worlds[0, :, 2]
    ray = TabulatedRays(camera)(torch.tensor([[0, 6, 8]]))
    torch.testing.assert_close(ray.directions[0], expected)
    picture = drawn(ImageRayGenerator(), camera)
    whole = picture.in_place(picture.rays.directions)
    assert whole.isfinite().all()
    assert picture.rays.pixel_area is not None
    assert picture.rays.pixel_area.isfinite().all()
    torch.testing.assert_close(whole[6, 8], expected)


def test_leaves_the_cameras_alone() -> None:
    all_cameras = cameras(False)
    before = all_cameras.camera_to_worlds.clone()
    TabulatedRays(all_cameras)
    assert torch.equal(all_cameras.camera_to_worlds, before)


def test_refuses_a_table_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TabulatedRays, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="too large"):
        TabulatedRays(cameras(False))


def drawn(generator: ImageRayGenerator, camera: Cameras) -> ImageRays:
    picture = generator(camera)
    assert picture is not None
    return picture


class TestPictures:
    @LENSES
    def test_equal_nerfstudios_whatever_was_drawn_before(self, distorted: bool, fisheye: bool) -> None:
        generator = ImageRayGenerator()
        for index in (0, 2, 1, 3, 4):  # the same intrinsics, others, and back again
            camera = cameras(distorted, fisheye)[index : index + 1]
            expected = camera.generate_rays(camera_indices=0, keep_shape=True)
            picture = drawn(generator, camera)
            assert picture.rays.shape == expected.shape
            for name in ("origins", "directions", "pixel_area"):
                got = picture.in_place(getattr(picture.rays, name))
                rtol, atol = (1e-3, 1e-8) if name == "pixel_area" else (1e-5, 1e-6)
                torch.testing.assert_close(got, getattr(expected, name), rtol=rtol, atol=atol)

    @LENSES
    def test_intrinsics_in_double_precision(self, distorted: bool, fisheye: bool) -> None:
        """As nerfstudio reads them from camera paths."""
        camera = cameras(distorted, fisheye)[1:2]
        exact = replace(camera, fx=camera.fx.double(), fy=camera.fy.double(), cx=camera.cx.double())
        assert exact.fx.dtype == torch.float64
        got, expected = drawn(ImageRayGenerator(), exact), drawn(ImageRayGenerator(), camera)
        assert (got.rays.origins.dtype, got.rays.directions.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(got.rays.directions, expected.rays.directions)

    def test_a_picture_stays_what_it_was_when_another_is_drawn(self) -> None:
        generator = ImageRayGenerator()
        first = drawn(generator, cameras(False)[0:1])
        before = first.in_place(first.rays.directions)
        generator(cameras(False)[1:2])
        assert torch.equal(first.in_place(first.rays.directions), before)

    def test_turning_the_camera_turns_the_rays(self) -> None:
        generator, camera = ImageRayGenerator(), cameras(True)[0:1]
        picture = drawn(generator, camera)
        half_turn = camera.camera_to_worlds * torch.tensor([[-1.0], [1.0], [-1.0]])
        turned = drawn(generator, replace(camera, camera_to_worlds=half_turn))
        assert torch.equal(turned.rays.directions, picture.rays.directions * torch.tensor([-1.0, 1.0, -1.0]))

    def test_a_single_camera_may_come_without_a_dimension(self) -> None:
        generator, camera = ImageRayGenerator(), cameras(False)[0:1]
        one, other = drawn(generator, camera), drawn(generator, camera[0])
        assert torch.equal(one.rays.directions, other.rays.directions)

    @pytest.mark.parametrize("kind", [CameraType.ORTHOPHOTO, CameraType.OMNIDIRECTIONALSTEREO_L, CameraType.VR180_R])
    def test_leaves_to_nerfstudio_rays_that_do_not_start_at_one_point(self, kind: CameraType) -> None:
        camera = replace(cameras(False)[0:1], camera_type=torch.tensor([[kind.value]]))
        assert ImageRayGenerator()(camera) is None

    def test_leaves_several_cameras_and_huge_pictures_to_nerfstudio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert ImageRayGenerator()(cameras(False)[0:2]) is None
        monkeypatch.setattr(ImageRayGenerator, "MAX_PIXELS", 16 * 12 - 1)
        assert ImageRayGenerator()(cameras(False)[0:1]) is None
        assert ImageRayGenerator()(cameras(False)[3:4]) is not None  # 12 x 14

    def test_half_precision_of_mixed_training_does_not_reach_them(self) -> None:
        generator, camera = ImageRayGenerator(), cameras(True)[0:1]
        expected = drawn(generator, camera)
        with torch.autocast("cpu", torch.bfloat16):
            got = drawn(generator, camera)
        assert torch.equal(got.rays.directions, expected.rays.directions)


def test_z_order_keeps_neighbors_together() -> None:
    assert z_order(2, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    order = z_order(11, 21)
    assert sorted(order.tolist()) == list(range(11 * 21))
    # A warp's 32 pixels form a block of 4 rows and 8 columns, as long as such blocks are complete.
    rows, columns = z_order(16, 32).view(-1, 32) // 32, z_order(16, 32).view(-1, 32) % 32
    for values, side in ((rows, 4), (columns, 8)):
        assert torch.equal(values.amax(1) - values.amin(1), torch.full((16,), side - 1))
