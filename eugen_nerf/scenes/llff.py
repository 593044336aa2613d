"""Read LLFF scenes: poses_bounds.npy next to images, images_4 or images_8.

Source of the layout: "Local Light Field Fusion", SIGGRAPH 2019. Each row of the array holds a 3 x 5 matrix
(camera axes down, right, back; position; height, width, focal length) and the nearest and farthest depth.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.capture import Capture, Intrinsics, Shot
from eugen_nerf.scenes.image_files import list_images, reduced_folders
from eugen_nerf.scenes.validate import as_positive, as_size, check_pose, read_file

POSES_FILE = "poses_bounds.npy"
COLUMNS = 17


def read_llff(root: Path) -> Capture:
    """Read poses_bounds.npy and pair its rows with the images in the order of their names.

    Args:
        root: the scene's folder.

    Raises:
        SceneError: the array is damaged or malformed, or the number of images differs from its number of rows.
    """
    source = root / POSES_FILE
    rows = _read_rows(source)
    folder, names = _find_images(root, len(rows))
    reduced = _reduced_copies(root, folder, len(rows))
    shots = []
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        where = f"{source}: row {index} ({folder.name}/{name})"
        matrix = row[:15].reshape(3, 5)
        down, right, back, position, (height, width, focal) = matrix.T
        pose = check_pose(np.stack([right, -down, back, position], axis=1), where)
        focal = as_positive(focal, f"{where}: focal length")
        shots.append(
            Shot(
                name=f"{folder.name}/{Path(name).stem}",
                source=source,
                listed=f"{folder.name}/{name}",
                image_path=folder / name,
                camera_to_world=pose,
                intrinsics=Intrinsics(
                    width=as_size(width, f"{where}: width"),
                    height=as_size(height, f"{where}: height"),
                    fx=focal,
                    fy=focal,
                ),
                reduced={factor: paths[index] for factor, paths in reduced.items()},
            )
        )
        near = as_positive(row[15], f"{where}: near bound")
        if as_positive(row[16], f"{where}: far bound") <= near:
            raise SceneError(f"{where}: the far bound {row[16]:g} is not beyond the near bound {near:g}")
    return Capture("llff", root, tuple(shots), bounds=(float(rows[:, 15].min()), float(rows[:, 16].max())))


def _read_rows(path: Path) -> np.ndarray:
    """Read [N, 17] float64. The file size is checked first, since a damaged header may claim terabytes."""
    data = read_file(path)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    # NumPy evaluates the header as a Python literal, which may raise any exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise SceneError(
            f"{path}: the .npy header is malformed near byte {stream.tell()} ({reason}); save the array "
            "again with numpy.save"
        ) from None
    start = stream.tell()
    if dtype.kind not in "fiu" or len(shape) != 2 or shape[1] != COLUMNS or shape[0] < 1:
        raise SceneError(f"{path}: expected numbers of shape [images, {COLUMNS}], found {dtype} of shape {list(shape)}")
    expected = shape[0] * COLUMNS * dtype.itemsize
    if len(data) - start != expected:
        raise SceneError(
            f"{path}: {shape[0]} rows take {expected} bytes from byte {start} on, but the file has "
            f"{len(data) - start}; it is damaged"
        )
    values = np.frombuffer(data, dtype, offset=start).astype(np.float64)
    return values.reshape(shape[::-1]).T if fortran_order else values.reshape(shape)


def _find_images(root: Path, count: int) -> tuple[Path, list[str]]:
    """images/, or the largest downscaled copy if only those exist."""
    reduced = reduced_folders(root / "images")
    for folder in (root / "images", *(reduced[factor] for factor in sorted(reduced))):
        names = list_images(folder)
        if not names:
            continue
        if len(names) != count:
            raise SceneError(
                f"{folder}: holds {len(names)} images, but {POSES_FILE} has {count} rows; they are paired in "
                "the order of their names, so both numbers must agree"
            )
        return folder, names
    raise SceneError(f"{root}: no images found; looked in images, images_2, images_4 and the like")


def _reduced_copies(root: Path, folder: Path, count: int) -> dict[int, list[Path]]:
    """Downscaled copies, paired by order because some published scenes rename them."""
    copies = {}
    for factor, other in reduced_folders(root / "images").items():
        names = list_images(other)
        if other != folder and len(names) == count:
            copies[factor] = [other / name for name in names]
    return copies
