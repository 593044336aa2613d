"""Read COLMAP's binary sparse models (cameras.bin, images.bin, points3D.bin), never past the end of a file."""

from __future__ import annotations

import struct
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
from eugen_nerf.scenes.validate import MAX_COORDINATE, read_file

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")  # id, model, width, height
_IMAGE = struct.Struct("<I7dI")  # id, quaternion, translation, camera id
_POINT = struct.Struct("<Q3d3BdQ")  # id, position, color, error, track length
_OBSERVATION_BYTES = 24  # x, y, point id
_TRACK_ENTRY_BYTES = 8  # image id, observation index


class _Cursor:
    """Reads the bytes of one file in order. Every error names the file and the byte offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_file(path)
        self.offset = 0

    def where(self, offset: int) -> str:
        return f"{self.path}: byte {offset}"

    def need(self, size: int, what: str) -> None:
        left = len(self.data) - self.offset
        if size > left:
            raise SceneError(
                f"{self.where(self.offset)}: {what} takes {size} bytes, but the file ends after {left}; it "
                "is truncated or damaged"
            )

    def unpack(self, layout: struct.Struct, what: str) -> tuple[int | float, ...]:
        self.need(layout.size, what)
        values = layout.unpack_from(self.data, self.offset)
        self.offset += layout.size
        return values

    def count(self, smallest_record: int, what: str) -> int:
        """Read a number of records and check that so many fit into the rest of the file."""
        start = self.offset
        (count,) = self.unpack(_COUNT, f"the number of {what}")
        left = len(self.data) - self.offset
        if count * smallest_record > left:
            raise SceneError(
                f"{self.where(start)}: claims {count} {what}, more than the {left} bytes left can hold; the "
                "file is truncated or damaged"
            )
        return int(count)

    def skip(self, size: int, what: str) -> None:
        self.need(size, what)
        self.offset += size

    def text(self, what: str) -> str:
        end = self.data.find(b"\0", self.offset)
        if end < 0:
            raise SceneError(f"{self.where(self.offset)}: {what} has no end; the file is truncated or damaged")
        raw = self.data[self.offset : end]
        start, self.offset = self.offset, end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SceneError(f"{self.where(start + error.start)}: {what} is not UTF-8 text") from None

    def finish(self) -> None:
        if self.offset != len(self.data):
            raise SceneError(
                f"{self.where(self.offset)}: {len(self.data) - self.offset} bytes are left after the last "
                "record; the counts in the file are damaged"
            )


def read_cameras(path: Path) -> dict[int, Intrinsics]:
    """Cameras of a cameras.bin by id."""
    cursor = _Cursor(path)
    cameras: dict[int, Intrinsics] = {}
    for _ in range(cursor.count(_CAMERA.size, "cameras")):
        where = cursor.where(cursor.offset)
        identifier, number, width, height = (int(x) for x in cursor.unpack(_CAMERA, "a camera"))
        name = MODEL_NAMES[number] if 0 <= number < len(MODEL_NAMES) else f"number {number}"
        parameters = model_parameters(name, identifier, where)
        values = cursor.unpack(struct.Struct(f"<{len(parameters)}d"), f"the parameters of camera {identifier}")
        if identifier in cameras:
            raise SceneError(f"{where}: the camera id {identifier} appears twice")
        cameras[identifier] = make_camera(name, identifier, width, height, values, where)
    cursor.finish()
    return cameras


def read_images(path: Path) -> dict[int, ColmapImage]:
    """Images of an images.bin by id; the observed points are skipped."""
    cursor = _Cursor(path)
    images: dict[int, ColmapImage] = {}
    for _ in range(cursor.count(_IMAGE.size, "images")):
        where = cursor.where(cursor.offset)
        fields = cursor.unpack(_IMAGE, "an image")
        identifier = int(fields[0])
        name = cursor.text(f"the name of image {identifier}")
        observations = cursor.count(_OBSERVATION_BYTES, f"observations of {name!r}")
        cursor.skip(observations * _OBSERVATION_BYTES, f"the observations of {name!r}")
        if identifier in images:
            raise SceneError(f"{where}: the image id {identifier} appears twice")
        images[identifier] = make_image(name, int(fields[8]), fields[1:5], fields[5:8], where)
    cursor.finish()
    return images


def read_points(path: Path) -> ColmapPoints:
    """Positions and colors of a points3D.bin; the tracks are skipped."""
    cursor = _Cursor(path)
    count = cursor.count(_POINT.size, "points")
    positions = np.empty((count, 3))
    colors = np.empty((count, 3), dtype=np.uint8)
    identifiers = set()
    for index in range(count):
        start = cursor.offset
        identifier, x, y, z, red, green, blue, _, track = cursor.unpack(_POINT, "a point")
        if not all(abs(value) <= MAX_COORDINATE for value in (x, y, z)):
            raise SceneError(f"{cursor.where(start)}: point {identifier} is at ({x:g} {y:g} {z:g}); {OPTIONAL}")
        if identifier in identifiers:
            raise SceneError(f"{cursor.where(start)}: the point id {identifier} appears twice")
        identifiers.add(identifier)
        positions[index] = x, y, z
        colors[index] = red, green, blue
        cursor.skip(int(track) * _TRACK_ENTRY_BYTES, f"the track of point {identifier}")
    cursor.finish()
    return ColmapPoints(positions, colors)
