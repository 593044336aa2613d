from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene
from tests.scenes import builders


def edit(root, **changes):
    builders.edit_json(root / "transforms.json", **changes)


def edit_frame(root, index, **changes):
    builders.edit_frame(root / "transforms.json", index, **changes)


def only_frame(root, name):
    """The loaded frame with the given image, in any split."""
    frames = load_scene(root, "train").frames + load_scene(root, "test").frames
    return next(frame for frame in frames if frame.image_path.name == name)


class TestIntrinsics:
    def test_shared(self, tmp_path):
        frame = load_scene(builders.make_transforms(tmp_path)).frames[0]
        assert (frame.fx, frame.fy, frame.cx, frame.cy) == (
            builders.FX,
            builders.FY,
            builders.CX,
            builders.CY,
        )
        assert frame.camera_model == "pinhole"
        assert frame.distortion == (0, 0, 0, 0, 0, 0)

    def test_a_frame_overrides_the_file(self, tmp_path):
        builders.make_transforms(tmp_path)
        edit_frame(tmp_path, 3, fl_x=50.0, cy=10.0, k1=0.1)
        frame = only_frame(tmp_path, "003.png")
        assert (frame.fx, frame.fy, frame.cx, frame.cy) == (50.0, builders.FY, builders.CX, 10.0)
        assert frame.distortion == (0.1, 0, 0, 0, 0, 0)
        assert only_frame(tmp_path, "004.png").fx == builders.FX

    def test_all_per_frame(self, tmp_path):
        builders.make_transforms(tmp_path, fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None)
        for index in range(9):
            edit_frame(tmp_path, index, fl_x=80.0 + index, w=builders.WIDTH, h=builders.HEIGHT)
        frame = only_frame(tmp_path, "005.png")
        assert (frame.fx, frame.fy) == (85.0, 85.0)
        assert (frame.cx, frame.cy) == (builders.WIDTH / 2, builders.HEIGHT / 2)

    def test_field_of_view_in_place_of_a_focal_length(self, tmp_path):
        builders.make_transforms(tmp_path, fl_x=None, fl_y=None, camera_angle_x=1.0)
        frame = load_scene(tmp_path).frames[0]
        assert frame.fx == frame.fy == pytest.approx(builders.WIDTH / 2 / math.tan(0.5))

    def test_two_fields_of_view(self, tmp_path):
        builders.make_transforms(tmp_path, fl_x=None, fl_y=None, w=None, h=None, camera_angle_x=1.0, camera_angle_y=0.9)
        frame = load_scene(tmp_path).frames[0]
        assert frame.fx == pytest.approx(builders.WIDTH / 2 / math.tan(0.5))
        assert frame.fy == pytest.approx(builders.HEIGHT / 2 / math.tan(0.45))

    def test_each_axis_by_what_is_stated_for_it(self, tmp_path):
        builders.make_transforms(tmp_path, fl_y=None, camera_angle_x=1.0, camera_angle_y=0.9)
        frame = load_scene(tmp_path).frames[0]
        assert frame.fx == builders.FX
        assert frame.fy == pytest.approx(builders.HEIGHT / 2 / math.tan(0.45))

    def test_a_focal_length_wins_over_a_field_of_view(self, tmp_path):
        builders.make_transforms(tmp_path, camera_angle_x=1.0, camera_angle_y=1.0)
        frame = load_scene(tmp_path).frames[0]
        assert (frame.fx, frame.fy) == (builders.FX, builders.FY)

    @pytest.mark.parametrize(
        ("model", "values", "expected"),
        [
            ("OPENCV", {"k1": 0.1, "p2": 0.2}, "opencv"),
            ("OPENCV", {}, "pinhole"),
            ("PINHOLE", {}, "pinhole"),
            ("SIMPLE_PINHOLE", {}, "pinhole"),
            ("SIMPLE_RADIAL", {"k1": 0.1}, "opencv"),
            ("OPENCV_FISHEYE", {"k1": 0.1}, "opencv_fisheye"),
            ("OPENCV", {"is_fisheye": True}, "opencv_fisheye"),
        ],
    )
    def test_camera_models(self, tmp_path, model, values, expected):
        builders.make_transforms(tmp_path, camera_model=model, **values)
        frame = load_scene(tmp_path).frames[0]
        assert frame.camera_model == expected
        assert frame.distortion == (values.get("k1", 0), 0, 0, 0, 0, values.get("p2", 0))

    def test_distortion_keys_in_order(self, tmp_path):
        builders.make_transforms(tmp_path, k1=1e-1, k2=2e-2, k3=3e-3, k4=4e-4, p1=5e-5, p2=6e-6)
        assert load_scene(tmp_path).frames[0].distortion == (1e-1, 2e-2, 3e-3, 4e-4, 5e-5, 6e-6)
        edit(tmp_path, distortion_params=[1, 2, 3, 4, 5, 6])
        assert load_scene(tmp_path).frames[0].distortion == (1, 2, 3, 4, 5, 6)

    def test_null_is_as_good_as_no_key(self, tmp_path):
        builders.make_transforms(tmp_path)
        edit(tmp_path, k1=None, camera_model=None, distortion_params=None, fl_y=None, is_fisheye=None)
        frame = load_scene(tmp_path).frames[0]
        assert (frame.fy, frame.camera_model) == (builders.FX, "pinhole")

    def test_null_in_a_frame_leaves_the_files_value(self, tmp_path):
        builders.make_transforms(tmp_path, k1=0.2)
        edit_frame(tmp_path, 3, k1=None, fl_x=None)
        frame = only_frame(tmp_path, "003.png")
        assert (frame.fx, frame.distortion[0]) == (builders.FX, 0.2)

    def test_keys_of_a_frame_win_over_other_keys_for_the_same(self, tmp_path):
        builders.make_transforms(tmp_path, distortion_params=[1, 2, 3, 4, 5, 6], is_fisheye=True)
        edit_frame(tmp_path, 3, k1=0.2)
        edit_frame(tmp_path, 5, camera_model="OPENCV")
        frame = only_frame(tmp_path, "003.png")
        assert (frame.distortion, frame.camera_model) == ((0.2, 0, 0, 0, 0, 0), "opencv_fisheye")
        frame = only_frame(tmp_path, "005.png")
        assert (frame.distortion, frame.camera_model) == ((1, 2, 3, 4, 5, 6), "opencv")

    def test_is_fisheye_is_true_or_false(self, tmp_path):
        for value in ("true", 1):
            builders.make_transforms(tmp_path, is_fisheye=value)
            with pytest.raises(SceneError, match="is_fisheye must be true or false, found"):
                load_scene(tmp_path)
        builders.make_transforms(tmp_path, is_fisheye=False)
        assert load_scene(tmp_path).frames[0].camera_model == "pinhole"

    def test_a_frame_without_fisheye_in_a_file_with_it(self, tmp_path):
        builders.make_transforms(tmp_path, camera_model="OPENCV_FISHEYE")
        edit_frame(tmp_path, 3, is_fisheye=False)
        assert only_frame(tmp_path, "003.png").camera_model == "pinhole"
        assert only_frame(tmp_path, "004.png").camera_model == "opencv_fisheye"

    def test_intrinsics_of_photos_in_another_size(self, tmp_path):
        builders.make_transforms(tmp_path, w=None, h=None, cx=1.5 * builders.WIDTH)
        (warning,) = load_scene(tmp_path).warnings
        assert f"principal point ({1.5 * builders.WIDTH:g} 34) of 7 of 7 cameras lies outside" in warning
        assert "state w and h" in warning


APPLIED = [[1, 0, 0, 0.5], [0, 0, 1, -2], [0, -1, 0, 3], [0, 0, 0, 1]]


class TestAppliedTransform:
    """The world transform starts before what the file says was applied to its world."""

    @pytest.mark.parametrize("matrix", [None, APPLIED[:3], APPLIED])
    @pytest.mark.parametrize("scale", [None, 0.25])
    def test_points_of_the_original_world(self, tmp_path, matrix, scale):
        plain = load_scene(builders.make_transforms(tmp_path / "plain"))
        scene = load_scene(builders.make_transforms(tmp_path / "x", applied_transform=matrix, applied_scale=scale))
        np.testing.assert_array_equal(scene.frames[0].camera_to_world, plain.frames[0].camera_to_world)
        original = np.array([1.0, -2.0, 0.7])
        rotation = np.eye(3, 4) if matrix is None else np.array(matrix, dtype=float)[:3]
        in_file = (scale or 1.0) * (rotation[:, :3] @ original + rotation[:, 3])
        expected = plain.world_scale * (plain.world_transform[:, :3] @ in_file + plain.world_transform[:, 3])
        found = scene.world_scale * (scene.world_transform[:, :3] @ original + scene.world_transform[:, 3])
        np.testing.assert_allclose(found, expected, rtol=1e-12)

    @pytest.mark.parametrize(
        "changes",
        [
            {"applied_transform": [[1, 0, 0]]},
            {"applied_transform": np.diag([2.0, 2, 2, 1]).tolist()},
            {"applied_transform": np.diag([1.0, 1, -1, 1]).tolist()},
            {"applied_scale": 0},
        ],
    )
    def test_what_is_no_similarity_is_left_out(self, tmp_path, changes):
        plain = load_scene(builders.make_transforms(tmp_path / "plain"))
        scene = load_scene(builders.make_transforms(tmp_path / "x", **changes))
        (warning,) = scene.warnings
        assert "transforms.json: applied_transform and applied_scale have no effect" in warning
        np.testing.assert_array_equal(scene.world_transform, plain.world_transform)


class TestPoints:
    HEADER = (
        "ply\nformat {kind} 1.0\nelement vertex {count}\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )

    def text(self, *lines):
        return (self.HEADER.format(kind="ascii", count=len(lines)) + "\n".join(lines) + "\n").encode()

    def load(self, tmp_path, content):
        root = builders.make_transforms(tmp_path, ply_file_path="points.ply")
        if content is not None:
            (root / "points.ply").write_bytes(content)
        return load_scene(root)

    def test_points_come_in_the_scenes_world(self, tmp_path):
        marker = " ".join(map(str, builders.MARKER))
        scene = self.load(tmp_path, self.text(f"{marker} 255 128 7", "0 0 0 1 2 3", "0 nan 0 9 9 9"))
        np.testing.assert_allclose(scene.points[0], builders.marker_in(scene), atol=1e-6)
        np.testing.assert_allclose(scene.points[1], scene.world_scale * scene.world_transform[:, 3], atol=1e-6)
        np.testing.assert_array_equal(scene.colors, [[255, 128, 7], [1, 2, 3]])
        assert scene.warnings == ()

    def test_binary_files(self, tmp_path):
        header = self.HEADER.format(kind="binary_little_endian", count=1).encode()
        scene = self.load(tmp_path, header + struct.pack("<fffBBB", *builders.MARKER, 4, 5, 6))
        np.testing.assert_allclose(scene.points[0], builders.marker_in(scene), atol=1e-6)
        np.testing.assert_array_equal(scene.colors, [[4, 5, 6]])

    def test_meshes_are_their_vertices(self, tmp_path):
        header = self.HEADER.format(kind="ascii", count=3).replace(
            "end_header", "element face 1\nproperty list uchar int vertex_indices\nend_header"
        )
        lines = ["0 0 0 10 20 30", "1 0 0 10 20 31", "0 1 0 10 20 32", "3 0 1 2"]
        scene = self.load(tmp_path, (header + "\n".join(lines) + "\n").encode())
        assert len(scene.points) == 3
        np.testing.assert_array_equal(scene.colors, [[10, 20, 30], [10, 20, 31], [10, 20, 32]])

    def test_points_of_a_blender_scene(self, tmp_path):
        root = builders.make_blender(tmp_path)
        builders.edit_json(root / "transforms_train.json", ply_file_path="points.ply")
        (root / "points.ply").write_bytes(self.text("1 2 3 4 5 6"))
        for split in ("train", "test"):
            scene = load_scene(root, split)
            np.testing.assert_array_equal(scene.points, [[1, 2, 3]])
            np.testing.assert_array_equal(scene.colors, [[4, 5, 6]])

    def test_without_colors_they_are_gray(self, tmp_path):
        lines = [line for line in self.text("0 0 1").decode().splitlines() if "uchar" not in line]
        scene = self.load(tmp_path, ("\n".join(lines) + "\n").encode())
        np.testing.assert_array_equal(scene.colors, [[128, 128, 128]])

    @pytest.mark.parametrize(("content", "remark"), [(None, "do not exist"), (b"none", "holds no points")])
    def test_a_scene_works_without_its_points(self, tmp_path, content, remark):
        scene = self.load(tmp_path, content if content is None else self.text())
        assert scene.points is None
        (warning,) = scene.warnings
        assert "points.ply" in warning
        assert remark in warning

    def test_damaged_files_are_named(self, tmp_path):
        with pytest.raises(SceneError, match=r"points\.ply: the points cannot be read .*ply_file_path"):
            self.load(tmp_path, self.text("0 0 0 1 2 3", "1 1 1 1 2 3")[:-14])


class TestPaths:
    @pytest.mark.parametrize(
        "listed", ["./images/003", "images/003", "images\\003.png", "images/003.jpg", "images/003.JPEG"]
    )
    def test_extension_and_slashes_are_forgiven(self, tmp_path, listed):
        builders.make_transforms(tmp_path)
        edit_frame(tmp_path, 3, file_path=listed)
        scene = load_scene(tmp_path)
        assert scene.warnings == ()
        assert tmp_path / "images" / "003.png" in {frame.image_path for frame in scene.frames}
        assert "images/003" in {frame.name for frame in scene.frames}

    def test_a_dot_in_an_extensionless_name(self, tmp_path):
        builders.make_transforms(tmp_path)
        (tmp_path / "images" / "003.png").rename(tmp_path / "images" / "frame_1.5.png")
        edit_frame(tmp_path, 3, file_path="images/frame_1.5")
        assert only_frame(tmp_path, "frame_1.5.png").name == "images/frame_1.5"

    def test_images_in_another_folder(self, tmp_path):
        builders.make_transforms(tmp_path / "scene")
        (tmp_path / "scene" / "images").rename(tmp_path / "photos")
        meta = json.loads((tmp_path / "scene" / "transforms.json").read_text())
        for index, frame in enumerate(meta["frames"]):
            name = f"photos/{index:03d}.png"
            frame["file_path"] = f"../{name}" if index % 2 else str(tmp_path / name)
        builders.write_json(tmp_path / "scene" / "transforms.json", meta)
        scene = load_scene(tmp_path / "scene")
        assert len(scene.frames) + len(load_scene(tmp_path / "scene", "test").frames) == 9

    def test_missing_images_are_left_out_with_one_remark(self, tmp_path):
        builders.make_transforms(tmp_path)
        for index in (0, 2, 4, 6, 7):
            (tmp_path / "images" / f"{index:03d}.png").unlink()
        train, test = load_scene(tmp_path), load_scene(tmp_path, "test")
        names = [frame.name for frame in (*test.frames, *train.frames)]
        assert names == ["images/001", "images/003", "images/005", "images/008"]
        (warning,) = train.warnings
        assert (
            "5 of the 9 images it lists do not exist (images/000.png, images/002.png, images/004.png, ...)" in warning
        )
        assert str(tmp_path / "transforms.json") in warning

    def test_no_image_at_all(self, tmp_path):
        builders.make_transforms(tmp_path)
        (tmp_path / "images").rename(tmp_path / "photos")
        with pytest.raises(SceneError, match=r"transforms\.json: none of the 9 images it lists exists"):
            load_scene(tmp_path)

    def test_an_image_of_another_kind(self, tmp_path):
        builders.make_transforms(tmp_path)
        (tmp_path / "images" / "003.png").unlink()
        builders.edit_frame(tmp_path / "transforms.json", 3, file_path="images/003.tif")
        Image.new("RGB", (96, 72)).save(tmp_path / "images" / "003.tif")
        with pytest.raises(SceneError, match=r"images/003\.tif: listed in transforms\.json, but not a \.png"):
            load_scene(tmp_path)


class TestSplits:
    def names(self, *indices):
        return [f"images/{index:03d}.png" for index in indices]

    def loaded(self, root, split):
        return [frame.image_path.relative_to(root).as_posix() for frame in load_scene(root, split).frames]

    def test_explicit_lists(self, tmp_path):
        lists = {
            "train_filenames": self.names(5, 1, 2),
            "val_filenames": ["./images/003.png"],
            "test_filenames": self.names(3, 8),
        }
        builders.make_transforms(tmp_path, **lists)
        assert self.loaded(tmp_path, "train") == self.names(1, 2, 5)
        assert self.loaded(tmp_path, "val") == self.names(3)
        assert self.loaded(tmp_path, "test") == self.names(3, 8)

    def test_one_list_serves_for_val_and_test(self, tmp_path):
        builders.make_transforms(tmp_path, train_filenames=self.names(1, 2), val_filenames=self.names(3))
        scene = load_scene(tmp_path, "test")
        assert self.loaded(tmp_path, "test") == self.names(3)
        assert "test_filenames is missing" in scene.warnings[0]
        assert "val_filenames is used" in scene.warnings[0]

    def test_a_missing_list_is_named(self, tmp_path):
        builders.make_transforms(tmp_path, val_filenames=self.names(3))
        with pytest.raises(SceneError, match="train_filenames is missing"):
            load_scene(tmp_path, "train")

    def test_an_empty_list(self, tmp_path):
        builders.make_transforms(tmp_path, train_filenames=[], val_filenames=self.names(3))
        with pytest.raises(SceneError, match=r"transforms\.json: no frame is left for the train split"):
            load_scene(tmp_path, "train")

    def test_null_and_empty_lists_are_as_good_as_none(self, tmp_path):
        lists = {"train_filenames": self.names(1, 2), "val_filenames": [], "test_filenames": self.names(3)}
        builders.make_transforms(tmp_path, **lists)
        assert self.loaded(tmp_path, "val") == self.names(3)
        edit(tmp_path, val_filenames=None)
        assert self.loaded(tmp_path, "val") == self.names(3)
        edit(tmp_path, train_filenames=None, test_filenames=None)
        assert len(self.loaded(tmp_path, "train")) == 7

    def test_photos_that_are_held_out_and_trained_on_are_told(self, tmp_path):
        builders.make_transforms(tmp_path, train_filenames=self.names(1, 2, 3), test_filenames=self.names(3, 4))
        (warning,) = load_scene(tmp_path, "test").warnings
        assert "test_filenames: 1 of its 2 photos are training photos too (the first is 'images/003.png')" in warning
        assert load_scene(tmp_path, "train").warnings == ()

    def test_names_without_extension(self, tmp_path):
        builders.make_transforms(
            tmp_path, train_filenames=["images/001", "./images/002"], test_filenames=["images/003"]
        )
        assert self.loaded(tmp_path, "train") == self.names(1, 2)

    def test_an_unknown_name(self, tmp_path):
        builders.make_transforms(tmp_path, train_filenames=["images/999.png"])
        with pytest.raises(SceneError, match=r"train_filenames\[0\]: no frame has the file_path 'images/999.png'"):
            load_scene(tmp_path)

    def test_a_single_photo_leaves_nothing_to_train_on(self, tmp_path):
        builders.make_transforms(tmp_path, count=1)
        with pytest.raises(SceneError, match="no frame is left for the train split, of 1 listed"):
            load_scene(tmp_path)

    def test_interval(self, tmp_path):
        builders.make_transforms(tmp_path)
        test = load_scene(tmp_path, "test", eval_interval=3)
        assert [frame.image_path.stem for frame in test.frames] == ["000", "003", "006"]


BAD_FILE = [
    ({"frames": None}, r"transforms\.json: frames: expected a non-empty list"),
    ({"frames": []}, r"frames: expected a non-empty list, found \[\]"),
    ({"frames": [7]}, r"frames\[0\]: expected a JSON object"),
    ({"fl_x": "90"}, r"frames\[0\] \('images/000'\): fl_x: expected a number, found '90'"),
    ({"fl_x": -90}, r"fl_x: must be positive, found -90"),
    ({"fl_x": 1e300}, r"fl_x: expected a finite number"),
    ({"fl_x": True}, r"fl_x: expected a number, found True"),
    ({"cx": float("nan")}, r"cx: expected a finite number, found nan"),
    ({"w": 96.5}, r"w: must be a whole number of pixels"),
    ({"w": 0}, r"w: must be a whole number of pixels"),
    ({"h": None}, r"w and h, the image size in pixels, must be stated together"),
    ({"k1": [0.1]}, r"k1: expected a number, found \[0\.1\]"),
    ({"distortion_params": [1, 2]}, r"distortion_params must be \[k1, k2, k3, k4, p1, p2\]"),
    ({"camera_model": "EQUIRECTANGULAR"}, r"camera_model 'EQUIRECTANGULAR' is not supported; supported are"),
    ({"camera_model": ["PINHOLE"]}, r"camera_model \['PINHOLE'\] is not supported"),
    ({"fl_x": None, "fl_y": None}, r"the focal length is missing; state fl_x"),
    ({"fl_x": None, "fl_y": None, "camera_angle_x": 40}, r"camera_angle_x is an angle in radians below pi"),
    ({"train_filenames": "images"}, r"train_filenames: expected a list"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FILE)
def test_malformed_values_are_named(tmp_path, changes, message):
    builders.make_transforms(tmp_path)
    path = tmp_path / "transforms.json"
    # None stands for null in the file, which counts as absent.
    builders.edit_json(path, **changes)
    with pytest.raises(SceneError, match=message) as error:
        load_scene(tmp_path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def pose_with(change):
    pose = np.array(builders.square(builders.arc_poses(9)[4]))
    change(pose)
    return pose.tolist()


def scaled(pose):
    pose[:3, :3] *= 1.5


def sheared(pose):
    pose[0, 1] += 0.3


def mirrored(pose):
    pose[:3, 0] *= -1


def projective(pose):
    pose[3] = [0, 0, 1, 1]


def far_away(pose):
    pose[0, 3] = 1e12


BAD_POSES = {
    "missing": (None, "expected a non-empty list, found None"),
    "text": ("identity", "expected a non-empty list, found 'identity'"),
    "flat": ([1.0] * 16, r"\[0\]: expected a non-empty list, found 1.0"),
    "short": ([[1, 0, 0, 0], [0, 1, 0, 0]], "expected a 3 x 4 or 4 x 4 matrix"),
    "ragged": ([[1, 0, 0, 0], [0, 1, 0], [0, 0, 1, 0]], "expected a 3 x 4 or 4 x 4 matrix"),
    "nan": (
        [[1, 0, 0, math.nan], [0, 1, 0, 0], [0, 0, 1, 0]],
        r"\[0\]\[3\]: expected a finite number, found nan",
    ),
    "word": ([[1, 0, 0, 0], [0, "1", 0, 0], [0, 0, 1, 0]], r"\[1\]\[1\]: expected a number, found '1'"),
    "scaled": (pose_with(scaled), r"not rigid: R\^T R differs from the identity by 1\.25"),
    "sheared": (pose_with(sheared), "not rigid"),
    "mirrored": (pose_with(mirrored), "mirrored"),
    "projective": (pose_with(projective), r"last row .* must be 0 0 0 1, found \[0\.0, 0\.0, 1\.0, 1\.0\]"),
    "far": (pose_with(far_away), "implausibly large"),
    "zero": (np.zeros((4, 4)).tolist(), "last row"),
}


@pytest.mark.parametrize(("pose", "message"), BAD_POSES.values(), ids=BAD_POSES.keys())
def test_bad_poses_name_file_and_frame(tmp_path, pose, message):
    builders.make_transforms(tmp_path)
    edit_frame(tmp_path, 4, transform_matrix=pose)
    with pytest.raises(SceneError, match=message) as error:
        load_scene(tmp_path)
    assert f"{tmp_path / 'transforms.json'}: frames[4] ('images/004').transform_matrix" in str(error.value)


def test_a_3_by_4_matrix_will_do(tmp_path):
    builders.make_transforms(tmp_path)
    before = load_scene(tmp_path).frames[3].camera_to_world
    edit_frame(tmp_path, 4, transform_matrix=builders.arc_poses(9)[4].tolist())
    np.testing.assert_array_equal(load_scene(tmp_path).frames[3].camera_to_world, before)


def test_rounded_rotations_are_made_exact(tmp_path):
    builders.make_transforms(tmp_path)
    edit_frame(tmp_path, 4, transform_matrix=np.round(builders.square(builders.arc_poses(9)[4]), 3).tolist())
    rotation = load_scene(tmp_path).frames[3].camera_to_world[:, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("value", [None, 3, "", " ", ".", "a\0b", ["images/000.png"], "\ud800"])
def test_bad_paths_name_the_frame(tmp_path, value):
    builders.make_transforms(tmp_path)
    edit_frame(tmp_path, 2, file_path=value)
    with pytest.raises(SceneError, match=r"frames\[2\]\.file_path: ") as error:
        load_scene(tmp_path)
    str(error.value).encode()


def test_a_photo_listed_twice(tmp_path):
    builders.make_transforms(tmp_path)
    edit_frame(tmp_path, 5, file_path="./images/001.png")
    with pytest.raises(SceneError, match=r"frames\[5\]\.file_path: 'images/001\.png' is already listed by frames\[1\]"):
        load_scene(tmp_path)


@pytest.mark.parametrize("name", ["images/001", "images/001.jpg", "images/link.png"])
def test_a_photo_listed_twice_under_different_names(tmp_path, name):
    builders.make_transforms(tmp_path)
    (tmp_path / "images" / "link.png").symlink_to("001.png")
    edit_frame(tmp_path, 5, file_path=name)
    with pytest.raises(
        SceneError, match=rf"frames\[5\]\.file_path: '{name}' is already listed by frames\[1\] as 'images/001\.png'"
    ):
        load_scene(tmp_path)


def test_a_missing_photo_listed_twice(tmp_path):
    builders.make_transforms(tmp_path)
    for index in (3, 5):
        edit_frame(tmp_path, index, file_path="images/none.png")
    with pytest.raises(SceneError, match=r"'images/none\.png' is already listed by frames\[3\];"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON at line 1, column 1"),
        (b'{"frames": [\n  {"file_path": "a"', r"not valid JSON at line 2, column 20"),
        (b'{"frames": }', "not valid JSON at line 1, column 12"),
        (b"[]", r"line 1, column 1: expected a JSON object"),
        (b"\xff\xd8\xff\xe0", "byte 0 is not UTF-8 text"),
        (b'{"w": "\xe9"}', "byte 7 is not UTF-8 text"),
        (b"[" * 100_000, "not a usable JSON file"),
        (b'{"fl_x": ' + b"1" * 10_000 + b"}", "transforms.json: "),
    ],
    ids=["empty", "truncated", "no-value", "list", "jpeg", "latin-1", "nested", "long-number"],
)
def test_what_is_not_json_is_located(tmp_path, content, message):
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(SceneError, match=message) as error:
        load_scene(tmp_path)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_accepted(tmp_path):
    builders.make_transforms(tmp_path)
    path = tmp_path / "transforms.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_scene(tmp_path).frames) == 7
