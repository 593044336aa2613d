from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene, read_image
from tests.scenes import builders


def test_world_is_the_files_own(tmp_path):
    scene = load_scene(builders.make_blender(tmp_path))
    meta = json.loads((tmp_path / "transforms_train.json").read_text())
    for frame, listed in zip(scene.frames, meta["frames"], strict=True):
        np.testing.assert_allclose(frame.camera_to_world, listed["transform_matrix"][:3], atol=1e-9)
    np.testing.assert_array_equal(scene.world_transform, np.eye(3, 4))
    assert scene.world_scale == 1.0
    assert scene.bounded
    np.testing.assert_array_equal(scene.scene_box, [[-1.5] * 3, [1.5] * 3])


def test_field_of_view_becomes_a_focal_length(tmp_path):
    frame = load_scene(builders.make_blender(tmp_path)).frames[0]
    assert frame.fx == frame.fy == pytest.approx(32 / np.tan(0.4))
    assert (frame.cx, frame.cy, frame.width, frame.height) == (32, 32, 64, 64)
    assert frame.camera_model == "pinhole"


def test_frames_keep_the_order_of_the_file(tmp_path):
    # Test views form a path, which sorting by name would break at r_10.
    scene = load_scene(builders.make_blender(tmp_path, {"train": 1, "test": 12}), "test")
    assert [frame.name for frame in scene.frames] == [f"test/r_{i}" for i in range(12)]


@pytest.mark.parametrize("half_side", [0.01, 1.5, 10.0])
def test_range_leaves_the_box_whole_from_anywhere(tmp_path, half_side):
    """Independent of the cameras, which are 4.3 from the origin, either outside of the box or inside."""
    scene = load_scene(builders.make_blender(tmp_path), scene_scale=half_side)
    np.testing.assert_array_equal(scene.scene_box, [[-half_side] * 3, [half_side] * 3])
    assert 0 < scene.near <= min(0.05, 0.05 * half_side)
    assert 1000 * half_side < scene.far < np.inf


def test_splits_of_the_files_hold_whatever_the_interval(tmp_path):
    builders.make_blender(tmp_path)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        scene = load_scene(tmp_path, split, eval_interval=0)
        assert (len(scene.frames), scene.warnings) == (count, ())


def test_photos_that_are_held_out_and_trained_on_are_told(tmp_path):
    """An image listed in both splits, the second time through a link."""
    builders.make_blender(tmp_path)
    (tmp_path / "test" / "r_0.png").unlink()
    (tmp_path / "test" / "r_0.png").symlink_to(tmp_path / "train" / "r_1.png")
    (warning,) = load_scene(tmp_path, "test").warnings
    assert "transforms_test.json: 1 of its 3 photos are training photos too" in warning
    assert load_scene(tmp_path, "val").warnings == ()


@pytest.mark.parametrize(("asked", "present"), [("val", "test"), ("test", "val")])
def test_val_and_test_stand_in_for_each_other(tmp_path, asked, present):
    scene = load_scene(builders.make_blender(tmp_path, {"train": 2, present: 3}), asked)
    assert scene.split == asked
    assert [frame.name for frame in scene.frames] == [f"{present}/r_{i}" for i in range(3)]
    (warning,) = scene.warnings
    assert f"transforms_{asked}.json is missing" in warning
    assert f"transforms_{present}.json" in warning


@pytest.mark.parametrize(("counts", "asked"), [({"train": 2}, "val"), ({"train": 2}, "test"), ({"val": 2}, "train")])
def test_a_missing_split_file_is_named(tmp_path, counts, asked):
    with pytest.raises(SceneError, match=rf"transforms_{asked}\.json is missing"):
        load_scene(builders.make_blender(tmp_path, counts), asked)


def test_transparency_is_read(tmp_path):
    scene = load_scene(builders.make_blender(tmp_path))
    assert scene.has_alpha
    assert {read_image(frame).shape for frame in scene.frames} == {(64, 64, 4)}


def test_opaque_images_have_three_channels(tmp_path):
    scene = load_scene(builders.make_blender(tmp_path, alpha=False))
    assert not scene.has_alpha
    assert {read_image(frame).shape for frame in scene.frames} == {(64, 64, 3)}


def test_a_mixture_is_read_as_transparent_with_a_remark(tmp_path):
    builders.make_blender(tmp_path)
    Image.new("RGB", (64, 64), (9, 8, 7)).save(tmp_path / "train" / "r_1.png")
    scene = load_scene(tmp_path)
    assert scene.warnings == (
        "3 of 4 images of the train split have an alpha channel; the others are treated as opaque",
    )
    np.testing.assert_array_equal(read_image(scene.frames[1])[0, 0], [9, 8, 7, 255])


def test_images_may_differ_in_size(tmp_path):
    builders.make_blender(tmp_path)
    Image.new("RGBA", (128, 32)).save(tmp_path / "train" / "r_2.png")
    frame = load_scene(tmp_path).frames[2]
    assert (frame.width, frame.height) == (128, 32)
    assert frame.fx == frame.fy == pytest.approx(64 / np.tan(0.4))


def test_missing_images_are_left_out_with_a_remark(tmp_path):
    builders.make_blender(tmp_path)
    (tmp_path / "train" / "r_1.png").unlink()
    (tmp_path / "test" / "r_0.png").unlink()
    scene = load_scene(tmp_path)
    assert [frame.name for frame in scene.frames] == ["train/r_0", "train/r_2", "train/r_3"]
    (warning,) = scene.warnings
    assert "transforms_train.json: 1 of the 4 images it lists do not exist (train/r_1)" in warning


def test_a_split_without_any_image_is_an_error(tmp_path):
    builders.make_blender(tmp_path)
    for index in range(2):
        (tmp_path / "val" / f"r_{index}.png").unlink()
    with pytest.raises(SceneError, match=r"transforms_val\.json: none of the 2 images it lists exists.*'val/r_0'"):
        load_scene(tmp_path, "val")


def test_an_unbounded_scene_is_scaled_into_the_unit_box(tmp_path):
    scene = load_scene(builders.make_blender(tmp_path), bounded=False)
    origins = np.array([frame.camera_to_world[:, 3] for frame in scene.frames])
    assert not scene.bounded
    assert np.abs(origins).max() <= 1.0
    assert scene.world_scale < 0.3
    np.testing.assert_array_equal(scene.world_transform, np.eye(3, 4))
    np.testing.assert_array_equal(scene.scene_box, [[-1] * 3, [1] * 3])


@pytest.mark.parametrize("case", ["moved aside", "turned around"])
def test_cameras_that_look_past_the_box_cause_a_remark(tmp_path, case):
    builders.make_blender(tmp_path, {"train": 8, "test": 2})
    path = tmp_path / "transforms_train.json"
    meta = json.loads(path.read_text())
    for frame in meta["frames"]:
        for row in frame["transform_matrix"][:3]:
            if case == "moved aside":
                row[3] += 50.0
            else:
                row[0], row[2] = -row[0], -row[2]
    path.write_text(json.dumps(meta))
    (warning,) = load_scene(tmp_path).warnings
    assert warning.startswith("8 of 10 cameras do not look into the scene box")
