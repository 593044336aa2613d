"""Detect the layout of a scene on disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.blender import SPLITS, split_file
from eugen_nerf.scenes.colmap import MODEL_FOLDERS, find_model
from eugen_nerf.scenes.llff import POSES_FILE

LAYOUTS = ("blender", "transforms", "colmap", "llff")

_LOOKED_FOR = (
    "transforms_train.json (Blender), transforms.json (nerfstudio, instant-ngp), cameras and images as .bin "
    f"or .txt in {', '.join(MODEL_FOLDERS)} (COLMAP), {POSES_FILE} (LLFF)"
)


def detect_layout(path: Path) -> str:
    """The layout of the scene at `path`: "blender", "transforms", "colmap" or "llff".

    If several are present, files with camera-to-world matrices take precedence, since their author chose the split and
    the axes. COLMAP takes precedence over LLFF, which is computed from it and drops distortion. A Blender scene without
    its training split comes last, since it cannot be trained on. A path to a .json file selects that transforms file.

    Raises:
        SceneError: the path does not exist or holds no known layout. The message lists what was looked for and what was
            found.
    """
    if not os.path.exists(path):
        raise SceneError(f"{path}: does not exist; give the folder of a scene")
    if os.path.isfile(path):
        if path.suffix.lower() != ".json":
            raise SceneError(f"{path}: is a file; give the folder of a scene, or its transforms .json file")
        return "blender" if _is_split_file(path) else "transforms"
    layout = _layout_of_folder(path)
    if layout is None:
        raise SceneError(f"{path}: holds no scene. Looked for {_LOOKED_FOR}. {describe_folder(path)}")
    return layout


def scene_root(path: Path) -> Path:
    """The folder of a scene that is given by its folder or its .json file."""
    return path.parent if os.path.isfile(path) else path


def describe_folder(path: Path) -> str:
    """A sentence on the contents of a folder and a subfolder that holds a scene, if there is one."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        return f"The folder cannot be listed ({error.strerror})"
    if not entries:
        return "The folder is empty"
    names = [entry.name + ("/" if os.path.isdir(entry.path) else "") for entry in entries]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    scenes = [
        entry.name for entry in entries[:100] if os.path.isdir(entry.path) and _layout_of_folder(Path(entry.path))
    ]
    hint = f"; did you mean {path / scenes[0]}?" if scenes else ""
    return f"The folder holds {shown}{hint}"


def _layout_of_folder(path: Path) -> str | None:
    if os.path.isfile(split_file(path, "train")):
        return "blender"
    if os.path.isfile(path / "transforms.json"):
        return "transforms"
    if find_model(path) is not None:
        return "colmap"
    if os.path.isfile(path / POSES_FILE):
        return "llff"
    if any(os.path.isfile(split_file(path, split)) for split in SPLITS):
        return "blender"
    return None


def _is_split_file(path: Path) -> bool:
    return re.fullmatch(rf"transforms_({'|'.join(SPLITS)})\.json", path.name) is not None
