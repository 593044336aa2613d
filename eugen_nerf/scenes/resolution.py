"""Choose the image files to read for a requested downscale factor, and the downscaling that remains to be done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.capture import Shot
from eugen_nerf.scenes.image_files import ImageInfo, image_size, inspect_image

Size = tuple[int, int]

# Default limit in pixels; nerfstudio's dataparsers have the same limit.
LONGEST_SIDE = 1600


@dataclass(frozen=True)
class ChosenImage:
    """An image file, and its camera in pixels of the image after the remaining downscaling.

    Attributes:
        path: the file to read.
        info: its header.
        downscale: factor of the box filter still to be applied to the file's pixels.
        full_size: (width, height) of the full-resolution image.
        width, height: of the downscaled image.
        fx, fy, cx, cy: in pixels of the downscaled image.
    """

    path: Path
    info: ImageInfo
    downscale: int
    full_size: Size
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


def automatic_downscale(shots: Sequence[Shot]) -> tuple[int, list[str]]:
    """The power of two by which images are downscaled so that no side is longer than LONGEST_SIDE.

    Args:
        shots: of all splits. Those without a readable image are left out.

    Returns:
        The factor, relative to the size that the scene's files state, and warnings for the user.
    """
    longest, factor = (0, 0), 1
    for shot in shots:
        if shot.image_path is None:
            continue
        try:
            size = image_size(shot.image_path)
        except SceneError:
            continue  # `choose_images` reports it if its split is used
        longest = max(longest, size, key=max)
        # Images may already be smaller than the files state, which `choose_images` checks.
        factor = max(factor, round(shot.intrinsics.stated_size(size)[0] / size[0]))
    rest = 1
    while max(longest) > rest * LONGEST_SIDE:
        rest *= 2
    if rest == 1:
        return 1, []
    return rest * factor, [
        f"photos of up to {_text(longest)} pixels are used at 1/{rest} of their width and height; set the downscale "
        f"factor to {factor} to use them at full size"
    ]


def choose_images(shots: Sequence[Shot], downscale: int) -> tuple[list[ChosenImage], list[str]]:
    """Check every shot's image and choose the files to read at 1/`downscale` of the stated resolution.

    A folder of downscaled copies (images_4 for 4) is used if it holds every shot at the right size. Otherwise the
    images themselves are used, to be downscaled by a box filter over whole `downscale` x `downscale` blocks. Incomplete
    blocks at the right and lower edge are cropped, so that the principal point keeps its position.

    Args:
        shots: each with an image.
        downscale: at least 1, relative to the size that the scene's files state.

    Returns:
        One choice per shot, and warnings for the user.

    Raises:
        SceneError: an image is damaged or its size contradicts the stated one.
    """
    paths = [shot.image_path for shot in shots if shot.image_path is not None]
    if not paths or len(paths) != len(shots):
        raise ValueError("choose_images needs at least one shot, and an image for each")
    infos = [inspect_image(path) for path in paths]
    stated = [shot.intrinsics.stated_size(info.size) for shot, info in zip(shots, infos, strict=True)]
    factors = [_factor(shot, info, size) for shot, info, size in zip(shots, infos, stated, strict=True)]
    factor = factors[0]
    for shot, info, other, size in zip(shots, infos, factors, stated, strict=True):
        if other != factor:
            raise SceneError(
                f"{shot.image_path}: the image is {_text(info.size)} pixels, {other} times smaller than the "
                f"{_text(size)} stated in {shot.source.name}, but {paths[0]} is {factor} times "
                "smaller; all images must be downscaled by the same factor"
            )
    warnings: list[str] = []
    copies = _reduced_copies(shots, stated, downscale, warnings) if downscale not in (1, factor) else None
    if copies is not None:
        return [_choice(*args, 1) for args in zip(shots, *copies, stated, strict=True)], warnings
    if downscale % factor and downscale != 1:
        raise SceneError(
            f"{paths[0]}: the downscale factor is {downscale}, but the images are already {factor} times smaller than "
            f"stated; choose a multiple of {factor}"
        )
    if downscale < factor:
        warnings.append(
            f"the images in {paths[0].parent} are {factor} times smaller than {shots[0].source.name} states; the "
            "cameras were scaled to match"
        )
    rest = max(1, downscale // factor)
    choices = [_choice(*args, rest) for args in zip(shots, paths, infos, stated, strict=True)]
    outside = [one for one in choices if not (0 <= one.cx <= one.width and 0 <= one.cy <= one.height)]
    if outside:
        one = outside[0]
        warnings.append(
            f"{one.path}: the principal point ({one.cx:g} {one.cy:g}) of {len(outside)} of {len(choices)} cameras lies "
            f"outside the image, which is {_text((one.width, one.height))}; if the intrinsics are for photos of "
            "another size, state w and h of those photos"
        )
    return choices, warnings


def matches(size: Size, full: Size, factor: int) -> bool:
    """Whether `size` is `full` downscaled by `factor`, with any rounding."""
    return all(abs(s - f / factor) < 1 for s, f in zip(size, full, strict=True))


def check_mask(shot: Shot, image: ChosenImage) -> None:
    """Check that a shot's mask is complete and has the size of the image file or of the full-size image.

    Raises:
        SceneError: the mask is missing or damaged, or has another size.
    """
    path = shot.mask_path
    if path is None:
        raise ValueError("the shot has no mask")
    if not os.path.isfile(path):
        raise SceneError(f"{path}: the mask that {shot.source} lists for {shot.listed} does not exist")
    size = inspect_image(path).size
    if size not in (image.info.size, image.full_size):
        raise SceneError(
            f"{path}: the mask is {_text(size)} pixels, but its image {image.path} is {_text(image.info.size)}"
        )


def _factor(shot: Shot, info: ImageInfo, stated: Size) -> int:
    if info.size == stated:
        return 1
    factor = round(stated[0] / info.size[0])
    if factor > 1 and matches(info.size, stated, factor):
        return factor
    message = (
        f"{shot.image_path}: the image is {_text(info.size)} pixels, but {shot.source} states {_text(stated)} for it"
    )
    if info.size == stated[::-1] and info.rotated_by_exif:
        message += "; its EXIF data asks viewers to rotate it: apply the rotation to the pixels"
    raise SceneError(
        f"{message}; use the images the cameras were computed from, or a reduced copy by an integer factor"
    )


def _reduced_copies(
    shots: Sequence[Shot], stated: Sequence[Size], downscale: int, warnings: list[str]
) -> tuple[list[Path], list[ImageInfo]] | None:
    paths = [shot.reduced[downscale] for shot in shots if downscale in shot.reduced]
    if not paths:
        return None
    if len(paths) < len(shots):
        warnings.append(
            f"{paths[0].parent} lacks {len(shots) - len(paths)} of {len(shots)} images; the full-size "
            "images are downscaled instead"
        )
        return None
    infos = [inspect_image(path) for path in paths]
    for path, info, size in zip(paths, infos, stated, strict=True):
        if not matches(info.size, size, downscale):
            warnings.append(
                f"{path} is {_text(info.size)} pixels, not 1/{downscale} of {_text(size)}; the full-size "
                "images are downscaled instead"
            )
            return None
    return paths, infos


def _choice(shot: Shot, path: Path, info: ImageInfo, stated: Size, rest: int) -> ChosenImage:
    width, height = info.size[0] // rest, info.size[1] // rest
    if not width or not height:
        raise SceneError(
            f"{path}: the image is {_text(info.size)} pixels, too small to be reduced by {rest}; "
            "choose a smaller downscale"
        )
    fx, fy, cx, cy = shot.intrinsics.pixels(stated)
    scale_x, scale_y = info.size[0] / stated[0] / rest, info.size[1] / stated[1] / rest
    return ChosenImage(path, info, rest, stated, width, height, fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y)


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
