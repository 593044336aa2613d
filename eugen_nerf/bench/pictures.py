"""Images side by side, with labels, crops and error maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_HEIGHT = 26
GAP = 6


def side_by_side(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str]) -> Image.Image:
    """A grid of images of one size on white, with a label above each column."""
    width, height = rows[0][0].size
    canvas = Image.new(
        "RGB",
        (len(labels) * (width + GAP) - GAP, LABEL_HEIGHT + len(rows) * (height + GAP) - GAP),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for column, label in enumerate(labels):
        middle = column * (width + GAP) + width // 2
        draw.text((middle, LABEL_HEIGHT // 2), label, fill="black", font=font, anchor="mm")
        for line, row in enumerate(rows):
            canvas.paste(row[column], (column * (width + GAP), LABEL_HEIGHT + line * (height + GAP)))
    return canvas


def enlarged(image: Image.Image, factor: int) -> Image.Image:
    """Enlarge each pixel of an image to a square of factor x factor."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def open_picture(path: Path) -> Image.Image:
    """Load an image file into memory."""
    with Image.open(path) as image:
        return image.convert("RGB")


def error_map(prediction: Image.Image, truth: Image.Image, full_scale: float = 0.2) -> Image.Image:
    """Absolute error, averaged over the channels: white for none, dark red from `full_scale` of the range on."""
    first, second = (np.asarray(image, dtype=np.float64) / 255 for image in (prediction, truth))
    error = np.clip(np.abs(first - second).mean(axis=-1) / full_scale, 0, 1)[..., None]
    stops = np.array([[255, 255, 255], [254, 196, 79], [217, 72, 15], [90, 10, 30]], dtype=np.float64)
    place = error * (len(stops) - 1)
    lower = np.minimum(place.astype(int), len(stops) - 2)
    colors = stops[lower[..., 0]] + (place - lower) * (stops[lower[..., 0] + 1] - stops[lower[..., 0]])
    return Image.fromarray(colors.round().astype(np.uint8))


def outlined(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A copy with a frame of one pixel around a box (left, upper, right, lower)."""
    framed = image.copy()
    left, upper, right, lower = box
    ImageDraw.Draw(framed).rectangle((left - 1, upper - 1, right, lower), outline=(255, 0, 120))
    return framed


def telling_crop(predictions: Sequence[Image.Image], truth: Image.Image, part: int = 4) -> tuple[int, int, int, int]:
    """Choose the square, 1/`part` of the shorter side, with the largest median error of the predictions.

    The median keeps a prediction that fails everywhere from determining the choice.

    Returns:
        left, upper, right, lower as for `PIL.Image.crop`.
    """
    target = np.asarray(truth, dtype=np.float64)
    errors = np.median([np.abs(np.asarray(p, dtype=np.float64) - target).sum(axis=-1) for p in predictions], axis=0)
    side = max(min(truth.size) // part, 1)
    total = np.pad(errors.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    windows = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    upper, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(left), int(upper), int(left) + side, int(upper) + side
