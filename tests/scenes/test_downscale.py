"""Which files are used for a requested reduction, and how the cameras change."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene, read_image, read_mask, resolution
from tests.scenes import builders

CAPTURES = {
    "transforms": builders.make_transforms,
    "colmap": builders.make_colmap_binary,
    "llff": builders.make_llff,
}


@pytest.fixture(params=CAPTURES, ids=str)
def capture(request, tmp_path):
    return CAPTURES[request.param](tmp_path)


def reduce_images(root, factor, size=None):
    (root / f"images_{factor}").mkdir()
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            width, height = size or (image.width // factor, image.height // factor)
            image.resize((width, height)).save(root / f"images_{factor}" / path.name)


def test_a_folder_of_reduced_copies_is_used(capture):
    reduce_images(capture, 4)
    scene, full = load_scene(capture, downscale=4), load_scene(capture)
    assert scene.warnings == ()
    for frame, other in zip(scene.frames, full.frames, strict=True):
        assert frame.image_path == capture / "images_4" / other.image_path.name
        assert frame.downscale == 1
        assert (frame.width, frame.height) == (other.width // 4, other.height // 4)
        assert (frame.fx, frame.fy) == (other.fx / 4, other.fy / 4)
        assert (frame.cx, frame.cy) == (other.cx / 4, other.cy / 4)


def test_without_such_a_folder_the_reader_reduces(capture):
    reduce_images(capture, 4)
    frame = load_scene(capture, downscale=2).frames[0]
    assert frame.image_path.parent == capture / "images"
    assert frame.downscale == 2


class TestAutomatic:
    @pytest.mark.parametrize(("limit", "factor"), [(96, 1), (95, 2), (48, 2), (20, 8)])
    def test_no_side_is_longer_than_the_limit(self, capture, monkeypatch, limit, factor):
        monkeypatch.setattr(resolution, "LONGEST_SIDE", limit)
        for split in ("train", "test"):
            scene = load_scene(capture, split, downscale=None)
            asked = load_scene(capture, split, downscale=factor)
            assert [(f.downscale, f.width, f.fx) for f in scene.frames] == [
                (f.downscale, f.width, f.fx) for f in asked.frames
            ]
            assert any("of up to 96 x 72 pixels are used at 1/" in warning for warning in scene.warnings) == (
                factor > 1
            )

    def test_the_largest_photo_decides_for_all_splits(self, tmp_path, monkeypatch):
        builders.make_transforms(tmp_path)
        builders.edit_frame(tmp_path / "transforms.json", 0, w=192, h=144, cx=96.0, cy=72.0)  # held out
        with Image.open(tmp_path / "images" / "000.png") as image:
            image.resize((192, 144)).save(tmp_path / "images" / "000.png")
        monkeypatch.setattr(resolution, "LONGEST_SIDE", 96)
        assert {frame.downscale for frame in load_scene(tmp_path, "train", downscale=None).frames} == {2}
        assert {frame.downscale for frame in load_scene(tmp_path, "test", downscale=None).frames} == {2}

    def test_an_unreadable_photo_of_another_split(self, tmp_path):
        builders.make_transforms(tmp_path)
        (tmp_path / "images" / "000.png").write_bytes(b"")  # held out
        assert len(load_scene(tmp_path, "train", downscale=None).frames) == 7
        with pytest.raises(SceneError, match=r"000\.png"):
            load_scene(tmp_path, "test", downscale=None)

    def test_images_that_are_smaller_than_stated(self, tmp_path, monkeypatch):
        builders.make_transforms(tmp_path)
        reduce_images(tmp_path, 2)
        shutil.rmtree(tmp_path / "images")
        (tmp_path / "images_2").rename(tmp_path / "images")
        monkeypatch.setattr(resolution, "LONGEST_SIDE", 24)  # they are 48 wide
        (frame, *_) = load_scene(tmp_path, downscale=None).frames
        assert (frame.downscale, frame.width) == (2, 24)
        monkeypatch.setattr(resolution, "LONGEST_SIDE", 48)
        (frame, *_) = load_scene(tmp_path, downscale=None).frames
        assert (frame.downscale, frame.width) == (1, 48)

    def test_copies_are_preferred(self, capture, monkeypatch):
        reduce_images(capture, 4)
        monkeypatch.setattr(resolution, "LONGEST_SIDE", 24)
        assert load_scene(capture, downscale=None).frames[0].image_path.parent == capture / "images_4"


def test_copies_of_the_wrong_size_are_not_used(capture):
    reduce_images(capture, 4, size=(30, 18))
    scene = load_scene(capture, downscale=4)
    assert scene.frames[0].downscale == 4
    (warning,) = scene.warnings
    assert "images_4" in warning
    assert "is 30 x 18 pixels, not 1/4 of 96 x 72; the full-size images are downscaled instead" in warning


@pytest.mark.parametrize("make", [builders.make_transforms, builders.make_colmap_text])
def test_an_incomplete_folder_is_not_used(tmp_path, make):
    reduce_images(make(tmp_path), 4)
    (tmp_path / "images_4" / "003.png").unlink()
    scene = load_scene(tmp_path, downscale=4)
    assert scene.frames[0].downscale == 4
    assert scene.warnings == (
        f"{tmp_path / 'images_4'} lacks 1 of 7 images; the full-size images are downscaled instead",
    )


def test_copies_rounded_to_whole_pixels_are_used(tmp_path):
    builders.make_transforms(tmp_path)
    reduce_images(tmp_path, 5, size=(20, 14))
    frame = load_scene(tmp_path, downscale=5).frames[0]
    assert (frame.width, frame.height, frame.downscale) == (20, 14, 1)
    # Rounding 19.2 x 14.4 to 20 x 14 stretches the pixels, and the camera has to follow.
    assert frame.fx == pytest.approx(builders.FX * 20 / 96)
    assert frame.fy == pytest.approx(builders.FY * 14 / 72)


def test_images_smaller_than_stated_scale_the_camera(tmp_path):
    builders.make_transforms(tmp_path)
    builders.draw_all(tmp_path / "images", builders.arc_poses(9), factor=2)
    scene = load_scene(tmp_path)
    frame = scene.frames[0]
    assert (frame.width, frame.height, frame.fx) == (48, 36, builders.FX / 2)
    assert "2 times smaller than transforms.json states" in scene.warnings[0]
    asked = load_scene(tmp_path, downscale=2)
    assert asked.warnings == ()
    assert asked.frames[0].downscale == 1
    assert load_scene(tmp_path, downscale=4).frames[0].downscale == 2


def test_images_reduced_by_different_factors(tmp_path):
    builders.make_transforms(tmp_path)
    builders.draw(builders.arc_poses(9)[3], tmp_path / "images" / "003.png", factor=2)
    with pytest.raises(
        SceneError, match=r"003\.png: the image is 48 x 36 pixels, 2 times smaller than the 96 x 72 stated"
    ):
        load_scene(tmp_path)


@pytest.mark.parametrize("size", [(72, 96), (95, 72), (192, 144), (48, 72)])
def test_images_that_contradict_the_stated_size(tmp_path, size):
    builders.make_transforms(tmp_path)
    Image.new("RGB", size).save(tmp_path / "images" / "002.png")
    expected = rf"002\.png: the image is {size[0]} x {size[1]} pixels, but .*transforms\.json states 96 x 72 for it"
    with pytest.raises(SceneError, match=expected):
        load_scene(tmp_path)


def test_a_photo_rotated_by_exif_is_explained(tmp_path):
    builders.make_transforms(tmp_path)
    (tmp_path / "images" / "002.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (72, 96)).save(tmp_path / "images" / "002.jpg", exif=exif)
    with pytest.raises(SceneError, match="its EXIF data asks viewers to rotate it"):
        load_scene(tmp_path)


def test_what_does_not_fill_a_block_is_cut_off(tmp_path):
    builders.make_transforms(tmp_path)
    frame = load_scene(tmp_path, downscale=7).frames[0]
    assert (frame.width, frame.height) == (13, 10)
    assert (frame.fx, frame.cy) == pytest.approx((builders.FX / 7, builders.CY / 7))
    with Image.open(frame.image_path) as image:
        expected = image.crop((0, 0, 91, 70)).reduce(7)
    np.testing.assert_allclose(read_image(frame).astype(int), np.asarray(expected).astype(int), atol=1)


class TestMasks:
    def with_masks(self, root, size=(96, 72)):
        builders.make_transforms(root)
        mask = np.zeros(size[::-1], dtype=np.uint8)
        mask[:, : size[0] // 2] = 255
        (root / "masks").mkdir()
        for index in range(9):
            Image.fromarray(mask).save(root / "masks" / f"{index:03d}.png")
            builders.edit_frame(root / "transforms.json", index, mask_path=f"masks/{index:03d}")
        return root

    @pytest.mark.parametrize("downscale", [1, 2, 5])
    def test_masks_follow_the_image(self, tmp_path, downscale):
        frame = load_scene(self.with_masks(tmp_path), downscale=downscale).frames[0]
        assert frame.mask_path == tmp_path / "masks" / "001.png"
        mask = read_mask(frame)
        assert mask.dtype == bool
        assert mask.shape == (frame.height, frame.width)
        # A pixel is usable if all original pixels in it are: the 48 usable columns give 48 // downscale of them.
        assert mask.all(axis=0).tolist() == [x < 48 // downscale for x in range(frame.width)]
        assert mask.any(axis=0).tolist() == mask.all(axis=0).tolist()

    def test_full_size_masks_serve_reduced_copies(self, tmp_path):
        self.with_masks(tmp_path)
        reduce_images(tmp_path, 4)
        frame = load_scene(tmp_path, downscale=4).frames[0]
        assert frame.downscale == 1
        assert read_mask(frame).sum() == 12 * 18

    def test_frames_without_mask_are_used_whole(self, tmp_path):
        frame = load_scene(builders.make_transforms(tmp_path)).frames[0]
        assert frame.mask_path is None
        assert read_mask(frame).all()
        assert read_mask(frame).shape == (72, 96)

    def test_a_missing_mask(self, tmp_path):
        (self.with_masks(tmp_path) / "masks" / "003.png").unlink()
        with pytest.raises(SceneError, match=r"masks/003: the mask that .*transforms\.json lists for images/003\.png"):
            load_scene(tmp_path)

    def test_a_mask_of_another_size(self, tmp_path):
        Image.new("L", (90, 72)).save(self.with_masks(tmp_path) / "masks" / "003.png")
        with pytest.raises(SceneError, match=r"003\.png: the mask is 90 x 72 pixels, but its image .* is 96 x 72"):
            load_scene(tmp_path)

    def test_a_damaged_mask(self, tmp_path):
        path = self.with_masks(tmp_path) / "masks" / "003.png"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(SceneError, match=r"masks/003\.png: the image is truncated"):
            load_scene(tmp_path)
