from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene
from tests.scenes import builders


def forward_poses(count=12):
    """Cameras on a small grid that all look in the same direction."""
    x, y = np.meshgrid(np.linspace(-0.4, 0.4, count // 3), np.linspace(-0.3, 0.3, 3))
    base = builders.arc_poses(1)[0]
    poses = np.repeat(base[None], x.size, axis=0)
    poses[:, :, 3] += x.reshape(-1, 1) * base[:, 0] + y.reshape(-1, 1) * base[:, 1]
    return poses


def rows_of(root):
    return np.load(root / "poses_bounds.npy")


def test_forward_facing_scenes_begin_at_distance_one(tmp_path):
    scene = load_scene(builders.make_llff(tmp_path, poses=forward_poses()))
    test = load_scene(tmp_path, "test")
    poses = np.array([frame.camera_to_world for frame in scene.frames + test.frames])
    np.testing.assert_allclose(poses[:, :, 3].mean(axis=0), 0, atol=1e-12)
    near = rows_of(tmp_path)[:, 15].min()
    assert scene.world_scale == pytest.approx(1 / near)
    assert 0.8 < scene.near < 1.0
    assert np.abs(poses[:, :, 3]).max() < 0.5


def test_a_wide_baseline_still_fits_the_unit_box(tmp_path):
    builders.make_llff(tmp_path, poses=forward_poses())
    rows = rows_of(tmp_path)
    rows[:, 15] = 0.01
    np.save(tmp_path / "poses_bounds.npy", rows)
    scene = load_scene(tmp_path)
    assert max(np.abs(frame.camera_to_world[:, 3]).max() for frame in scene.frames) <= 1.0


def test_range_covers_the_bounds_in_the_corners_too(tmp_path):
    builders.make_llff(tmp_path, poses=forward_poses())
    scene = load_scene(tmp_path)
    near, far = rows_of(tmp_path)[:, 15].min(), rows_of(tmp_path)[:, 16].max()
    frame = scene.frames[0]
    corner = np.linalg.norm([frame.width / 2 / frame.fx, frame.height / 2 / frame.fy, 1.0])
    assert scene.near <= near * scene.world_scale
    assert far * scene.world_scale * corner <= scene.far < 1.5 * far * scene.world_scale * corner


def test_inward_facing_scenes_are_centered_on_what_they_circle(tmp_path):
    scene = load_scene(builders.make_llff(tmp_path))
    assert np.linalg.norm(builders.marker_in(scene)) < 0.1
    assert scene.near == pytest.approx(0.9 * rows_of(tmp_path)[:, 15].min() * scene.world_scale)


def test_center_can_be_chosen(tmp_path):
    builders.make_llff(tmp_path)
    scene = load_scene(tmp_path, center="poses", orientation="none", eval_interval=100)
    mean = builders.arc_poses(9)[:, :, 3].mean(axis=0)
    np.testing.assert_allclose(scene.world_transform, np.c_[np.eye(3), -mean], atol=1e-12)
    scene = load_scene(tmp_path, center="none", orientation="none")
    np.testing.assert_allclose(scene.world_transform, np.eye(3, 4), atol=1e-12)


def test_only_a_reduced_folder_was_shipped(tmp_path):
    builders.make_llff(tmp_path)
    builders.draw_all(tmp_path / "images_4", builders.arc_poses(9), factor=4)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    scene = load_scene(tmp_path)
    frame = scene.frames[0]
    assert frame.image_path.parent.name == "images_4"
    assert (frame.width, frame.height, frame.fx) == (
        builders.WIDTH // 4,
        builders.HEIGHT // 4,
        builders.FX / 4,
    )
    (warning,) = scene.warnings
    assert "4 times smaller than poses_bounds.npy states" in warning
    asked = load_scene(tmp_path, downscale=4)
    assert asked.warnings == ()
    assert (asked.frames[0].width, asked.frames[0].downscale) == (frame.width, 1)
    assert load_scene(tmp_path, downscale=8).frames[0].downscale == 2
    with pytest.raises(SceneError, match="already 4 times smaller than stated; choose a multiple of 4"):
        load_scene(tmp_path, downscale=6)


def test_reduced_copies_are_paired_by_order(tmp_path):
    # In the published scenes, the reduced copy of IMG_4026.JPG is named image000.png.
    builders.make_llff(tmp_path)
    builders.draw_all(tmp_path / "images_4", builders.arc_poses(9), factor=4)
    for path in (tmp_path / "images_4").iterdir():
        path.rename(path.with_name(f"image{path.name}"))
    frame = load_scene(tmp_path, downscale=4).frames[2]
    assert frame.image_path == tmp_path / "images_4" / "image003.png"
    assert frame.name == "images/003"


def test_a_wrong_number_of_images(tmp_path):
    builders.make_llff(tmp_path)
    (tmp_path / "images" / "004.png").unlink()
    with pytest.raises(SceneError, match=r"images: holds 8 images, but poses_bounds\.npy has 9 rows"):
        load_scene(tmp_path)


def test_no_images(tmp_path):
    builders.make_llff(tmp_path)
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(SceneError, match="no images found; looked in images, images_2"):
        load_scene(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_numeric_array_will_do(tmp_path, dtype, order):
    builders.make_llff(tmp_path)
    before = load_scene(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.asarray(rows_of(tmp_path), dtype=dtype, order=order))
    after = load_scene(tmp_path)
    for a, b in zip(before.frames, after.frames, strict=True):
        np.testing.assert_allclose(a.camera_to_world, b.camera_to_world, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, np.nan, r"row 5 \(images/005\.png\): the pose contains NaN or infinity"),
        (0, 3.0, r"row 5 \(images/005\.png\): the pose is not rigid"),
        (4, -1.0, r"row 5 .*height: must be a whole number of pixels"),
        (9, 96.5, r"row 5 .*width: must be a whole number of pixels"),
        (14, 0.0, r"row 5 .*focal length: must be positive, found 0\.0"),
        (15, -2.0, r"row 5 .*near bound: must be positive"),
        (16, 0.5, r"row 5 .*the far bound 0\.5 is not beyond the near bound"),
        (16, np.inf, r"row 5 .*far bound: expected a finite number, found inf"),
    ],
)
def test_bad_rows_name_the_image(tmp_path, column, value, message):
    rows = rows_of(builders.make_llff(tmp_path))
    rows[5, column] = value
    np.save(tmp_path / "poses_bounds.npy", rows)
    with pytest.raises(SceneError, match=message):
        load_scene(tmp_path)


def test_poses_in_another_axis_convention(tmp_path):
    rows = rows_of(builders.make_llff(tmp_path))
    rows[:, [0, 5, 10]] *= -1
    np.save(tmp_path / "poses_bounds.npy", rows)
    with pytest.raises(SceneError, match=r"row 0 .*the pose is mirrored"):
        load_scene(tmp_path)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def claiming(rows):
    """A header that declares `rows` rows, followed by a single row."""
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (rows, 17)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(17 * 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header is malformed near byte 0"),
        (b"PK\x03\x04" + b"\0" * 100, "header is malformed near byte"),
        (npy(np.zeros((9, 17)))[:40], "header is malformed near byte"),
        (npy(np.zeros((9, 17))).replace(b"'descr'", b"'de\xffcr'"), "header is malformed near byte"),
        (npy(np.zeros((9, 17)))[:-1], r"9 rows take 1224 bytes from byte 128 on, but the file has 1223"),
        (npy(np.zeros((9, 17))) + b"x", r"9 rows take 1224 bytes from byte 128 on, but the file has 1225"),
        (claiming(10**12), r"1000000000000 rows take 136000000000000 bytes from byte 128 on"),
        (
            npy(np.zeros((9, 15))),
            r"expected numbers of shape \[images, 17\], found float64 of shape \[9, 15\]",
        ),
        (npy(np.zeros(17)), r"found float64 of shape \[17\]"),
        (npy(np.zeros((0, 17))), r"of shape \[0, 17\]"),
        (npy(np.array([["a"] * 17])), r"found <U1 of shape \[1, 17\]"),
        (npy(np.array([{"a": 1}]), allow_pickle=True), "found object of shape"),
    ],
    ids=[
        "empty",
        "zip",
        "cut-header",
        "bad-header",
        "short",
        "long",
        "huge",
        "15-columns",
        "one-dimension",
        "no-rows",
        "text",
        "pickle",
    ],
)
def test_damaged_arrays_are_located(tmp_path, data, message):
    builders.make_llff(tmp_path)
    (tmp_path / "poses_bounds.npy").write_bytes(data)
    with pytest.raises(SceneError, match=message) as error:
        load_scene(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "poses_bounds.npy"))


def test_images_of_another_size(tmp_path):
    builders.make_llff(tmp_path)
    Image.new("RGB", (100, 72)).save(tmp_path / "images" / "003.png")
    with pytest.raises(
        SceneError, match=r"003\.png: the image is 100 x 72 pixels, but .*poses_bounds\.npy states 96 x 72"
    ):
        load_scene(tmp_path)
