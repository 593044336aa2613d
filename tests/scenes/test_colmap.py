"""COLMAP models, binary and text: equal results, and errors are located by byte offset or line."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene
from eugen_nerf.scenes.colmap import read_model
from tests.scenes import builders

SHARED_SIZE = f"{builders.WIDTH} {builders.HEIGHT}"


@pytest.fixture
def binary(tmp_path):
    return builders.make_colmap_binary(tmp_path)


@pytest.fixture
def text(tmp_path):
    return builders.make_colmap_text(tmp_path)


def model_file(root, name):
    return root / "sparse" / "0" / name


def assert_scenes_equal(a, b):
    assert [frame.image_path.name for frame in a.frames] == [frame.image_path.name for frame in b.frames]
    for x, y in zip(a.frames, b.frames, strict=True):
        np.testing.assert_allclose(x.camera_to_world, y.camera_to_world, atol=1e-9)
        assert (x.fx, x.fy, x.cx, x.cy, x.distortion) == (y.fx, y.fy, y.cx, y.cy, y.distortion)
    np.testing.assert_allclose(a.points, b.points, atol=1e-9)
    np.testing.assert_array_equal(a.colors, b.colors)


def test_text_and_binary_models_agree(tmp_path):
    binary = load_scene(builders.make_colmap_binary(tmp_path / "binary"))
    text = load_scene(builders.make_colmap_text(tmp_path / "text"))
    assert_scenes_equal(binary, text)


def test_points_are_returned_in_the_scenes_world(binary):
    scene = load_scene(binary)
    np.testing.assert_allclose(scene.points[0], builders.marker_in(scene), atol=1e-12)
    origin = scene.world_scale * scene.world_transform[:, 3]
    np.testing.assert_allclose(scene.points[1], origin, atol=1e-12)
    np.testing.assert_array_equal(scene.colors, [[255, 128, 7], [1, 2, 3]])


def test_masks_beside_the_photos(text):
    """Named as COLMAP's feature extraction requires, or like the photos."""
    for name in ("001.png.png", "002.png", "009.png"):
        (text / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((builders.HEIGHT, builders.WIDTH), 255, dtype=np.uint8)).save(text / "masks" / name)
    scene = load_scene(text)
    found = {frame.image_path.name: frame.mask_path.name for frame in scene.frames if frame.mask_path is not None}
    assert found == {"001.png": "001.png.png", "002.png": "002.png"}
    assert any("masks: has masks of 2 of 9 photos" in warning for warning in scene.warnings)
    for file in (text / "masks").iterdir():
        file.rename(file.with_suffix(".tif"))
    assert any("0 of 9 photos; dark pixels are not trained on; expected 000.png.png" in w
               for w in load_scene(text).warnings)  # fmt: skip


@pytest.mark.parametrize("name", ["points3D.bin", "points3D.txt"])
def test_points_are_optional(tmp_path, name):
    make = builders.make_colmap_binary if name.endswith("bin") else builders.make_colmap_text
    model_file(make(tmp_path), name).unlink()
    scene = load_scene(tmp_path)
    assert scene.points is None
    assert scene.colors is None


def test_an_empty_point_cloud_is_fine(text):
    model_file(text, "points3D.txt").write_text("# none\n")
    assert load_scene(text).points.shape == (0, 3)


MODELS = [
    # model, its number, parameters, (fx, fy, cx, cy), distortion, camera model
    ("SIMPLE_PINHOLE", 0, [90, 48, 36], (90, 90, 48, 36), (0, 0, 0, 0, 0, 0), "pinhole"),
    ("PINHOLE", 1, [90, 80, 48, 36], (90, 80, 48, 36), (0, 0, 0, 0, 0, 0), "pinhole"),
    ("SIMPLE_RADIAL", 2, [90, 48, 36, 0.1], (90, 90, 48, 36), (0.1, 0, 0, 0, 0, 0), "opencv"),
    ("RADIAL", 3, [90, 48, 36, 0.1, 0.2], (90, 90, 48, 36), (0.1, 0.2, 0, 0, 0, 0), "opencv"),
    ("RADIAL", 3, [90, 48, 36, 0, 0], (90, 90, 48, 36), (0, 0, 0, 0, 0, 0), "pinhole"),
    (
        "OPENCV",
        4,
        [90, 80, 48, 36, 0.1, 0.2, 0.3, 0.4],
        (90, 80, 48, 36),
        (0.1, 0.2, 0, 0, 0.3, 0.4),
        "opencv",
    ),
    (
        "OPENCV_FISHEYE",
        5,
        [90, 80, 48, 36, 0.1, 0.2, 0.3, 0.4],
        (90, 80, 48, 36),
        (0.1, 0.2, 0.3, 0.4, 0, 0),
        "opencv_fisheye",
    ),
]


@pytest.mark.parametrize(("name", "number", "params", "pixels", "distortion", "kind"), MODELS)
@pytest.mark.parametrize("extension", [".bin", ".txt"])
def test_camera_models(tmp_path, extension, name, number, params, pixels, distortion, kind):
    if extension == ".bin":
        builders.make_colmap_binary(tmp_path)
        record = builders.camera_record(1, number, params)
        model_file(tmp_path, "cameras.bin").write_bytes(builders.counted([record]))
    else:
        builders.make_colmap_text(tmp_path)
        line = f"1 {name} {SHARED_SIZE} {' '.join(map(str, params))}\n"
        model_file(tmp_path, "cameras.txt").write_text(line)
    frame = load_scene(tmp_path).frames[0]
    assert (frame.fx, frame.fy, frame.cx, frame.cy) == pixels
    assert frame.distortion == distortion
    assert frame.camera_model == kind


@pytest.mark.parametrize(("name", "number"), [("FULL_OPENCV", 6), ("FOV", 7), ("RADIAL_FISHEYE", 9), ("number 77", 77)])
def test_other_models_name_the_camera_and_the_remedy(binary, name, number):
    records = [builders.camera_record(1, 0, [90, 48, 36]), builders.camera_record(23, number, [1.0] * 12)]
    model_file(binary, "cameras.bin").write_bytes(builders.counted(records))
    with pytest.raises(SceneError, match=rf"camera 23 uses the model {name}; supported are SIMPLE_PINHOLE") as error:
        load_scene(binary)
    assert "colmap image_undistorter" in str(error.value)
    assert "cameras.bin: byte 56" in str(error.value)


def test_other_models_in_text(text):
    model_file(text, "cameras.txt").write_text("# c\n\n4 THIN_PRISM_FISHEYE 96 72 1 1 1 1 0 0 0 0 0 0 0 0\n")
    with pytest.raises(SceneError, match=r"cameras\.txt: line 3: camera 4 uses the model THIN_PRISM_FISHEYE"):
        load_scene(text)


def test_each_image_may_have_its_own_camera(binary):
    cameras = [builders.camera_record(i, 0, [80.0 + i, 48, 36]) for i in range(1, 10)]
    images = [
        builders.image_record(i + 1, pose, 9 - i, builders.image_name(i))
        for i, pose in enumerate(builders.arc_poses(9))
    ]
    model_file(binary, "cameras.bin").write_bytes(builders.counted(cameras))
    model_file(binary, "images.bin").write_bytes(builders.counted(images))
    frames = load_scene(binary).frames
    assert [frame.fx for frame in frames] == [89.0 - int(frame.image_path.stem) for frame in frames]


def test_names_with_folders_and_spaces(text):
    path = model_file(text, "images.txt")
    path.write_text(path.read_text().replace("003.png", "left eye/my photo.png"))
    (text / "images" / "left eye").mkdir()
    (text / "images" / "003.png").rename(text / "images" / "left eye" / "my photo.png")
    scene = load_scene(text, "test", eval_interval=2)
    assert scene.frames[-1].name == "images/left eye/my photo"
    assert scene.warnings == ()


def test_missing_photos_are_left_out_with_a_remark(binary):
    (binary / "images" / "004.png").unlink()
    (warning,) = load_scene(binary).warnings
    assert "images.bin: 1 of the 9 images it lists do not exist (images/004.png)" in warning


def test_no_photos_at_all(binary):
    (binary / "images").rename(binary / "photos")
    with pytest.raises(SceneError, match="the COLMAP model has no photos next to it; expected them in"):
        load_scene(binary)


def test_several_models_cause_a_remark(binary):
    folder = binary / "sparse"
    (folder / "1").mkdir()
    for path in (folder / "0").iterdir():
        (folder / "1" / path.name).write_bytes(path.read_bytes())
    (warning,) = load_scene(binary).warnings
    assert "several partial models" in warning


def test_binary_files_win_over_text_as_in_colmap(binary):
    for name in ("cameras.txt", "images.txt"):
        model_file(binary, name).write_text("damaged")
    assert len(load_scene(binary).frames) == 7


def poses9():
    return builders.arc_poses(9)


def image(identifier=1, camera=1, name="000.png", pose=None, observations=0):
    return builders.image_record(identifier, poses9()[0] if pose is None else pose, camera, name, observations)


def with_quaternion(scale):
    record = bytearray(image())
    values = struct.unpack_from("<4d", record, 4)
    struct.pack_into("<4d", record, 4, *(scale * x for x in values))
    return bytes(record)


def camera(identifier=1, number=0, params=(90, 48, 36), size=(96, 72)):
    return builders.camera_record(identifier, number, list(params), size)


BAD_BINARY = {
    "empty": ("images.bin", b"", r"byte 0: the number of images takes 8 bytes, but the file ends after 0"),
    "huge-count": ("images.bin", b"\xff" * 8 + image(), r"byte 0: claims 18446744073709551615 images"),
    "count-too-large": ("images.bin", struct.pack("<Q", 3) + image(), r"byte 0: claims 3 images"),
    "trailing": (
        "images.bin",
        builders.counted([image()]) + b"xy",
        r"byte 88: 2 bytes are left after the last",
    ),
    "no-name-end": (
        "images.bin",
        struct.pack("<Q", 1) + image()[:68] + b"x" * 30,
        r"byte 72: the name of image 1",
    ),
    "name-not-text": (
        "images.bin",
        builders.counted([image()[:64] + b"ab\xff\xfe\0" + struct.pack("<Q", 0)]),
        r"byte 74: the name of image 1 is not UTF-8",
    ),
    "empty-name": ("images.bin", builders.counted([image(name="")]), "image name: expected a file path"),
    "huge-observations": (
        "images.bin",
        builders.counted([image()[:-8] + struct.pack("<Q", 2**40)]),
        r"byte 80: claims 1099511627776 observations of '000\.png'",
    ),
    "duplicate-image": (
        "images.bin",
        builders.counted([image(), image()]),
        r"byte 88: the image id 1 appears twice",
    ),
    "duplicate-name": (
        "images.bin",
        builders.counted([image(1), image(2)]),
        r"byte 88 \(000\.png\): the same image is already listed at .*byte 8",
    ),
    "unknown-camera": (
        "images.bin",
        builders.counted([image(camera=5)]),
        r"byte 8 \(000\.png\): refers to camera 5, which",
    ),
    "no-images": ("images.bin", builders.counted([]), "lists no images; the reconstruction registered none"),
    "zero-quaternion": (
        "images.bin",
        builders.counted([with_quaternion(0)]),
        r"quaternion .* has length 0, not 1",
    ),
    "long-quaternion": ("images.bin", builders.counted([with_quaternion(1.5)]), "has length 1.5, not 1"),
    "nan-quaternion": (
        "images.bin",
        builders.counted([with_quaternion(float("nan"))]),
        r"\(000\.png\): rotation: expected a finite number",
    ),
    "cut-camera": (
        "cameras.bin",
        builders.counted([camera()])[:-1],
        r"byte 32: the parameters of camera 1 takes",
    ),
    "duplicate-camera": (
        "cameras.bin",
        builders.counted([camera(), camera()]),
        r"byte 56: the camera id 1 appears",
    ),
    "negative-focal": (
        "cameras.bin",
        builders.counted([camera(params=(-90, 48, 36))]),
        r"byte 8 \(camera 1, SIMPLE_PINHOLE\): focal length: must be positive, found -90",
    ),
    "nan-center": (
        "cameras.bin",
        builders.counted([camera(params=(90, float("nan"), 36))]),
        "cx: expected a finite number, found nan",
    ),
    "zero-size": (
        "cameras.bin",
        builders.counted([camera(size=(0, 72))]),
        "width: must be a whole number of pixels",
    ),
    "huge-size": (
        "cameras.bin",
        builders.counted([camera(size=(2**63, 72))]),
        "width: expected a finite number",
    ),
    "cut-point": (
        "points3D.bin",
        struct.pack("<Q", 1) + b"\0" * 50,
        r"byte 0: claims 1 points, more than the 50 bytes",
    ),
    "nan-point": (
        "points3D.bin",
        builders.counted([builders.point_record(8, [np.nan, 0, 0], (0, 0, 0))]),
        r"byte 8: point 8 is at \(nan 0 0\)",
    ),
    "duplicate-point": (
        "points3D.bin",
        builders.counted(2 * [builders.point_record(8, [0, 0, 0], (0, 0, 0), 0)]),
        r"byte 59: the point id 8 appears twice",
    ),
    "huge-track": (
        "points3D.bin",
        builders.counted([builders.point_record(8, [0, 0, 0], (0, 0, 0), 0)[:-8] + b"\xff" * 8]),
        r"byte 59: the track of point 8 takes",
    ),
}


@pytest.mark.parametrize(("name", "data", "message"), BAD_BINARY.values(), ids=BAD_BINARY.keys())
def test_damaged_binary_files_are_located(binary, name, data, message):
    model_file(binary, name).write_bytes(data)
    with pytest.raises(SceneError, match=message) as error:
        load_scene(binary)
    assert str(model_file(binary, name)) in str(error.value)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_truncation_of_a_binary_file_is_noticed(binary, name):
    path = model_file(binary, name)
    data = path.read_bytes()
    # Every length of a short file, and a sample of the lengths of a longer one.
    for length in range(0, len(data), 1 + len(data) // 150):
        path.write_bytes(data[:length])
        with pytest.raises(SceneError, match=rf"{name}: byte \d+"):
            read_model(path.parent)


CAMERA_LINE = f"1 SIMPLE_PINHOLE {SHARED_SIZE} 90 48 36"
IMAGE_LINE = "1 1 0 0 0 0 0 0 1 000.png"

BAD_TEXT = {
    "short-camera": (
        "cameras.txt",
        "1 PINHOLE 96\n",
        r"line 1: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS",
    ),
    "few-params": (
        "cameras.txt",
        f"1 PINHOLE {SHARED_SIZE} 90 48 36",
        r"expected the parameters fx fy cx cy, found 3",
    ),
    "word": (
        "cameras.txt",
        f"#\n{CAMERA_LINE.replace('90', 'abc')}",
        r"line 2: PARAMS must be numbers, found",
    ),
    "negative-width": (
        "cameras.txt",
        CAMERA_LINE.replace("96", "-96"),
        "WIDTH must be a whole number, found '-96'",
    ),
    "infinite-focal": (
        "cameras.txt",
        CAMERA_LINE.replace("90", "inf"),
        "f: expected a finite number, found inf",
    ),
    "negative-focal": (
        "cameras.txt",
        CAMERA_LINE.replace("90", "-9"),
        "focal length: must be positive, found -9",
    ),
    "duplicate-camera": (
        "cameras.txt",
        f"{CAMERA_LINE}\n{CAMERA_LINE}\n",
        "line 2: the camera id 1 appears twice",
    ),
    "not-text": ("cameras.txt", "1 PINHOLE \udcff", "byte 10 is not UTF-8 text"),
    "short-image": ("images.txt", "1 1 0 0 0 0 0 0 1\n\n", r"line 1: expected IMAGE_ID QW QX"),
    "no-observation-lines": (
        "images.txt",
        f"{IMAGE_LINE}\n{IMAGE_LINE.replace('1 1 0', '2 1 0')}\n",
        r"line 2: expected the observations of the image above",
    ),
    "observations-not-numbers": (
        "images.txt",
        f"{IMAGE_LINE}\n1 2 x\n",
        "line 2: observations must be numbers",
    ),
    "pose-not-numbers": (
        "images.txt",
        IMAGE_LINE.replace("1 1 0", "1 q 0"),
        "line 1: the pose must be numbers",
    ),
    "bad-id": ("images.txt", "1_0" + IMAGE_LINE[1:], "IMAGE_ID must be a whole number, found '1_0'"),
    "duplicate-image": (
        "images.txt",
        f"{IMAGE_LINE}\n\n{IMAGE_LINE}\n\n",
        "line 3: the image id 1 appears twice",
    ),
    "long-quaternion": (
        "images.txt",
        IMAGE_LINE.replace("1 1 0", "1 3 0"),
        r"\(000\.png\): .* has length 3, not 1",
    ),
    "far-away": ("images.txt", "1 1 0 0 0 1e12 0 0 1 000.png", "implausibly large"),
    "no-images": ("images.txt", "# nothing\n", "lists no images"),
    "short-point": ("points3D.txt", "1 2 3 4 5 6\n", "line 1: expected POINT3D_ID X Y Z R G B ERROR TRACK"),
    "half-a-track-point": (
        "points3D.txt",
        "1 0 0 0 5 0 0 1 2\n",
        "line 1: expected POINT3D_ID X Y Z R G B ERROR TRACK",
    ),
    "bright-point": ("points3D.txt", "1 0 0 0 256 0 0 1\n", "line 1: not a position and an 8-bit color"),
    "nan-point": ("points3D.txt", "1 0 nan 0 25 0 0 1\n", "line 1: not a position"),
    "word-point": ("points3D.txt", "1 0 x 0 25 0 0 1\n", "line 1: X Y Z must be numbers"),
    "duplicate-point": (
        "points3D.txt",
        "1 0 0 0 5 0 0 1\n1 0 0 0 5 0 0 1",
        "line 2: the point id 1 appears twice",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_TEXT.values(), ids=BAD_TEXT.keys())
def test_damaged_text_files_are_located(text, name, content, message):
    path = model_file(text, name)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SceneError, match=message) as error:
        load_scene(text)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_cameras_side_by_side_see_their_nearest_point_at_distance_one(binary):
    # Parallel cameras have no common focus; their short baseline must not become the unit of length.
    base = poses9()[0]
    poses = [np.c_[base[:, :3], base[:, 3] + 0.01 * i * base[:, 0]] for i in range(9)]
    records = [builders.image_record(i + 1, pose, 1, builders.image_name(i)) for i, pose in enumerate(poses)]
    model_file(binary, "images.bin").write_bytes(builders.counted(records))
    points = [builders.point_record(i, base[:, 3] - (2.0 + i) * base[:, 2], (0, 0, 0)) for i in range(9)]
    model_file(binary, "points3D.bin").write_bytes(builders.counted(points))
    assert load_scene(binary).world_scale == pytest.approx(1 / 2.0, rel=0.01)


def test_models_written_by_colmap_itself(text, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    # COLMAP requires that every observation refers to a point that lists it.
    path = model_file(text, "images.txt")
    path.write_text(path.read_text().replace("10.0 20.0 1", ""))
    model_file(text, "points3D.txt").write_text("")
    expected = load_scene(text)
    reconstruction = pycolmap.Reconstruction(str(text / "sparse" / "0"))
    for kind in ("binary", "text"):
        folder = tmp_path / kind / "sparse" / "0"
        folder.mkdir(parents=True)
        getattr(reconstruction, f"write_{kind}")(str(folder))
        (tmp_path / kind / "images").symlink_to(text / "images")
        assert_scenes_equal(load_scene(tmp_path / kind), expected)
    for image in reconstruction.images.values():
        ours = read_model(tmp_path / "binary" / "sparse" / "0").images[image.image_id]
        np.testing.assert_allclose(ours.camera_to_world[:, 3], image.projection_center(), atol=1e-9)
