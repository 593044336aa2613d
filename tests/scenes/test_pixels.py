from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import load_scene, read_image, read_mask
from tests.scenes import builders


@pytest.fixture
def frame(tmp_path):
    """One frame of 8 x 6 pixels, whose image the tests replace."""
    builders.make_transforms(tmp_path)
    loaded = load_scene(tmp_path).frames[0]
    return replace(loaded, width=8, height=6, image_path=tmp_path / "image.png")


def save(frame, pixels, **options):
    Image.fromarray(pixels).save(frame.image_path, **options)


def random_pixels(channels, height=6, width=8):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_come_back_as_they_are(frame, channels):
    pixels = random_pixels(channels)
    save(frame, pixels)
    np.testing.assert_array_equal(read_image(replace(frame, channels=channels)), pixels)


def test_opaque_images_of_a_transparent_scene_get_full_alpha(frame):
    pixels = random_pixels(3)
    save(frame, pixels)
    read = read_image(replace(frame, channels=4))
    np.testing.assert_array_equal(read[..., :3], pixels)
    assert (read[..., 3] == 255).all()


def test_grayscale_becomes_color(frame):
    gray = random_pixels(1)[..., 0]
    save(frame, gray)
    np.testing.assert_array_equal(read_image(frame), np.repeat(gray[..., None], 3, axis=2))


def test_sixteen_bit_grayscale_is_scaled_not_clipped(frame):
    gray = random_pixels(1)[..., 0]
    save(frame, gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(frame)[..., 0], gray)


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_masks_of_sixteen_bits(frame, tmp_path, white):
    expected = random_pixels(1)[..., 0] > 127
    Image.fromarray((expected * white).astype(np.uint16)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(replace(frame, mask_path=tmp_path / "mask.png")), expected)


def test_palettes_with_transparency(frame):
    image = Image.new("P", (8, 6))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((2, 1), 1)
    image.save(frame.image_path, transparency=0)
    read = read_image(replace(frame, channels=4))
    np.testing.assert_array_equal(read[1, 2], [40, 50, 60, 255])
    assert read[0, 0, 3] == 0


@given(st.integers(2, 4), st.integers(0, 3), st.integers(0, 3), st.sampled_from([3, 4]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_box_filter(tmp_path_factory, factor, extra_x, extra_y, channels, seed):
    # The extra columns and rows do not fill a block and must not affect the result.
    height, width = 3 * factor + extra_y % factor, 4 * factor + extra_x % factor
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("box")
    builders.make_transforms(folder, 2)
    frame = replace(
        load_scene(folder).frames[0],
        image_path=folder / "image.png",
        width=4,
        height=3,
        downscale=factor,
        channels=channels,
    )
    save(frame, pixels)
    result = read_image(frame)
    assert result.shape == (3, 4, channels)
    for y in range(3):
        for x in range(4):
            block = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].reshape(-1, channels)
            weights = block[:, 3].astype(float) if channels == 4 else np.ones(len(block))
            color = (block[:, :3] * weights[:, None]).sum(axis=0) / max(weights.sum(), 1.0)
            np.testing.assert_allclose(result[y, x, :3], color, atol=0.5 + 1e-9)
            if channels == 4:
                assert abs(result[y, x, 3] - block[:, 3].mean()) <= 0.5 + 1e-9


def test_transparent_pixels_do_not_bleed_into_colors(frame):
    pixels = np.zeros((12, 16, 4), dtype=np.uint8)
    pixels[::2, ::2] = [200, 100, 50, 255]
    pixels[1::2] = [0, 255, 0, 0]
    save(frame, pixels)
    result = read_image(replace(frame, channels=4, downscale=2))
    np.testing.assert_array_equal(result[0, 0], [200, 100, 50, 64])


def test_masks_end_at_half_gray(frame):
    save(frame, np.array([[0, 127, 128, 255]], dtype=np.uint8))
    mask = read_mask(replace(frame, width=4, height=1, mask_path=frame.image_path))
    np.testing.assert_array_equal(mask, [[False, False, True, True]])


@pytest.mark.parametrize(
    ("values", "usable"),
    [([0, 1, 1, 0], [0, 1, 1, 0]), ([0, 0, 0, 0], [0, 0, 0, 0]), ([100, 99, 200, 0], [1, 0, 1, 0])],
)
def test_a_mask_of_zeros_and_ones(frame, values, usable):
    """As labeling tools write it; nerfstudio treats every value except 0 as usable."""
    save(frame, np.array([values], dtype=np.uint8))
    mask = read_mask(replace(frame, width=4, height=1, mask_path=frame.image_path))
    np.testing.assert_array_equal(mask, np.array([usable], dtype=bool))


def test_one_dark_pixel_of_a_large_block_counts(frame):
    mask = np.full((6 * 40, 8 * 40), 255, dtype=np.uint8)
    mask[7, 9] = 0
    Image.fromarray(mask).save(frame.image_path.with_name("mask.png"))
    usable = read_mask(replace(frame, mask_path=frame.image_path.with_name("mask.png"), downscale=40))
    assert not usable[0, 0]
    assert usable.sum() == 8 * 6 - 1


def test_masks_in_the_alpha_channel(frame):
    """Uniformly white or black, as image editors store a selection. An image with both is used as it is."""
    alpha = np.array([[0, 255, 200, 10]], dtype=np.uint8)
    masked = replace(frame, width=4, height=1, mask_path=frame.image_path)
    for color in (0, 255):
        save(frame, np.dstack([np.full_like(alpha, color)] * 3 + [alpha]))
        np.testing.assert_array_equal(read_mask(masked), [[False, True, True, False]])
    bright = np.array([[255, 0, 255, 0]], dtype=np.uint8)
    for channel in (alpha, np.full_like(alpha, 255)):
        save(frame, np.dstack([bright] * 3 + [channel]))
        np.testing.assert_array_equal(read_mask(masked), [[True, False, True, False]])


def test_damaged_pixels_name_the_file(frame):
    save(frame, random_pixels(3))
    data = bytearray(frame.image_path.read_bytes())
    start = data.index(b"IDAT") + 8
    data[start : start + 40] = b"\xff" * 40
    frame.image_path.write_bytes(data)
    with pytest.raises(SceneError, match=r"image\.png: the image cannot be decoded"):
        read_image(frame)
    with pytest.raises(SceneError, match=r"image\.png: the image cannot be decoded"):
        read_mask(replace(frame, mask_path=frame.image_path))


def test_an_image_that_changed_meanwhile(frame):
    save(frame, random_pixels(3, height=7))
    with pytest.raises(SceneError, match=r"image\.png: the image is now 8 x 7 pixels"):
        read_image(frame)


def test_an_image_that_vanished_meanwhile(frame):
    with pytest.raises(SceneError, match=r"image\.png: the image cannot be decoded \(FileNotFoundError"):
        read_image(frame)
