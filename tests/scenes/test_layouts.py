"""Every layout gives the same cameras: each projects the marker onto the white square of its image."""

from __future__ import annotations

import numpy as np
import pytest

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene, read_image
from tests.scenes import builders

CAPTURES = {
    "transforms": builders.make_transforms,
    "colmap": builders.make_colmap_binary,
    "colmap-text": builders.make_colmap_text,
    "llff": builders.make_llff,
}


@pytest.fixture(params=CAPTURES, ids=str)
def capture(request, tmp_path):
    return CAPTURES[request.param](tmp_path)


def square_center(frame):
    """Center of the white square, in pixels."""
    rows, columns = np.nonzero(read_image(frame)[..., 2] > 128)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


@pytest.mark.parametrize("downscale", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cameras_project_the_marker_onto_its_image(capture, split, downscale):
    scene = load_scene(capture, split, downscale=downscale)
    for frame in scene.frames:
        np.testing.assert_allclose(builders.marker_pixel(scene, frame), square_center(frame), atol=0.75)


def test_every_eighth_frame_by_name_is_held_out(capture):
    train, val, test = (load_scene(capture, split) for split in ("train", "val", "test"))
    assert [frame.image_path.name for frame in val.frames] == ["000.png", "008.png"]
    assert [frame.image_path for frame in test.frames] == [frame.image_path for frame in val.frames]
    assert [frame.image_path.name for frame in train.frames] == [f"{i:03d}.png" for i in range(1, 8)]


def test_photos_are_held_out_in_the_order_of_their_whole_names(tmp_path):
    """As in published evaluations: "a (1).png" comes before "a.png", though "a" comes before "a (1)"."""
    builders.make_transforms(tmp_path, count=3)
    names = ["a.png", "a (1).png", "b.png"]
    for index, name in enumerate(names):
        (tmp_path / "images" / f"{index:03d}.png").rename(tmp_path / "images" / name)
        builders.edit_frame(tmp_path / "transforms.json", index, file_path=f"images/{name}")
    (held_out,) = load_scene(tmp_path, "test").frames
    assert held_out.image_path.name == "a (1).png"


def test_an_interval_of_zero_trains_on_every_photo(capture):
    train, val, test = (load_scene(capture, split, eval_interval=0) for split in ("train", "val", "test"))
    assert [frame.image_path.name for frame in train.frames] == [f"{i:03d}.png" for i in range(9)]
    for shown in (val, test):
        assert [frame.image_path.name for frame in shown.frames] == ["000.png", "008.png"]
    (warning,) = {*train.warnings, *val.warnings, *test.warnings}  # one object, so that it is printed once
    assert "holds out no photo: all 9 are trained on, and metrics are of every 8th of them" in warning
    np.testing.assert_array_equal(train.world_transform, load_scene(capture).world_transform)


def test_splits_share_one_world(capture):
    train, test = load_scene(capture, "train"), load_scene(capture, "test")
    np.testing.assert_array_equal(train.world_transform, test.world_transform)
    assert (train.world_scale, train.near, train.far) == (test.world_scale, test.near, test.far)


def test_captures_are_unbounded_upright_and_fit_the_unit_box(capture):
    scene = load_scene(capture, eval_interval=5)
    poses = np.array([frame.camera_to_world for frame in scene.frames])
    assert not scene.bounded
    assert np.abs(poses[:, :, 3]).max() <= 1 + 1e-9
    np.testing.assert_array_equal(scene.scene_box, [[-1, -1, -1], [1, 1, 1]])
    assert 0 < scene.near < scene.far
    # The builder's cameras are level with z up.
    np.testing.assert_allclose(scene.world_transform[2, :3], [0, 0, 1], atol=1e-6)
    # Their viewing directions miss the marker by at most 0.1 of their distance.
    assert np.linalg.norm(builders.marker_in(scene)) < 0.15


def test_world_transform_and_scale_map_the_files_cameras(capture):
    scene = load_scene(capture, orientation="none")
    poses = builders.arc_poses(9)
    for frame in scene.frames:
        pose = poses[int(frame.image_path.stem)]
        rotation = scene.world_transform[:, :3]
        np.testing.assert_allclose(frame.camera_to_world[:, :3], rotation @ pose[:, :3], atol=1e-7)
        moved = scene.world_scale * (rotation @ pose[:, 3] + scene.world_transform[:, 3])
        np.testing.assert_allclose(frame.camera_to_world[:, 3], moved, atol=1e-7)


def test_bounded_captures_get_a_box_and_a_range_that_leaves_it_whole(capture):
    scene = load_scene(capture, bounded=True, scene_scale=0.5)
    assert scene.bounded
    np.testing.assert_array_equal(scene.scene_box, [[-0.5] * 3, [0.5] * 3])
    assert (scene.near, scene.far) == (0.025, 5e5)


def test_intrinsics_are_those_of_the_reduced_image(capture):
    full, half = load_scene(capture).frames[0], load_scene(capture, downscale=2).frames[0]
    assert (full.width, full.height) == (builders.WIDTH, builders.HEIGHT)
    assert (half.width, half.height) == (builders.WIDTH // 2, builders.HEIGHT // 2)
    assert (half.fx, half.fy, half.cx, half.cy) == (full.fx / 2, full.fy / 2, full.cx / 2, full.cy / 2)
    assert read_image(half).shape == (half.height, half.width, 3)


def test_remarks_are_absent_from_a_clean_scene(capture):
    assert load_scene(capture).warnings == ()


def test_an_explicit_layout_is_obeyed(tmp_path):
    builders.make_colmap_binary(tmp_path)
    builders.make_llff(tmp_path)
    builders.make_transforms(tmp_path)
    for layout in ("transforms", "colmap", "llff"):
        assert load_scene(tmp_path, layout=layout).layout == layout
    with pytest.raises(SceneError, match=r"none of transforms_train\.json"):
        load_scene(tmp_path, layout="blender")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downscale": 0}, "downscale must be a whole number, at least 1, not 0"),
        ({"eval_interval": 1}, "eval interval 1 leaves no frame to train on"),
        ({"eval_interval": -8}, "eval interval -8 .* at least 2, or 0 to hold out none"),
        ({"scene_scale": -1.0}, "scene scale"),
        ({"scene_scale": float("nan")}, "scene scale"),
        ({"downscale": 100}, "too small to be reduced by 100"),
    ],
)
def test_options_out_of_range_are_scene_errors(tmp_path, options, message):
    with pytest.raises(SceneError, match=message):
        load_scene(builders.make_transforms(tmp_path), **options)


@pytest.mark.parametrize("options", [{"split": "all"}, {"layout": "nerf"}, {"orientation": "x"}, {"center": "x"}])
def test_unknown_words_are_value_errors(tmp_path, options):
    with pytest.raises(ValueError, match="must be one of"):
        load_scene(builders.make_transforms(tmp_path), **options)
