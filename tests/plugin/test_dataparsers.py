"""SceneDataParser: nerfstudio receives the loaded scene unchanged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from PIL import Image

from eugen_nerf import ops
from eugen_nerf.errors import SceneError
from eugen_nerf.field import EugenField
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import PackedSamples, Space, StepRule
from eugen_nerf.plugin import dataparsers
from eugen_nerf.plugin.datamanager import SceneDataset
from eugen_nerf.plugin.dataparsers import SceneDataParserConfig, reading_frames
from eugen_nerf.renderer import Renderer
from eugen_nerf.scenes import Scene, load_scene, resolution
from tests.conftest import DISTANCE, RADIUS
from tests.plugin.conftest import Parse
from tests.scenes import builders
from tests.test_renderer import Medium

DEMO = Path(__file__).parents[2] / "data" / "demo"


def stand_in(monkeypatch: pytest.MonkeyPatch, scene: Scene, **changes: object) -> None:
    """Let the parser load this scene, with a change applied to every frame."""
    options = {key: changes.pop(key) for key in ("warnings",) if key in changes}
    frames = tuple(dataclasses.replace(frame, **changes) for frame in scene.frames)
    changed = dataclasses.replace(scene, frames=frames, **options)
    monkeypatch.setattr(dataparsers, "load_scene", lambda *args, **kwargs: changed)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_outputs_are_those_of_the_scene(ball_scene: Path, split: str) -> None:
    scene = load_scene(ball_scene, split)  # type: ignore[arg-type]
    outputs = SceneDataParserConfig(data=ball_scene).setup().get_dataparser_outputs(split)
    cameras = outputs.cameras
    assert outputs.image_filenames == [frame.image_path for frame in scene.frames]
    assert len(cameras) == len(scene.frames)
    poses = np.stack([frame.camera_to_world for frame in scene.frames])
    np.testing.assert_allclose(cameras.camera_to_worlds.numpy(), poses, atol=1e-6)
    for name, column in (
        ("fx", cameras.fx),
        ("fy", cameras.fy),
        ("cx", cameras.cx),
        ("cy", cameras.cy),
        ("width", cameras.width),
        ("height", cameras.height),
    ):
        expected = torch.tensor([[getattr(frame, name)] for frame in scene.frames])
        torch.testing.assert_close(column.double(), expected.double(), rtol=1e-6, atol=0)
    np.testing.assert_allclose(outputs.scene_box.aabb.numpy(), scene.scene_box)
    assert outputs.metadata["bounded"] == scene.bounded
    assert (outputs.metadata["near"], outputs.metadata["far"]) == (scene.near, scene.far)
    assert [frame.name for frame in outputs.metadata["frames"]] == [frame.name for frame in scene.frames]
    np.testing.assert_allclose(outputs.dataparser_transform.numpy(), scene.world_transform, atol=1e-6)
    assert outputs.dataparser_scale == scene.world_scale


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_a_bounded_scene_is_whole_from_near_and_far(ball_scene: Path, factor: float) -> None:
    """Through a mist that fills the ball, from a fraction and a multiple of the cameras' distance."""
    outputs = SceneDataParserConfig(data=ball_scene).setup().get_dataparser_outputs("train")
    low, high = (tuple(corner.tolist()) for corner in outputs.scene_box.aabb)
    space = Space((low, high), contracted=False)
    mist = Medium(space, lambda positions: (positions.norm(dim=-1) < RADIUS).to(positions))
    rule = StepRule(space.diagonal / 1024)
    near, far = outputs.metadata["near"], outputs.metadata["far"]
    renderer = Renderer(cast(EugenField, mist), OccupancyGrid(8), space, rule, near, far)
    back = outputs.cameras.camera_to_worlds[:, :, 2].double()
    for mode in (renderer.render, renderer.render_differentiable):
        out = mode(factor * DISTANCE * back, -back)
        torch.testing.assert_close(out.alpha, torch.full_like(out.alpha, 1 - math.exp(-2 * RADIUS)), atol=0.005, rtol=0)
        assert (out.depth < factor * DISTANCE).all()  # more light comes from the front


@pytest.mark.parametrize("name", ["demo", "lego_400"])
def test_limits_leave_the_samples_of_the_photos_as_the_box_places_them(
    name: str, published_scene: Callable[[str], Path]
) -> None:
    """Tighter limits, at the box's nearest and farthest point from any camera, give bit-identical results."""
    folder = DEMO if name == "demo" else published_scene(name)
    outputs = SceneDataParserConfig(data=folder).setup().get_dataparser_outputs("train")
    low, high = (tuple(corner.tolist()) for corner in outputs.scene_box.aabb)
    space = Space((low, high), contracted=False)
    positions = outputs.cameras.camera_to_worlds[:, :, 3].abs().double()
    nearest = (positions - high[0]).clamp_min(0).norm(dim=-1).min().item()
    farthest = (positions + high[0]).norm(dim=-1).max().item()
    generator = torch.Generator().manual_seed(1)
    width = int(outputs.cameras.width[0])
    indices = torch.randint(len(positions), (4000, 1), generator=generator)
    rays = outputs.cameras.generate_rays(indices, coords=width * torch.rand(4000, 2, generator=generator))
    jitter = torch.rand(4000, generator=generator)
    bits = torch.full((8**3 // 8,), 255, dtype=torch.uint8)

    def samples(near: float, far: float) -> PackedSamples:
        limits = (torch.full_like(jitter, near), torch.full_like(jitter, far))
        rule = StepRule(space.diagonal / 1024)
        return ops.march(rays.origins, rays.directions, *limits, bits, 8, space, rule, jitter)

    got, wanted = samples(outputs.metadata["near"], outputs.metadata["far"]), samples(nearest, farthest)
    assert len(wanted.t_starts) > 1_000_000
    for key in ("ray_offsets", "t_starts", "t_ends"):
        assert torch.equal(getattr(got, key), getattr(wanted, key))


def test_rays_point_at_what_the_images_show(ball_scene: Path) -> None:
    """A pixel shows the ball if its ray passes close enough to the ball's center."""
    outputs = SceneDataParserConfig(data=ball_scene).setup().get_dataparser_outputs("train")
    for index, file in enumerate(outputs.image_filenames):
        rays = outputs.cameras.generate_rays(camera_indices=index)
        along = -(rays.origins * rays.directions).sum(-1, keepdim=True)
        closest = (rays.origins + along * rays.directions).norm(dim=-1)
        shown = np.array(Image.open(file))[..., 3] > 0
        assert np.array_equal(closest.numpy() < 0.8, shown)


def test_poses_return_to_the_files_world(ball_scene: Path) -> None:
    """nerfstudio inverts our transform when it exports in the world of the dataset."""
    scene = load_scene(ball_scene, "train", bounded=False)  # this recenters and rescales the cameras
    outputs = SceneDataParserConfig(data=ball_scene, bounded=False).setup().get_dataparser_outputs("train")
    assert scene.world_scale != 1
    back = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, camera_convention="opengl")
    original = load_scene(ball_scene, "train")
    np.testing.assert_allclose(back.numpy(), np.stack([frame.camera_to_world for frame in original.frames]), atol=1e-5)


def test_points_are_handed_on_in_the_world_of_the_cameras(tmp_path: Path) -> None:
    """Under the names that nerfstudio's pipeline expects, positions as float32 and colors as bytes."""
    builders.make_colmap_binary(tmp_path)
    outputs = SceneDataParserConfig(data=tmp_path).setup().get_dataparser_outputs("train")
    positions, colors = outputs.metadata["points3D_xyz"], outputs.metadata["points3D_rgb"]
    assert (positions.dtype, colors.dtype) == (torch.float32, torch.uint8)
    assert colors.tolist() == [[255, 128, 7], [1, 2, 3]]
    marker = builders.marker_in(load_scene(tmp_path, "train"))
    np.testing.assert_allclose(positions[0].numpy(), marker, atol=1e-6)
    assert not {"points3D_xyz", "points3D_rgb"} & set(SceneDataset(outputs).metadata)


def test_scenes_without_points_hand_on_none(tmp_path: Path, ball_scene: Path) -> None:
    builders.make_colmap_text(tmp_path)
    (tmp_path / "sparse" / "0" / "points3D.txt").write_text("# none\n")
    for scene in (tmp_path, ball_scene):
        outputs = SceneDataParserConfig(data=scene).setup().get_dataparser_outputs("train")
        assert "points3D_xyz" not in outputs.metadata


def test_options_reach_the_loader(ball_scene: Path) -> None:
    config = SceneDataParserConfig(data=ball_scene, downscale_factor=2, bounded=True, scene_scale=1.25)
    with reading_frames():
        outputs = config.setup().get_dataparser_outputs("train")
    assert outputs.scene_box.aabb.tolist() == [[-1.25] * 3, [1.25] * 3]
    assert outputs.cameras.width.unique().tolist() == [8]
    unbounded = SceneDataParserConfig(data=ball_scene, bounded=False).setup().get_dataparser_outputs("train")
    assert unbounded.metadata["bounded"] is False


def test_options_of_ns_train_reach_the_loader(tmp_path: Path, parse: Parse) -> None:
    lying = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # the file's vertical is -y
    meta = builders.transforms_meta(builders.arc_poses())
    for frame in meta["frames"]:
        frame["transform_matrix"] = (lying @ frame["transform_matrix"]).tolist()
    builders.make_transforms(tmp_path, **meta)

    def loaded(*options: str) -> Scene:
        config = parse("--data", tmp_path, "eugen-scene", *options)
        config.pipeline.datamanager.dataparser.data = tmp_path
        return config.pipeline.datamanager.dataparser.setup().load("train")

    found = loaded().world_transform
    assert not np.allclose(found[:, :3], np.eye(3))
    np.testing.assert_array_equal(loaded("--orientation", "none").world_transform[:, :3], np.eye(3))
    np.testing.assert_array_equal(loaded("--orientation", "up").world_transform, found)
    np.testing.assert_array_equal(loaded("--center", "none").world_transform[:, 3], np.zeros(3))
    assert not np.allclose(loaded("--center", "poses").world_transform[:, 3], found[:, 3])
    assert len(loaded("--eval-interval", "0").frames) == 9


def test_who_opens_the_files_is_not_told_of_pictures_that_are_smaller(ball_scene: Path, tmp_path: Path) -> None:
    """nerfstudio's own data managers would wait forever for them."""
    config = SceneDataParserConfig(data=ball_scene, downscale_factor=2)
    with pytest.raises(SceneError, match=r"r_0\.png: there is no copy .* by 2, .*scale-factor 0\.5 of ns-train\."):
        config.setup().get_dataparser_outputs("train")
    builders.make_transforms(tmp_path)
    (tmp_path / "images_2").mkdir()
    for file in (tmp_path / "images").iterdir():
        with Image.open(file) as image:
            image.reduce(2).save(tmp_path / "images_2" / file.name)
    config = SceneDataParserConfig(data=tmp_path, downscale_factor=2)
    assert config.setup().get_dataparser_outputs("train").image_filenames[0].parent.name == "images_2"
    config.downscale_factor = 4
    with pytest.raises(SceneError, match=r"camera-res-scale-factor 0\.25 of ns-train\."):
        config.setup().get_dataparser_outputs("train")


@pytest.mark.parametrize("factor", [2.0, 2])
def test_a_whole_number_may_be_a_float(ball_scene: Path, factor: float) -> None:
    """ns-render --downscale-factor sets one."""
    parser = SceneDataParserConfig(data=ball_scene, downscale_factor=factor).setup()  # type: ignore[arg-type]
    assert parser.load("train").frames[0].width == 8


def test_other_factors_are_refused(ball_scene: Path) -> None:
    parser = SceneDataParserConfig(data=ball_scene, downscale_factor=1.5).setup()  # type: ignore[arg-type]
    with pytest.raises(SceneError, match=r"whole number, not 1\.5"):
        parser.load("train")


def test_pinhole_cameras_have_no_distortion_to_undo(ball_scene: Path) -> None:
    outputs = SceneDataParserConfig(data=ball_scene).setup().get_dataparser_outputs("train")
    assert outputs.cameras.distortion_params is None
    assert (outputs.cameras.camera_type == CameraType.PERSPECTIVE.value).all()


@pytest.mark.parametrize(
    ("model", "camera_type"), [("opencv", CameraType.PERSPECTIVE), ("opencv_fisheye", CameraType.FISHEYE)]
)
def test_distorted_cameras(
    monkeypatch: pytest.MonkeyPatch, ball_scene: Path, model: str, camera_type: CameraType
) -> None:
    distortion = (0.1, -0.02, 0.003, 0.0, 0.001, -0.002)
    stand_in(monkeypatch, load_scene(ball_scene, "train"), camera_model=model, distortion=distortion)
    cameras = SceneDataParserConfig(data=ball_scene).setup().get_dataparser_outputs("train").cameras
    assert cameras.distortion_params is not None
    torch.testing.assert_close(cameras.distortion_params, torch.tensor([distortion] * len(cameras)))
    assert (cameras.camera_type == camera_type.value).all()


def test_masks_are_handed_on_if_every_frame_has_one(monkeypatch: pytest.MonkeyPatch, ball_scene: Path) -> None:
    parser = SceneDataParserConfig(data=ball_scene).setup()
    assert parser.get_dataparser_outputs("train").mask_filenames is None
    scene = load_scene(ball_scene, "train")
    stand_in(monkeypatch, scene, mask_path=Path("mask.png"))
    assert parser.get_dataparser_outputs("train").mask_filenames == [Path("mask.png")] * len(scene.frames)


def test_warnings_are_printed_once_and_as_they_are(
    monkeypatch: pytest.MonkeyPatch, ball_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in file names are not markup."""
    stand_in(monkeypatch, load_scene(ball_scene, "train"), warnings=("a[/b]/c[red].png is odd",))
    parser = SceneDataParserConfig(data=ball_scene).setup()
    for split in ("train", "val"):
        parser.get_dataparser_outputs(split)
    assert capsys.readouterr().out.count("Warning: a[/b]/c[red].png is odd") == 1


def test_a_missing_scene_is_a_message_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="does not exist"):
        SceneDataParserConfig(data=tmp_path / "nowhere").setup().get_dataparser_outputs("train")


def test_large_photos_are_reduced_by_themselves_for_who_can(
    ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nerfstudio's own data managers, which do not support every scene, receive the photos unchanged."""
    monkeypatch.setattr(resolution, "LONGEST_SIDE", 48)

    def width_and_folder(scene: Path) -> tuple[int, str]:
        outputs = SceneDataParserConfig(data=scene).setup().get_dataparser_outputs("train")
        return int(outputs.cameras.width[0]), outputs.image_filenames[0].parent.name

    builders.make_transforms(tmp_path)
    with reading_frames():
        assert width_and_folder(tmp_path) == (48, "images")
    assert width_and_folder(tmp_path) == (96, "images")
    (tmp_path / "images_2").mkdir()
    for file in (tmp_path / "images").iterdir():
        with Image.open(file) as image:
            image.reduce(2).save(tmp_path / "images_2" / file.name)
    assert width_and_folder(tmp_path) == (96, "images")
    with reading_frames():
        assert width_and_folder(tmp_path) == (48, "images_2")
