"""Read COLMAP's text sparse models (cameras.txt, images.txt, points3D.txt); messages name the line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.capture import Intrinsics
from eugen_nerf.scenes.colmap_model import (
    MODEL_NAMES,
    OPTIONAL,
    ColmapImage,
    ColmapPoints,
    make_camera,
    make_image,
    model_parameters,
)
from eugen_nerf.scenes.validate import MAX_COORDINATE, decode_text, read_file, shorten

MAX_ID = 2**64 - 1


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, stripped line) of every line, including blank lines and comments."""
    # Not splitlines(): file names may contain rarer Unicode line separators.
    for number, line in enumerate(decode_text(read_file(path), path).split("\n"), start=1):
        yield f"{path}: line {number}", line.strip()


def _records(path: Path) -> Iterator[tuple[str, str]]:
    return ((where, line) for where, line in _lines(path) if line and not line.startswith("#"))


def _integer(token: str, what: str, where: str) -> int:
    # int() also accepts "1_000" and digits of other scripts, which COLMAP never writes.
    if not (token.isascii() and token.isdigit() and len(token) <= 20 and int(token) <= MAX_ID):
        raise SceneError(f"{where}: {what} must be a whole number, found {shorten(token)}")
    return int(token)


def _numbers(tokens: Sequence[str], what: str, where: str) -> list[float]:
    try:
        return [float(token) for token in tokens]
    except ValueError:
        raise SceneError(f"{where}: {what} must be numbers, found {shorten(' '.join(tokens))}") from None


def read_cameras(path: Path) -> dict[int, Intrinsics]:
    """Cameras of a cameras.txt by id: CAMERA_ID MODEL WIDTH HEIGHT PARAMS."""
    cameras: dict[int, Intrinsics] = {}
    for where, line in _records(path):
        tokens = line.split()
        if len(tokens) < 4:
            raise SceneError(f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, found {shorten(line)}")
        identifier = _integer(tokens[0], "CAMERA_ID", where)
        model = tokens[1] if tokens[1] in MODEL_NAMES else shorten(tokens[1])
        model_parameters(model, identifier, where)
        if identifier in cameras:
            raise SceneError(f"{where}: the camera id {identifier} appears twice")
        cameras[identifier] = make_camera(
            model,
            identifier,
            _integer(tokens[2], "WIDTH", where),
            _integer(tokens[3], "HEIGHT", where),
            _numbers(tokens[4:], "PARAMS", where),
            where,
        )
    return cameras


def read_images(path: Path) -> dict[int, ColmapImage]:
    """Images of an images.txt by id. Every image takes two lines; the second lists its observations."""
    images: dict[int, ColmapImage] = {}
    lines = _lines(path)
    for where, line in lines:
        if not line or line.startswith("#"):
            continue
        # The name comes last and may contain spaces.
        tokens = line.split(maxsplit=9)
        if len(tokens) < 10:
            raise SceneError(f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, found {shorten(line)}")
        identifier = _integer(tokens[0], "IMAGE_ID", where)
        if identifier in images:
            raise SceneError(f"{where}: the image id {identifier} appears twice")
        values = _numbers(tokens[1:8], "the pose", where)
        camera = _integer(tokens[8], "CAMERA_ID", where)
        images[identifier] = make_image(tokens[9], camera, values[:4], values[4:], where)
        _check_observations(*next(lines, (where, "")))
    return images


def _check_observations(where: str, line: str) -> None:
    """Check for X Y POINT3D_ID triples; otherwise a file without these lines would lose every other image."""
    tokens = line.split()
    if len(tokens) % 3:
        raise SceneError(
            f"{where}: expected the observations of the image above as X Y POINT3D_ID triples (the line may "
            f"be blank, but not missing), found {shorten(line)}"
        )
    _numbers(tokens, "observations", where)


def read_points(path: Path) -> ColmapPoints:
    """Positions and colors of a points3D.txt: POINT3D_ID X Y Z R G B ERROR TRACK."""
    positions: list[list[float]] = []
    colors: list[list[int]] = []
    identifiers = set()
    for where, line in _records(path):
        tokens = line.split()
        if len(tokens) < 8 or len(tokens) % 2:
            raise SceneError(f"{where}: expected POINT3D_ID X Y Z R G B ERROR TRACK, found {shorten(line)}")
        identifier = _integer(tokens[0], "POINT3D_ID", where)
        if identifier in identifiers:
            raise SceneError(f"{where}: the point id {identifier} appears twice")
        identifiers.add(identifier)
        position = _numbers(tokens[1:4], "X Y Z", where)
        color = [_integer(token, "R G B", where) for token in tokens[4:7]]
        if not all(abs(value) <= MAX_COORDINATE for value in position) or max(color) > 255:
            raise SceneError(
                f"{where}: not a position and an 8-bit color: {shorten(' '.join(tokens[1:7]))}; {OPTIONAL}"
            )
        positions.append(position)
        colors.append(color)
    return ColmapPoints(np.array(positions).reshape(-1, 3), np.array(colors, dtype=np.uint8).reshape(-1, 3))
