"""The dataset's cameras and photos, which the viewer jumps to and compares with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from PIL import Image

from eugen_nerf.errors import UserError
from eugen_nerf.metrics import to_uint8
from eugen_nerf.scenes.normalize import axes_equations, focus_point

JPEG_QUALITY = 92


def describe_views(datasets: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of scene.json for the cameras.

    Args:
        datasets: nerfstudio's dataset of each split.
    """
    views = []
    for split, dataset in datasets.items():
        cameras = dataset.cameras
        for index, name in enumerate(_names(dataset.image_filenames)):
            views.append(
                {
                    "name": f"{split}/{name}",
                    "split": split,
                    "camera_to_world": [[float(v) for v in row] for row in cameras.camera_to_worlds[index]],
                    **{key: float(getattr(cameras, key)[index]) for key in ("fx", "fy", "cx", "cy")},
                    **{key: int(getattr(cameras, key)[index]) for key in ("width", "height")},
                }
            )
    return views


def _names(files: Sequence[Path]) -> list[str]:
    """Names for the photos of a split: file names, or paths below their common folder if two of these are alike."""
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    folder = os.path.commonpath([file.parent for file in files])
    below = [file.relative_to(folder) for file in files]
    paths = [file.with_suffix("").as_posix() for file in below]
    return paths if len(set(paths)) == len(paths) else [file.as_posix() for file in below]


def focus(views: list[dict[str, Any]]) -> list[float]:
    """The point that the cameras look at, [3]: `focus_point`, or the point nearest to all axes if there is none."""
    poses = np.array([view["camera_to_world"] for view in views])
    point = focus_point(poses)
    if point is None:
        origins = poses[:, :, 3]
        matrix, right = axes_equations(origins, -poses[:, :, 2])
        # The small term gives parallel axes, or a single one, a solution near the cameras.
        point = np.linalg.solve(matrix + 1e-6 * np.eye(3), right + 1e-6 * origins.mean(axis=0))
    return [float(v) for v in point]


def write_photo(dataset: Any, index: int, path: Path, background: tuple[float, float, float]) -> None:
    """Write the photo of a view as a JPEG on the background color, as a pinhole camera would have taken it.

    The viewer's cameras have no lens distortion, so it is removed from the photo.

    Raises:
        UserError: the photo cannot be read.
    """
    try:
        image = dataset[index]["image"]
    except OSError as error:
        raise UserError(f"{dataset.image_filenames[index]}: cannot be read ({error}).") from error
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + (1 - image[..., 3:]) * torch.tensor(background)
    pixels = undistorted(to_uint8(image[..., :3]).numpy(), dataset.cameras, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)


def undistorted(pixels: npt.NDArray[np.uint8], cameras: Cameras, index: int) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, 3] of a camera, resampled without its lens distortion."""
    fisheye = int(cameras.camera_type[index]) == CameraType.FISHEYE.value
    coefficients = [0.0] * 6 if cameras.distortion_params is None else cameras.distortion_params[index].tolist()
    if not fisheye and not any(coefficients):
        return pixels
    k1, k2, k3, k4, p1, p2 = coefficients
    matrix = np.eye(3)
    matrix[0, 0], matrix[1, 1] = float(cameras.fx[index]), float(cameras.fy[index])
    # OpenCV counts from the center of the first pixel.
    matrix[0, 2], matrix[1, 2] = float(cameras.cx[index]) - 0.5, float(cameras.cy[index]) - 0.5
    if fisheye:
        lens, size = np.array([k1, k2, k3, k4]), pixels.shape[1::-1]
        places = cv2.fisheye.initUndistortRectifyMap(matrix, lens, np.eye(3), matrix, size, cv2.CV_32FC1)
    else:
        # OpenCV's fourth radial term is in a denominator; ours is a power, as in nerfstudio.
        places = _rays_of_pixels(matrix, pixels.shape, (k1, k2, k3, k4, p1, p2))
    # Pixels outside the photo get the nearest color; black would frame it.
    result = cv2.remap(pixels, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(result, dtype=np.uint8)


def _rays_of_pixels(
    matrix: npt.NDArray[np.float64], shape: tuple[int, ...], distortion: tuple[float, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Column and row in the distorted image for each pixel of the undistorted one, [H, W] each."""
    k1, k2, k3, k4, p1, p2 = distortion
    x, y = np.meshgrid(
        (np.arange(shape[1]) - matrix[0, 2]) / matrix[0, 0], (np.arange(shape[0]) - matrix[1, 2]) / matrix[1, 1]
    )
    r = x * x + y * y
    radial = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
    column = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    row = y * radial + 2 * p2 * x * y + p1 * (r + 2 * y * y)
    return (
        (column * matrix[0, 0] + matrix[0, 2]).astype(np.float32),
        (row * matrix[1, 1] + matrix[1, 2]).astype(np.float32),
    )
