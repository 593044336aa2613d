"""Recognize a scene's data by its cameras."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Files that hold cameras, in the layouts of data/formats.md.
CAMERA_FILES = (
    "transforms*.json",
    "poses_bounds.npy",
    "**/cameras.bin",
    "**/cameras.txt",
    "**/images.bin",
    "**/images.txt",
)


def camera_fingerprint(scene: Path) -> str | None:
    """A hash of the files with a scene's cameras; None if there are none, or the scene is not there.

    Args:
        scene: the scene's folder, or its file with cameras.
    """
    files = [scene] if scene.is_file() else sorted({file for pattern in CAMERA_FILES for file in scene.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(scene)}\0".encode("utf8", "surrogateescape") + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16] if files else None
