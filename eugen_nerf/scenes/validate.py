"""Check values read from a scene's files; each failure raises one readable `SceneError`.

Every function takes `where`, a phrase that names the file and the position in it (a JSON path, a line or a byte
offset), and starts its message with it.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from pathlib import Path

import numpy as np

from eugen_nerf.errors import SceneError

# Exported matrices have six or more digits; a camera object scaled by mistake deviates far more than this.
RIGID_TOLERANCE = 1e-2
# Larger than any map projection in meters, and small enough that float64 sums of squares stay exact.
MAX_COORDINATE = 1e9
MAX_PIXELS_PER_SIDE = 1_000_000


def shorten(value: object, limit: int = 80) -> str:
    """One-line `repr` of a value for a message, cut to about `limit` characters."""
    if isinstance(value, np.generic):
        value = value.item()  # NumPy 2 would show its type too
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_file(path: Path) -> bytes:
    """Bytes of `path`; raises SceneError if the file cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SceneError(f"{path}: cannot be read ({reason})") from None


def decode_text(data: bytes, path: Path) -> str:
    """UTF-8 text of a file's bytes; raises SceneError with the offset of the first invalid byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SceneError(
            f"{path}: byte {error.start} is not UTF-8 text; the file is damaged or of another kind"
        ) from None


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; raises SceneError with the line and column of a syntax error."""
    text = decode_text(read_file(path), path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SceneError(f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        # Integers of thousands of digits, or thousands of nested brackets.
        raise SceneError(f"{path}: not a usable JSON file ({error})") from None
    if not isinstance(value, dict):
        raise SceneError(f"{path}: line 1, column 1: expected a JSON object {{...}}, found {shorten(value)}")
    return value


def as_number(value: object, where: str) -> float:
    """A finite float from a JSON or numpy scalar; raises SceneError for text, NaN, infinity and the like."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise SceneError(f"{where}: expected a number, found {shorten(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > 1e15:
        raise SceneError(f"{where}: expected a finite number, found {shorten(value)}")
    return number


def as_positive(value: object, where: str) -> float:
    """A number in [1e-9, 1e9], such as a focal length in pixels; raises SceneError for other values."""
    number = as_number(value, where)
    if number <= 0:
        raise SceneError(f"{where}: must be positive, found {shorten(value)}")
    if not 1e-9 <= number <= MAX_COORDINATE:
        raise SceneError(f"{where}: is beyond any sensible range, found {shorten(value)}")
    return number


def as_size(value: object, where: str) -> int:
    """A whole number of pixels, which files often store as a float such as 480.0; raises SceneError otherwise."""
    number = as_number(value, where)
    if number != int(number) or not 1 <= number <= MAX_PIXELS_PER_SIDE:
        raise SceneError(f"{where}: must be a whole number of pixels, at least 1, found {shorten(value)}")
    return int(number)


def as_list(value: object, where: str) -> list[object]:
    """A non-empty JSON list; raises SceneError for anything else."""
    if not isinstance(value, list) or not value:
        raise SceneError(f"{where}: expected a non-empty list, found {shorten(value)}")
    return value


def as_path_text(value: object, where: str) -> str:
    """A non-empty path from a file, with forward slashes and without a leading "./"; raises SceneError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise SceneError(f"{where}: expected a file path, found {shorten(value)}")
    # Control characters and lone surrogates, which JSON can contain, are not valid in names and would garble messages.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value.strip()):
        raise SceneError(f"{where}: the file path holds unprintable characters: {shorten(value)}")
    text = os.path.normpath(value.strip().replace("\\", "/"))
    if text == ".":
        raise SceneError(f"{where}: expected a file path, found {shorten(value)}")
    return text


def as_matrix(value: object, where: str) -> np.ndarray:
    """A 3 x 4 or 4 x 4 matrix of finite numbers from nested JSON lists, as float64; raises SceneError otherwise."""
    matrix: list[list[float]] = []
    for i, row in enumerate(as_list(value, where)):
        numbers = [as_number(x, f"{where}[{i}][{j}]") for j, x in enumerate(as_list(row, f"{where}[{i}]"))]
        matrix.append(numbers)
    if len(matrix) not in (3, 4) or any(len(row) != 4 for row in matrix):
        raise SceneError(f"{where}: expected a 3 x 4 or 4 x 4 matrix as nested lists, found {shorten(value)}")
    return np.array(matrix)


def check_pose(matrix: np.ndarray, where: str) -> np.ndarray:
    """Check that a camera-to-world matrix is a rotation and a translation.

    Args:
        matrix: [3, 4] or [4, 4], file's world units.
        where: names file and frame.

    Returns:
        [3, 4] float64. The rotation is replaced by the nearest exact rotation, which removes the round-off error of
        the digits in the file.

    Raises:
        SceneError: a value is not finite or is implausibly large, the last row is not 0 0 0 1, or the rotation part is
            scaled, skewed or mirrored.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise ValueError(f"matrix must be [3, 4] or [4, 4], not {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise SceneError(f"{where}: the pose contains NaN or infinity: {shorten(matrix.tolist(), 200)}")
    if matrix.shape == (4, 4) and np.abs(matrix[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
        raise SceneError(
            f"{where}: the last row of a camera-to-world matrix must be 0 0 0 1, found {matrix[3].tolist()}"
        )
    if np.abs(matrix).max() > MAX_COORDINATE:
        raise SceneError(f"{where}: the pose is implausibly large: {shorten(matrix.tolist(), 200)}")
    rotation = matrix[:3, :3]
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if deviation > RIGID_TOLERANCE:
        raise SceneError(
            f"{where}: the pose is not rigid: R^T R differs from the identity by {deviation:.3g} in "
            f"{shorten(rotation.tolist(), 200)}; export the camera without scale or shear"
        )
    if np.linalg.det(rotation) < 0:
        raise SceneError(
            f"{where}: the pose is mirrored (determinant -1): {shorten(rotation.tolist(), 200)}; the "
            "camera's axes must be right-handed: x right, y up, z back"
        )
    left, _, right = np.linalg.svd(rotation)
    return np.concatenate([left @ right, matrix[:3, 3:]], axis=1)
