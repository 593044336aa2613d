"""Read a transforms.json as written by nerfstudio and instant-ngp: camera-to-world matrices in OpenGL axes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.capture import CameraModel, Capture, Distortion, Intrinsics, Shot
from eugen_nerf.scenes.colmap_model import PARAMETERS
from eugen_nerf.scenes.image_files import EXTENSIONS, ImageFinder
from eugen_nerf.scenes.normalize import SimilarityTransform
from eugen_nerf.scenes.point_cloud import read_ply
from eugen_nerf.scenes.validate import (
    as_list,
    as_matrix,
    as_number,
    as_path_text,
    as_positive,
    as_size,
    check_pose,
    read_json_object,
    shorten,
)

DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
CAMERA_MODELS = tuple(PARAMETERS)  # nerfstudio uses COLMAP's names


def read_transforms(path: Path) -> Capture:
    """Read one transforms.json with all frames of a scene.

    Args:
        path: the JSON file.

    Raises:
        SceneError: the file is invalid. The message names the file, the frame and the key.
    """
    meta = read_json_object(path)
    shots = read_frames(path, meta, ImageFinder())
    points, colors, warnings = read_listed_points(path, meta)
    applied, remarks = _read_applied(path, meta)
    return Capture(
        "transforms",
        path.parent,
        shots,
        _read_splits(path, meta, shots),
        points=points,
        colors=colors,
        applied=applied,
        warnings=(*warnings, *remarks),
    )


def read_frames(path: Path, meta: Mapping[str, object], finder: ImageFinder) -> tuple[Shot, ...]:
    """Frames of a parsed transforms file, in the file's order, with shared or per-frame intrinsics.

    Raises:
        SceneError: a frame cannot be used, or two frames refer to the same photo.
    """
    frames = as_list(meta.get("frames"), f"{path}: frames")
    shots: list[Shot] = []
    first_use: dict[str, int] = {}
    for index, frame in enumerate(frames):
        where = f"{path}: frames[{index}]"
        if not isinstance(frame, dict):
            raise SceneError(f"{where}: expected a JSON object {{...}}, found {shorten(frame)}")
        shot = _read_frame(path, meta, frame, where, finder)
        # A photo can have several names: without its extension, with a wrong one, through a link.
        photo = shot.listed if shot.image_path is None else os.path.realpath(shot.image_path)
        first = first_use.setdefault(photo, index)
        if first != index:
            name = shots[first].listed
            raise SceneError(
                f"{where}.file_path: {shot.listed!r} is already listed by frames[{first}]"
                f"{'' if name == shot.listed else f' as {name!r}'}; a photo has one camera, so remove one of the two"
            )
        shots.append(shot)
    return tuple(shots)


def _read_frame(
    path: Path, meta: Mapping[str, object], frame: dict[str, object], where: str, finder: ImageFinder
) -> Shot:
    root = path.parent
    listed = as_path_text(frame.get("file_path"), f"{where}.file_path")
    name = os.path.splitext(listed)[0] if listed.lower().endswith(EXTENSIONS) else listed
    place = f"{where} ({shorten(name)})"
    if "transform_matrix" not in frame:
        raise SceneError(f"{place}: transform_matrix is missing")
    matrix = as_matrix(frame["transform_matrix"], f"{place}.transform_matrix")
    image = finder.find(root / listed)
    mask = None
    if frame.get("mask_path") is not None:
        stated = root / as_path_text(frame["mask_path"], f"{place}.mask_path")
        mask = finder.find(stated) or stated
    return Shot(
        name=name,
        source=path,
        listed=listed,
        image_path=image,
        camera_to_world=check_pose(matrix, f"{place}.transform_matrix"),
        # The frame's keys take precedence over the file's own.
        intrinsics=read_intrinsics(_merged(meta, _stated(frame)), place),
        mask_path=mask,
        reduced=_reduced(root, image, finder),
    )


def _merged(meta: Mapping[str, object], frame: dict[str, object]) -> dict[str, object]:
    """The keys of a frame over those of its file, without what the file says about the same in another way."""
    shared = dict(meta)
    if any(key in frame for key in DISTORTION_KEYS):
        shared.pop("distortion_params", None)
    if "camera_model" in frame:
        shared.pop("is_fisheye", None)
    elif "is_fisheye" in frame:
        shared.pop("camera_model", None)
    return {**shared, **frame}


def _reduced(root: Path, image: Path | None, finder: ImageFinder) -> dict[int, Path]:
    """Copies in folders named after the topmost one below the root: images_4/a.png for images/a.png."""
    if image is None or not image.is_relative_to(root):
        return {}
    top, *rest = image.relative_to(root).parts
    if not rest:
        return {}
    found = {}
    for factor, folder in finder.reduced_folders(root / top).items():
        copy = finder.find(folder.joinpath(*rest))
        if copy is not None:
            found[factor] = copy
    return found


def read_intrinsics(values: Mapping[str, object], where: str) -> Intrinsics:
    """Intrinsics from the keys of a frame merged over those of its file.

    Keys: fl_x, fl_y, cx, cy, w, h in pixels; camera_angle_x, camera_angle_y in radians; k1..k4, p1, p2 or
    distortion_params [k1, k2, k3, k4, p1, p2]; camera_model; is_fisheye.

    Raises:
        SceneError: a value is missing or invalid, or belongs to a camera that is not supported.
    """

    values = _stated(values)

    def positive(key: str) -> float | None:
        return as_positive(values[key], f"{where}: {key}") if key in values else None

    def number(key: str) -> float | None:
        return as_number(values[key], f"{where}: {key}") if key in values else None

    def size(key: str) -> int | None:
        return as_size(values[key], f"{where}: {key}") if key in values else None

    def angle(key: str) -> float | None:
        value = positive(key)
        if value is not None and value >= math.pi:
            raise SceneError(f"{where}: {key} is an angle in radians below pi, found {value:g}")
        return value

    width, height = size("w"), size("h")
    if (width is None) != (height is None):
        raise SceneError(f"{where}: w and h, the image size in pixels, must be stated together")
    fx, fy = positive("fl_x"), positive("fl_y")
    # A focal length in pixels is more precise; files that state both keep the angle only as a record.
    angle_x = angle("camera_angle_x") if fx is None else None
    angle_y = angle("camera_angle_y") if fy is None else None
    if fx is None and fy is None and angle_x is None and angle_y is None:
        raise SceneError(f"{where}: the focal length is missing; state fl_x in pixels or camera_angle_x")
    distortion = _read_distortion(values, where)
    return Intrinsics(
        model=_camera_model(values, distortion, where),
        distortion=distortion,
        width=width,
        height=height,
        fx=fx,
        fy=fy,
        cx=number("cx"),
        cy=number("cy"),
        angle_x=angle_x,
        angle_y=angle_y,
    )


def _stated(values: Mapping[str, object]) -> dict[str, object]:
    """Remove keys whose value is null, which is equivalent to a missing key."""
    return {key: value for key, value in values.items() if value is not None}


def _read_distortion(values: Mapping[str, object], where: str) -> Distortion:
    listed = values.get("distortion_params")
    if listed is not None:
        items = as_list(listed, f"{where}: distortion_params")
        if len(items) != 6:
            raise SceneError(f"{where}: distortion_params must be [k1, k2, k3, k4, p1, p2], found {shorten(listed)}")
        numbers = [as_number(x, f"{where}: distortion_params[{i}]") for i, x in enumerate(items)]
    else:
        numbers = [as_number(values.get(key, 0.0), f"{where}: {key}") for key in DISTORTION_KEYS]
    k1, k2, k3, k4, p1, p2 = numbers
    return k1, k2, k3, k4, p1, p2


def _camera_model(values: Mapping[str, object], distortion: Distortion, where: str) -> CameraModel:
    stated = values.get("camera_model", "OPENCV")
    if stated not in CAMERA_MODELS:
        raise SceneError(
            f"{where}: camera_model {shorten(stated)} is not supported; supported are "
            f"{', '.join(CAMERA_MODELS)}. Undistort the photos first"
        )
    fisheye = values.get("is_fisheye", False)
    if not isinstance(fisheye, bool):
        raise SceneError(f"{where}: is_fisheye must be true or false, found {shorten(fisheye)}")
    if stated == "OPENCV_FISHEYE" or fisheye:
        return "opencv_fisheye"
    # The parameters decide, since several tools write OPENCV for undistorted images.
    return "opencv" if any(distortion) else "pinhole"


def read_listed_points(
    path: Path, meta: Mapping[str, object]
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """Positions and colors of the points that a parsed file lists, in its world, and warnings.

    Raises:
        SceneError: the points cannot be read.
    """
    if meta.get("ply_file_path") is None:
        return None, None, ()
    file = path.parent / as_path_text(meta["ply_file_path"], f"{path}: ply_file_path")
    if not os.path.isfile(file):
        return None, None, (f"{file}: the points that {path} lists do not exist and are left out",)
    positions, colors = read_ply(file)
    if not len(positions):
        return None, None, (f"{file}: holds no points",)
    return positions, colors, ()


def _read_applied(path: Path, meta: Mapping[str, object]) -> tuple[SimilarityTransform | None, tuple[str, ...]]:
    """nerfstudio's applied_transform and applied_scale, which took the original world to the file's, and warnings."""
    matrix, scale = meta.get("applied_transform"), meta.get("applied_scale")
    if matrix is None and scale is None:
        return None, ()
    try:
        transform = np.eye(3, 4) if matrix is None else check_pose(as_matrix(matrix, ""), "")
        factor = 1.0 if scale is None else as_positive(scale, "")
    except SceneError:  # no reason not to train
        return None, (
            f"{path}: applied_transform and applied_scale have no effect, because they are not a rotation with a "
            "translation and a positive number",
        )
    return SimilarityTransform(transform, factor), ()


def _read_splits(path: Path, meta: Mapping[str, object], shots: tuple[Shot, ...]) -> dict[str, tuple[int, ...]] | None:
    """Indices from train_filenames, val_filenames and test_filenames; None if the file has none of them."""
    # Both with and without the extension, which file_path may also lack.
    index_of = {name: index for index, shot in enumerate(shots) for name in (shot.name, shot.listed)}
    splits = {}
    for split in ("train", "val", "test"):
        key = f"{split}_filenames"
        names = meta.get(key)
        if names is None or (names == [] and split != "train"):
            continue
        if not isinstance(names, list):
            raise SceneError(f"{path}: {key}: expected a list of file paths, found {shorten(names)}")
        chosen = set()
        for position, value in enumerate(names):
            name = as_path_text(value, f"{path}: {key}[{position}]")
            if name not in index_of:
                raise SceneError(f"{path}: {key}[{position}]: no frame has the file_path {shorten(name)}")
            chosen.add(index_of[name])
        splits[split] = tuple(sorted(chosen, key=lambda index: shots[index].name))
    return splits or None
