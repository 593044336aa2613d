"""The records of a COLMAP sparse model, and the checks shared by the text and the binary reader.

Source of the formats: COLMAP's documentation, "Output Format". COLMAP states poses as world-to-camera, with
the camera looking along +z and y pointing down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.capture import NO_DISTORTION, CameraModel, Distortion, Intrinsics
from eugen_nerf.scenes.validate import as_number, as_path_text, as_positive, as_size, check_pose

# Names of the parameters of each supported camera model, in COLMAP's order.
PARAMETERS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
}
# The index of a model in COLMAP's list is its number in the binary files.
MODEL_NAMES = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
    "SIMPLE_DIVISION",
    "DIVISION",
    "SIMPLE_FISHEYE",
    "FISHEYE",
    "EUCM",
    "EQUIRECTANGULAR",
)
OPTIONAL = "the scene works without the file of its points"  # what to do about a damaged one
OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class ColmapImage:
    """One registered image: `name` relative to the image folder, `camera_to_world` [3, 4] in OpenGL axes."""

    name: str
    camera_id: int
    camera_to_world: np.ndarray
    where: str


@dataclass(frozen=True)
class ColmapPoints:
    """Sparse points: `positions` [P, 3] float64 in the file's world, and `colors` [P, 3] uint8."""

    positions: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True)
class ColmapModel:
    """Cameras by id, images by id, and the points if the model has them; `images_path` lists the images."""

    images_path: Path
    cameras: dict[int, Intrinsics]
    images: dict[int, ColmapImage]
    points: ColmapPoints | None


def model_parameters(model: str, camera_id: int, where: str) -> tuple[str, ...]:
    """Parameter names of a camera model; raises SceneError if the ray generator does not support it."""
    if model not in PARAMETERS:
        raise SceneError(
            f"{where}: camera {camera_id} uses the model {model}; supported are {', '.join(PARAMETERS)}. "
            'Run "colmap image_undistorter" and use its output'
        )
    return PARAMETERS[model]


def make_camera(
    model: str, camera_id: int, width: object, height: object, values: Sequence[object], where: str
) -> Intrinsics:
    """Intrinsics from the fields of a camera record; `values` in the order of `PARAMETERS[model]`."""
    where = f"{where} (camera {camera_id}, {model})"
    names = PARAMETERS[model]
    if len(values) != len(names):
        raise SceneError(f"{where}: expected the parameters {' '.join(names)}, found {len(values)} values")
    params = {name: as_number(x, f"{where}: {name}") for name, x in zip(names, values, strict=True)}
    fx = as_positive(params.get("fx", params.get("f")), f"{where}: focal length")
    fy = as_positive(params.get("fy", params.get("f")), f"{where}: focal length")
    distortion = NO_DISTORTION
    kind: CameraModel = "pinhole"
    if model not in ("SIMPLE_PINHOLE", "PINHOLE"):
        distortion = _distortion(params)
        kind = "opencv" if any(distortion) else "pinhole"
    if model == "OPENCV_FISHEYE":
        kind = "opencv_fisheye"
    return Intrinsics(
        model=kind,
        distortion=distortion,
        width=as_size(width, f"{where}: width"),
        height=as_size(height, f"{where}: height"),
        fx=fx,
        fy=fy,
        cx=params["cx"],
        cy=params["cy"],
    )


def _distortion(params: dict[str, float]) -> Distortion:
    k1, k2, k3, k4, p1, p2 = (params.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    return k1, k2, k3, k4, p1, p2


def make_image(
    name: str, camera_id: int, quaternion: Sequence[float], translation: Sequence[float], where: str
) -> ColmapImage:
    """An image record; `quaternion` (w, x, y, z) and `translation` map world to camera."""
    name = as_path_text(name, f"{where}: image name")
    where = f"{where} ({name})"
    w, x, y, z = (as_number(value, f"{where}: rotation") for value in quaternion)
    norm = (w * w + x * x + y * y + z * z) ** 0.5
    if abs(norm - 1) > 1e-2:
        raise SceneError(f"{where}: the rotation quaternion ({w:g} {x:g} {y:g} {z:g}) has length {norm:g}, not 1")
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    position = -rotation.T @ [as_number(value, f"{where}: translation") for value in translation]
    pose = np.concatenate([rotation.T @ OPENCV_TO_OPENGL, position[:, None]], axis=1)
    return ColmapImage(name, camera_id, check_pose(pose, where), where)
