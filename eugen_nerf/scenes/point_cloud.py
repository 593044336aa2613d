"""Read the sparse points that some layouts store in a separate PLY file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eugen_nerf.errors import SceneError

GRAY = 128  # color of points that have none


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points of a text or binary PLY file, or the vertices of a mesh; positions that are not finite are left out.

    Returns:
        Positions [P, 3] float64, and colors [P, 3] uint8, gray if the file has none.

    Raises:
        SceneError: the file cannot be read.
    """
    import trimesh  # takes half a second, and few scenes need it

    try:
        cloud: Any = trimesh.load(str(path), file_type="ply", process=False)
        positions = np.asarray(getattr(cloud, "vertices", np.empty((0, 3))), dtype=np.float64).reshape(-1, 3)
        colored_mesh = getattr(getattr(cloud, "visual", None), "kind", None) == "vertex"
        colors = np.asarray(cloud.visual.vertex_colors if colored_mesh else getattr(cloud, "colors", ()))
    # A damaged file may raise any exception.
    except Exception as error:
        raise SceneError(
            f"{path}: the points cannot be read ({type(error).__name__}: {error}); export them again, or remove "
            "ply_file_path, which names them"
        ) from None
    if colors.ndim != 2 or len(colors) != len(positions):
        colors = np.full((len(positions), 3), GRAY)
    usable = np.isfinite(positions).all(axis=1)
    return positions[usable], colors[usable, :3].astype(np.uint8)
