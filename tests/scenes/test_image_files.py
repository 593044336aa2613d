"""Checks on image files that need no decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene
from eugen_nerf.scenes.image_files import ImageFinder, inspect_image, list_images, reduced_folders
from tests.scenes import builders

PIXELS = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(kind, pixels=PIXELS, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def with_thumbnail():
    """A JPEG whose EXIF block contains another complete JPEG, as cameras write it."""
    thumbnail = encoded("JPEG", PIXELS[:8, :8])
    data = encoded("JPEG")
    segment = b"Exif\0\0" + thumbnail
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


@pytest.fixture
def inspect(tmp_path):
    def run(data, name="photo.png"):
        (tmp_path / name).write_bytes(data)
        return inspect_image(tmp_path / name)

    return run


WHOLE = {
    "png": encoded("PNG"),
    "png-and-more": encoded("PNG") + b"appended by a camera",
    "jpeg": encoded("JPEG"),
    "jpeg-progressive": encoded("JPEG", progressive=True),
    "jpeg-and-zeros": encoded("JPEG") + b"\0" * 5000,
    "jpeg-and-film": encoded("JPEG") + b"ftypmp42" * 20_000,
    "jpeg-with-thumbnail": with_thumbnail(),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_whole_images_pass(inspect, data):
    info = inspect(data)
    assert info.size == (60, 40)
    assert not info.has_alpha
    assert not info.rotated_by_exif


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpeg-progressive", "jpeg-with-thumbnail"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.999])
def test_truncated_images_are_noticed(inspect, kind, kept):
    data = WHOLE[kind]
    with pytest.raises(SceneError, match=r"photo\.png: (the image is truncated|not a readable PNG or JPEG)"):
        inspect(data[: int(kept * len(data))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"photo\.png: the image file is empty \(0 bytes\)"),
        (b"<html>not found</html>", r"photo\.png: not a readable PNG or JPEG image \(its first bytes"),
        (encoded("GIF"), "not a readable PNG or JPEG image"),
        (encoded("PNG")[:20], "not a readable PNG or JPEG image"),
        (encoded("JPEG")[:20], "not a readable PNG or JPEG image|truncated"),
        (
            encoded("PNG").replace(b"\0\0\0\x3c\0\0\0\x28", b"\x7f\xff\xff\xff\x7f\xff\xff\xff"),
            "not a readable",
        ),
    ],
    ids=["empty", "html", "gif", "png-head", "jpeg-head", "huge-size"],
)
def test_what_is_no_image_is_named(inspect, data, message):
    with pytest.raises(SceneError, match=message):
        inspect(data)


def test_a_folder_is_not_an_image(tmp_path):
    (tmp_path / "photo.png").mkdir()
    with pytest.raises(SceneError, match=r"photo\.png: cannot be read \(Is a directory\)"):
        inspect_image(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("mode", "alpha"), [("RGBA", True), ("LA", True), ("RGB", False), ("L", False), ("I;16", False)]
)
def test_transparency_is_read_from_the_header(inspect, mode, alpha):
    stream = io.BytesIO()
    Image.new(mode, (4, 3)).save(stream, "PNG")
    assert inspect(stream.getvalue()).has_alpha is alpha


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_in_the_exif_data_is_reported(inspect, orientation):
    """The last four of the eight orientations exchange width and height."""
    exif = Image.Exif()
    exif[274] = orientation
    assert inspect(encoded("JPEG", exif=exif)).rotated_by_exif is (orientation > 4)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_load_scene_checks_every_image_of_the_split(tmp_path, damage):
    builders.make_transforms(tmp_path)
    path = tmp_path / "images" / "006.png"
    data = {"empty": b"", "text": b"oops", "truncated": path.read_bytes()[:-4]}[damage]
    path.write_bytes(data)
    with pytest.raises(SceneError, match=r"images/006\.png: "):
        load_scene(tmp_path)
    assert len(load_scene(tmp_path, "test").frames) == 2


def test_finding_images_by_stem(tmp_path):
    for name in ("a.png", "b.JPG", "c.v2.jpeg", "d.jpg", "d.png", ".hidden.png", "e.txt"):
        (tmp_path / name).touch()
    found = {
        listed: ImageFinder().find(tmp_path / listed)
        for listed in (
            "a",
            "a.png",
            "a.jpg",
            "b.png",
            "c.v2",
            "c",
            "d",
            "e",
            "e.png",
            ".hidden",
            "missing/a.png",
        )
    }
    names = {listed: path.name for listed, path in found.items() if path is not None}
    assert names == {
        "a": "a.png",
        "a.png": "a.png",
        "a.jpg": "a.png",
        "b.png": "b.JPG",
        "c.v2": "c.v2.jpeg",
        "d": "d.png",
    }
    assert list_images(tmp_path) == ["a.png", "b.JPG", "c.v2.jpeg", "d.jpg", "d.png"]
    assert list_images(tmp_path / "missing") == []


def test_reduced_folders(tmp_path):
    for name in ("images", "images_2", "images_08", "images_4", "images_1", "images_x", "my_images_8"):
        (tmp_path / name).mkdir()
    (tmp_path / "images_16").touch()
    assert reduced_folders(tmp_path / "images") == {2: tmp_path / "images_2", 4: tmp_path / "images_4"}
    assert reduced_folders(tmp_path / "missing" / "images") == {}
