"""Read COLMAP scenes: a sparse model (binary or text) next to an image folder."""

from __future__ import annotations

import os
from pathlib import Path

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes import colmap_binary, colmap_text
from eugen_nerf.scenes.capture import Capture, Shot
from eugen_nerf.scenes.colmap_model import ColmapModel
from eugen_nerf.scenes.image_files import EXTENSIONS, ImageFinder, list_images, reduced_folders

MODEL_FOLDERS = ("sparse/0", "colmap/sparse/0", "sparse")
MASKS = "masks"


def find_model(root: Path) -> Path | None:
    """The folder with the sparse model of a scene, or None."""
    for folder in MODEL_FOLDERS:
        if _extension(root / folder) is not None:
            return root / folder
    return None


def read_colmap(root: Path) -> Capture:
    """Read a COLMAP scene. Each image has its own camera or shares one.

    Args:
        root: the scene's folder, with images/ and one of sparse/0, colmap/sparse/0, sparse.

    Raises:
        SceneError: the model is missing or damaged, or uses an unsupported camera model.
    """
    folder = find_model(root)
    if folder is None:
        raise SceneError(
            f"{root}: no COLMAP model; looked for cameras and images as .bin or .txt in {', '.join(MODEL_FOLDERS)}"
        )
    model = read_model(folder)
    images = _image_folder(root)
    finder = ImageFinder()
    copies = reduced_folders(root / "images")
    shots = []
    first_use: dict[str, str] = {}
    for image in model.images.values():
        if image.name in first_use:
            raise SceneError(f"{image.where}: the same image is already listed at {first_use[image.name]}")
        first_use[image.name] = image.where
        if image.camera_id not in model.cameras:
            raise SceneError(f"{image.where}: refers to camera {image.camera_id}, which {folder} does not have")
        found = {factor: finder.find(copy / image.name) for factor, copy in copies.items()}
        shots.append(
            Shot(
                name=f"{images.name}/{_without_extension(image.name)}",
                source=model.images_path,
                listed=f"{images.name}/{image.name}",
                image_path=finder.find(images / image.name),
                camera_to_world=image.camera_to_world,
                intrinsics=model.cameras[image.camera_id],
                mask_path=finder.find(root / MASKS / image.name),  # among others NAME.jpg.png, COLMAP's own convention
                reduced={factor: path for factor, path in found.items() if path is not None},
            )
        )
    if not shots:
        raise SceneError(f"{model.images_path}: lists no images; the reconstruction registered none")
    warnings: tuple[str, ...] = ()
    if folder.name == "0" and _extension(folder.parent / "1") is not None:
        warnings = (
            f"{folder.parent} holds several partial models; {folder} is used. If photos are missing, move "
            "the largest model there",
        )
    if os.path.isdir(root / MASKS):
        masked = sum(shot.mask_path is not None for shot in shots)
        names = "" if masked else f"; expected {shots[0].listed.rpartition('/')[2]}.png and the like, PNG or JPEG"
        warnings += (
            f"{root / MASKS}: has masks of {masked} of {len(shots)} photos; dark pixels are not trained on{names}",
        )
    points = model.points
    return Capture(
        "colmap",
        root,
        tuple(shots),
        points=None if points is None else points.positions,
        colors=None if points is None else points.colors,
        warnings=warnings,
    )


def read_model(folder: Path) -> ColmapModel:
    """Read the sparse model in a folder. If it has binary and text files, read the binary ones, as COLMAP does.

    Raises:
        SceneError: there is no model, or its files are damaged.
    """
    extension = _extension(folder)
    if extension is None:
        raise SceneError(f"{folder}: no COLMAP model; it needs cameras and images as .bin or .txt")
    cameras_path, images_path, points_path = (
        folder / f"{name}{extension}" for name in ("cameras", "images", "points3D")
    )
    if extension == ".bin":
        cameras, images = colmap_binary.read_cameras(cameras_path), colmap_binary.read_images(images_path)
        points = colmap_binary.read_points(points_path) if os.path.isfile(points_path) else None
    else:
        cameras, images = colmap_text.read_cameras(cameras_path), colmap_text.read_images(images_path)
        points = colmap_text.read_points(points_path) if os.path.isfile(points_path) else None
    return ColmapModel(images_path, cameras, images, points)


def _extension(folder: Path) -> str | None:
    for extension in (".bin", ".txt"):
        if all(os.path.isfile(folder / f"{name}{extension}") for name in ("cameras", "images")):
            return extension
    return None


def _image_folder(root: Path) -> Path:
    """images/, or the largest downscaled copy if only those exist."""
    reduced = reduced_folders(root / "images")
    for folder in (root / "images", *(reduced[factor] for factor in sorted(reduced))):
        if os.path.isdir(folder) and (list_images(folder) or _has_folders(folder)):
            return folder
    raise SceneError(f"{root}: the COLMAP model has no photos next to it; expected them in {root / 'images'}")


def _has_folders(folder: Path) -> bool:
    try:
        return any(os.path.isdir(folder / name) for name in os.listdir(folder))
    except OSError:
        return False


def _without_extension(name: str) -> str:
    return os.path.splitext(name)[0] if name.lower().endswith(EXTENSIONS) else name
