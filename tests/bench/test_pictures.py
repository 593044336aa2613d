"""Images side by side, crops and error maps."""

from __future__ import annotations

import numpy as np
from PIL import Image

from eugen_nerf.bench.pictures import GAP, LABEL_HEIGHT, enlarged, error_map, outlined, side_by_side, telling_crop


def plain(color: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_side_by_side_places_every_picture() -> None:
    red, blue = plain((255, 0, 0)), plain((0, 0, 255))
    grid = side_by_side([[red, blue], [blue, red]], ["Truth", "EUGen"])
    assert grid.size == (2 * 40 + GAP, LABEL_HEIGHT + 2 * 30 + GAP)
    corner = (45, LABEL_HEIGHT + 35)
    assert grid.getpixel((5, LABEL_HEIGHT + 5)) == (255, 0, 0)
    assert grid.getpixel((40 + GAP + 5, LABEL_HEIGHT + 5)) == (0, 0, 255)
    assert grid.getpixel((40 + GAP + corner[0] - 40, LABEL_HEIGHT + 30 + GAP + 5)) == (255, 0, 0)
    labels = np.asarray(grid.crop((0, 0, 40, LABEL_HEIGHT)))
    assert labels.min() < 100 < labels.max()


def test_enlarging_invents_no_color() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    large = np.asarray(enlarged(picture, 3))
    assert np.array_equal(large[1::3, 1::3], np.asarray(picture))


def test_error_map_runs_from_white_to_dark() -> None:
    truth = plain((100, 100, 100), (3, 1))
    prediction = truth.copy()
    prediction.putpixel((1, 0), (110, 110, 110))
    prediction.putpixel((2, 0), (200, 200, 200))
    none, some, much = (sum(error_map(prediction, truth).getpixel((x, 0))) for x in range(3))  # type: ignore[arg-type]
    assert none == 3 * 255
    assert none > some > much
    assert error_map(prediction, truth).getpixel((2, 0)) == (90, 10, 30)  # clamped at full scale


def test_the_crop_is_where_all_err_most() -> None:
    truth = plain((0, 0, 0), (80, 40))
    first, second = truth.copy(), truth.copy()
    first.paste((60, 60, 60), (50, 10, 60, 20))
    second.paste((60, 60, 60), (50, 10, 60, 20))
    second.paste((90, 90, 90), (5, 5, 7, 7))
    assert telling_crop([first, second], truth) == (50, 10, 60, 20)
    assert telling_crop([truth], truth) == (0, 0, 10, 10)
    failed = plain((255, 255, 255), (80, 40))
    failed.paste((0, 0, 0), (50, 10, 60, 20))  # correct here, and far off everywhere else
    assert telling_crop([first, second, failed], truth) == (50, 10, 60, 20)


def test_the_frame_of_a_crop_leaves_the_crop_alone() -> None:
    image = plain((0, 0, 0), (80, 40))
    framed = outlined(image, (50, 10, 60, 20))
    assert framed.crop((50, 10, 60, 20)).tobytes() == image.crop((50, 10, 60, 20)).tobytes()
    corners = {framed.getpixel(place) for place in [(49, 9), (60, 9), (49, 20), (60, 20), (55, 9), (49, 15)]}
    assert corners == {(255, 0, 120)}
    assert image.getpixel((49, 9)) == (0, 0, 0)
