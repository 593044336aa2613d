"""Reads the sparse points that some layouts keep in a PLY file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eugen_nerf.errors import SceneError

GREY = 128  # of points without colours


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points of a PLY file, text or binary, or a mesh's vertices; those whose position is not finite are left out.

    Returns:
        Positions [P, 3] float64, and colours [P, 3] uint8, grey where the file has none.

    Raises:
        SceneError: it cannot be read.
    """
    import trimesh  # half a second, for the few scenes that need it

    try:
        cloud: Any = trimesh.load(str(path), file_type="ply", process=False)
        positions = np.asarray(getattr(cloud, "vertices", np.empty((0, 3))), dtype=np.float64).reshape(-1, 3)
        coloured_mesh = getattr(getattr(cloud, "visual", None), "kind", None) == "vertex"
        colours = np.asarray(cloud.visual.vertex_colors if coloured_mesh else getattr(cloud, "colors", ()))
    # Whatever a damaged file makes of the reader.
    except Exception as error:
        raise SceneError(
            f"{path}: the points cannot be read ({type(error).__name__}: {error}); export them again, or remove "
            "ply_file_path, which names them"
        ) from None
    if colours.ndim != 2 or len(colours) != len(positions):
        colours = np.full((len(positions), 3), GREY)
    usable = np.isfinite(positions).all(axis=1)
    return positions[usable], colours[usable, :3].astype(np.uint8)
