"""`load_scene`, the entry point: reads any known layout, checks it and returns cameras in a normalized world."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.blender import read_blender
from eugen_nerf.scenes.capture import CameraModel, Capture, Distortion, Shot, Split
from eugen_nerf.scenes.colmap import read_colmap
from eugen_nerf.scenes.detect import LAYOUTS, describe_folder, detect_layout, scene_root
from eugen_nerf.scenes.llff import POSES_FILE, read_llff
from eugen_nerf.scenes.normalize import Center, Orientation, SimilarityTransform
from eugen_nerf.scenes.resolution import ChosenImage, automatic_downscale, check_mask, choose_images
from eugen_nerf.scenes.splits import select_split
from eugen_nerf.scenes.transforms import read_transforms
from eugen_nerf.scenes.world import bounded_range, change_world, remark_on_astray_cameras, unbounded_range

Layout = Literal["auto", "blender", "transforms", "colmap", "llff"]

BLENDER_HALF_SIDE = 1.5


@dataclass(frozen=True, eq=False)
class Frame:
    """One photo and its camera, in the returned world and at the requested resolution.

    Attributes:
        name: its name in messages, e.g. "train/r_3".
        image_path: the file that `read_image` reads.
        camera_to_world: [3, 4] float64, OpenGL axes: x right, y up, z back.
        fx, fy, cx, cy: pixels of the image after `downscale`; pixel centers are at half-integers.
        width, height: of that image.
        camera_model: "pinhole", "opencv" or "opencv_fisheye".
        distortion: k1, k2, k3, k4, p1, p2 (for a fisheye, k1..k4 multiply powers of the angle).
        mask_path: image that is dark where pixels must not be used; None to use all pixels.
        downscale: factor of the box filter that `read_image` applies to the file's pixels.
        channels: of the array that `read_image` returns: 4 for all frames of a scene with transparency, otherwise 3.
    """

    name: str
    image_path: Path
    camera_to_world: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    camera_model: CameraModel
    distortion: Distortion
    mask_path: Path | None
    downscale: int
    channels: Literal[3, 4]


@dataclass(frozen=True, eq=False)
class Scene:
    """A split of a scene.

    Attributes:
        layout: "blender", "transforms", "colmap" or "llff".
        root: the scene's folder.
        split: the requested split.
        frames: at least one.
        bounded: True if everything is inside `scene_box`. False for a capture with a background: its cameras are inside
            `scene_box`, and the space beyond the box should be contracted.
        scene_box: [2, 3] lower and upper corner in the returned world.
        near, far: range along rays in units of the returned world. In a bounded scene, it includes the whole box from
            any camera position.
        has_alpha: whether the frames have four channels.
        world_transform, world_scale: [3, 4] and a number; x' = world_scale * (world_transform x) takes the
            file's world to the returned one, the same for all splits. If a transforms.json states `applied_transform`
            or `applied_scale`, which had changed another world into the file's, it takes that world instead.
        points, colors: [P, 3] float64 sparse points in the returned world and [P, 3] uint8 colors, if any.
        warnings: warnings for the user.
    """

    layout: str
    root: Path
    split: Split
    frames: tuple[Frame, ...]
    bounded: bool
    scene_box: np.ndarray
    near: float
    far: float
    has_alpha: bool
    world_transform: np.ndarray
    world_scale: float
    points: np.ndarray | None
    colors: np.ndarray | None
    warnings: tuple[str, ...]


def load_scene(
    path: Path | str,
    split: Split = "train",
    *,
    layout: Layout = "auto",
    downscale: int | None = 1,
    eval_interval: int = 8,
    bounded: bool | None = None,
    scene_scale: float | None = None,
    orientation: Orientation | None = None,
    center: Center | None = None,
) -> Scene:
    """Load one split of a scene, after checking all its files. `read_image` reads the pixels later.

    Args:
        path: the scene's folder, or a transforms .json file.
        split: "train", "val" or "test".
        layout: "auto" detects it, see `detect_layout`.
        downscale: downscale images by this integer, relative to the size that the files state; None: by the power of
            two that leaves no side of any image longer than `resolution.LONGEST_SIDE`.
        eval_interval: if the files define no splits, every `eval_interval`-th frame, sorted by name, is held out for
            both val and test. 0 trains on all frames and evaluates on some of them.
        bounded: whether everything is inside the scene box; None: only in the Blender layout.
        scene_scale: half the side length of the scene box; None: 1.5 for a bounded Blender scene, otherwise 1.
        orientation: "up" or "none"; None: "none" in the Blender layout, otherwise "up".
        center: "focus", "poses" or "none"; None: "none" in the Blender layout, "poses" for a forward-facing LLFF
            scene, otherwise "focus". See `normalize`.

    Raises:
        SceneError: there is a problem with the files or the options. The message names the file and the frame.
        ValueError: `split`, `layout`, `orientation` or `center` has none of the values above.
    """
    path = Path(os.path.expanduser(path))  # unlike pathlib's, leaves names of unknown users as they are
    _check_options(split, layout, orientation, center, downscale, eval_interval, scene_scale)
    detected = _layout(path, layout)
    capture = _read(path, detected)
    bounded = detected == "blender" if bounded is None else bounded
    selected, warnings = select_split(capture, split, eval_interval)
    usable = [shot for shot in capture.shots if shot.image_path is not None]
    if downscale is None:  # the same for all splits
        downscale, remarks = automatic_downscale(usable)
        warnings += remarks
    images, remarks = choose_images(selected, downscale)
    warnings += remarks

    # Computed from all splits, so that they share one world and one range.
    poses = np.stack([shot.camera_to_world for shot in usable])
    change = change_world(capture, poses, bounded, orientation, center)
    original = change if capture.applied is None else change.after(capture.applied)
    moved = change.poses(poses)
    if scene_scale is None:
        scene_scale = BLENDER_HALF_SIDE if bounded and detected == "blender" else 1.0
    if bounded:
        near, far = bounded_range(scene_scale)
        warnings += remark_on_astray_cameras(moved, scene_scale)
    else:
        near, far = unbounded_range(capture, change)
    transparent = sum(image.info.has_alpha for image in images)
    if 0 < transparent < len(images):
        warnings.append(
            f"{transparent} of {len(images)} images of the {split} split have an alpha channel; the others "
            "are treated as opaque"
        )
    has_alpha = transparent > 0
    return Scene(
        layout=detected,
        root=capture.root,
        split=split,
        frames=tuple(_frame(shot, image, change, has_alpha) for shot, image in zip(selected, images, strict=True)),
        bounded=bounded,
        scene_box=np.array([[-scene_scale] * 3, [scene_scale] * 3]),
        near=near,
        far=far,
        has_alpha=has_alpha,
        world_transform=original.transform,
        world_scale=original.scale,
        points=None if capture.points is None else change.points(capture.points),
        colors=capture.colors,
        warnings=(*capture.warnings, *warnings),
    )


def _check_options(
    split: str,
    layout: str,
    orientation: str | None,
    center: str | None,
    downscale: int | None,
    eval_interval: int,
    scene_scale: float | None,
) -> None:
    choices = {
        "split": (split, ("train", "val", "test")),
        "layout": (layout, ("auto", *LAYOUTS)),
        "orientation": (orientation, (None, "up", "none")),
        "center": (center, (None, "focus", "poses", "none")),
    }
    for option, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    if downscale is not None and downscale < 1:
        raise SceneError(f"downscale must be a whole number, at least 1, not {downscale}")
    if eval_interval < 0 or eval_interval == 1:
        raise SceneError(
            f"eval interval {eval_interval} leaves no frame to train on; every n-th frame is held out, so it "
            "must be at least 2, or 0 to hold out none"
        )
    if scene_scale is not None and not 1e-6 <= scene_scale <= 1e6:
        raise SceneError(
            f"scene scale, half the side length of the scene box, must be from 1e-6 to 1e6, not {scene_scale}"
        )


def _layout(path: Path, layout: str) -> str:
    """The layout to read. Files and missing paths always go through `detect_layout`."""
    if layout != "auto" and os.path.isdir(path):
        return layout
    detected = detect_layout(path)
    if layout not in ("auto", detected):
        raise SceneError(f"{path}: is a file of the layout {detected}; for {layout}, give the scene's folder")
    return detected


def _read(path: Path, layout: str) -> Capture:
    root = scene_root(path)
    if layout == "transforms":
        listing = path if os.path.isfile(path) else path / "transforms.json"
        return read_transforms(_existing(listing))
    if layout == "llff":
        _existing(root / POSES_FILE)
        return read_llff(root)
    return read_blender(root) if layout == "blender" else read_colmap(root)


def _existing(path: Path) -> Path:
    if not os.path.isfile(path):
        raise SceneError(f"{path}: does not exist. {describe_folder(path.parent)}")
    return path


def _frame(shot: Shot, image: ChosenImage, change: SimilarityTransform, has_alpha: bool) -> Frame:
    if shot.mask_path is not None:
        check_mask(shot, image)
    return Frame(
        name=shot.name,
        image_path=image.path,
        camera_to_world=change.poses(shot.camera_to_world),
        fx=image.fx,
        fy=image.fy,
        cx=image.cx,
        cy=image.cy,
        width=image.width,
        height=image.height,
        camera_model=shot.intrinsics.model,
        distortion=shot.intrinsics.distortion,
        mask_path=shot.mask_path,
        downscale=image.downscale,
        channels=4 if has_alpha else 3,
    )
