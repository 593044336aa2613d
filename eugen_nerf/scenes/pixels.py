"""Decode images and masks of frames, downscaled to the resolution of the frame's camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.image_files import FORMATS
from eugen_nerf.scenes.scene import Frame


def read_image(frame: Frame) -> np.ndarray:
    """Pixels of a frame.

    Returns:
        [H, W, 3] or [H, W, 4] uint8, `frame.channels` of them; sRGB with straight alpha.

    Raises:
        SceneError: the file cannot be decoded, or has changed since the scene was loaded.
    """
    pixels = decode(frame.image_path, "RGBA" if frame.channels == 4 else "RGB")
    height, width = pixels.shape[:2]
    if (width // frame.downscale, height // frame.downscale) != (frame.width, frame.height):
        raise SceneError(
            f"{frame.image_path}: the image is now {width} x {height} pixels, unlike when the scene was loaded; "
            "start again"
        )
    return _box_reduce(pixels, frame.downscale) if frame.downscale > 1 else pixels


def read_mask(frame: Frame) -> np.ndarray:
    """Mask of a frame.

    Returns:
        [H, W] bool, True if the pixel may be used: if all of the file's pixels within it are at least half as bright
        as the brightest pixel of the mask. A mask of 0 and 1 is therefore equivalent to one of 0 and 255. All True for
        a frame without a mask.

    Raises:
        SceneError: the file cannot be decoded.
    """
    if frame.mask_path is None:
        return np.ones((frame.height, frame.width), dtype=bool)
    usable = usable_pixels(decode(frame.mask_path, "LA", stretched=True))
    height, width = usable.shape
    # A mask of the image's own size is cropped like the image; a mask of the full-size image only has to be downscaled.
    if (width // frame.downscale, height // frame.downscale) == (frame.width, frame.height):
        usable = usable[: frame.height * frame.downscale, : frame.width * frame.downscale]
    area = Image.fromarray(usable.astype(np.float32)).resize((frame.width, frame.height), Image.Resampling.BOX)
    pixels = max(1.0, usable.size / area.width / area.height)  # of the file, for each of the frame
    return np.asarray(area) > 1 - 0.5 / pixels


def usable_pixels(mask: np.ndarray) -> np.ndarray:
    """The pixels that a mask allows: those at least half as bright as its brightest one; none if all are black.

    If the mask has one brightness and varying transparency, its opaque pixels count as bright.

    Args:
        mask: [H, W, 2], brightness and alpha.

    Returns:
        [H, W] bool.
    """
    brightness, alpha = np.moveaxis(mask.astype(np.float64), -1, 0)
    if alpha.min() < alpha.max() and brightness.min() == brightness.max():
        brightness = alpha
    return (2.0 * brightness >= brightness.max()) & (brightness > 0)


def decode(path: Path, mode: str, stretched: bool = False) -> np.ndarray:
    """Pixels of a file in one of Pillow's 8-bit modes.

    Args:
        path: the file.
        mode: for example "RGB".
        stretched: scale gray values of 16 bits by the brightest of them instead of by 65,535.

    Raises:
        SceneError: it cannot be decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.array(_to_8_bit(image, stretched).convert(mode))
    # Pillow's decoders may raise almost any exception for damaged bytes.
    except Exception as error:
        raise SceneError(
            f"{path}: the image cannot be decoded ({type(error).__name__}: {error}); copy or export it again"
        ) from None


def _to_8_bit(image: Image.Image, stretched: bool) -> Image.Image:
    """Scale 16-bit grayscale, which Pillow's own conversion would clip at 255."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        # A mask of 0 and 1 in 16 bits would be black in 8.
        values /= max(values.max(), 1.0) / 255.0 if stretched else 257.0
        return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
    return image


def _box_reduce(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of `factor` x `factor` pixels. Colors are weighted by alpha, as in compositing."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    if pixels.shape[2] == 3:
        return _rounded(blocks.mean(axis=(1, 3)))
    alpha = blocks[..., 3:].astype(np.float64)
    weight = alpha.sum(axis=(1, 3))
    color = (blocks[..., :3] * alpha).sum(axis=(1, 3)) / np.maximum(weight, 1.0)
    return _rounded(np.concatenate([color, weight / factor**2], axis=-1))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.floor(values + 0.5).astype(np.uint8)
