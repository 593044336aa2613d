"""The scene loaders as nerfstudio dataparsers: one that detects the layout, and one per layout."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE

from eugen_nerf.scenes import Frame, Scene, SceneError, load_scene
from eugen_nerf.scenes.image_files import inspect_image
from eugen_nerf.scenes.normalize import Center, Orientation
from eugen_nerf.scenes.pixels import decode, usable_pixels

Layout = Literal["auto", "blender", "transforms", "colmap", "llff"]

# Keys are the scene loaders' names, which nerfbaselines uses too.
CAMERA_TYPES = {
    "pinhole": CameraType.PERSPECTIVE,
    "opencv": CameraType.PERSPECTIVE,
    "opencv_fisheye": CameraType.FISHEYE,
}


_reads_frames: ContextVar[bool] = ContextVar("reads_frames", default=False)


@contextmanager
def reading_frames() -> Iterator[None]:
    """Mark that the data manager reads images with `read_image`, which downscales them; others open the files."""
    token = _reads_frames.set(True)
    try:
        yield
    finally:
        _reads_frames.reset(token)


def refuse_reduction(frames: Sequence[Frame], downscale_factor: int) -> None:
    """Check that no image needs downscaling, for data managers that open the files as they are.

    nerfstudio's data managers would wait forever for the downscaled images.

    Raises:
        SceneError: an image still has to be downscaled; the message names the option that does it.
    """
    for frame in frames:
        if frame.downscale > 1:
            copies = downscale_factor // frame.downscale
            raise SceneError(
                f"{frame.image_path}: there is no copy of it downscaled by {downscale_factor}, and this method reads "
                "images through nerfstudio, which does not apply downscale_factor; use "
                f"--pipeline.datamanager.camera-res-scale-factor {1 / frame.downscale:.4g} of ns-train"
                + (f" with downscale-factor {copies}." if copies > 1 else ".")
            )


def check_readable_by_nerfstudio(frames: Sequence[Frame]) -> None:
    """Check images and masks of a split for nerfstudio's data managers, which use the stored values and stack images.

    Raises:
        SceneError: nerfstudio would misread an image or a mask, fail on it, or wait for it forever.
    """
    channels = {"L": 3, "RGB": 3, "RGBA": 4}
    first = frames[0]
    first_mode = inspect_image(first.image_path).mode
    for frame in frames:
        image = inspect_image(frame.image_path)
        if image.mode not in channels:
            raise SceneError(
                f"{frame.image_path}: has Pillow mode {image.mode}, and this method reads images through nerfstudio, "
                "which supports 8-bit gray, RGB and RGBA; convert it"
            )
        if channels[image.mode] != channels[first_mode]:
            raise SceneError(
                f"{frame.image_path}: only one of it and {first.image_path} has an alpha channel, and this method "
                "reads images through nerfstudio, which requires the same channels in a whole split; convert them"
            )
        if (frame.mask_path is None) != (first.mask_path is None):
            without = frame if frame.mask_path is None else first
            raise SceneError(
                f"{without.image_path}: has no mask while others have one, and this method reads masks through "
                "nerfstudio, which would then ignore all masks; add a white mask for it"
            )
        if frame.mask_path is not None:
            mask = inspect_image(frame.mask_path)
            if mask.mode not in ("L", "1") or mask.size != image.size:
                raise SceneError(
                    f"{frame.mask_path}: has Pillow mode {mask.mode}, or not the size of {frame.image_path}; this "
                    "method reads masks through nerfstudio, which requires gray masks (L or 1) of that size; convert "
                    "it"
                )
            pixels = decode(frame.mask_path, "LA")
            if ((pixels[..., 0] > 0) != usable_pixels(pixels)).any():
                raise SceneError(
                    f"{frame.mask_path}: has gray values between black and white, and this method reads masks through "
                    "nerfstudio, which uses every pixel that is not black; save it as a PNG of 0 and 255 only"
                )


@dataclass
class SceneDataParserConfig(DataParserConfig):
    """Options of the scene loaders."""

    _target: type = field(default_factory=lambda: SceneDataParser)
    """Class to instantiate."""
    layout: Layout = "auto"
    """Layout of the scene's folder; auto detects it."""
    downscale_factor: int | None = None
    """Train and evaluate on images downscaled by this integer along each axis. None uses the power of two that leaves
    no side longer than 1,600 pixels, or 1 in methods whose images nerfstudio reads."""
    eval_interval: int = 8
    """Hold out every n-th image for evaluation if the scene's files define no splits; 0 trains on all images."""
    bounded: bool | None = None
    """Whether everything visible lies inside the scene box. By default only in the Blender layout."""
    scene_scale: float | None = None
    """Half the side length of the scene box, world units. By default 1.5 for bounded Blender scenes, otherwise 1."""
    orientation: Orientation | None = None
    """Vertical axis of the world. up: estimated from the photos. none: as in the scene's files. By default none
    for the Blender layout, otherwise up."""
    center: Center | None = None
    """Origin of the world. focus: the point the cameras look at. poses: the mean camera position. none: as in the
    scene's files. By default none for the Blender layout, poses for forward-facing LLFF scenes, otherwise focus."""


@dataclass
class SceneDataParser(DataParser):
    """Converts a loaded `Scene` to nerfstudio's data structures."""

    config: SceneDataParserConfig

    def __init__(self, config: SceneDataParserConfig) -> None:
        super().__init__(config=config)
        self.config = config
        self._told: set[str] = set()

    def load(self, split: str) -> Scene:
        """Load and check one split ("train", "val" or "test").

        Raises:
            SceneError: the scene cannot be used.
        """
        factor = self.config.downscale_factor
        # ns-render sets this option to a float.
        if factor is not None and factor != int(factor):
            raise SceneError(f"downscale factor must be a whole number, not {factor}")
        if factor is None and not _reads_frames.get():
            factor = 1
        config = self.config
        return load_scene(
            Path(config.data),
            split,  # type: ignore[arg-type]
            layout=config.layout,
            downscale=None if factor is None else int(factor),
            eval_interval=config.eval_interval,
            bounded=config.bounded,
            scene_scale=config.scene_scale,
            orientation=config.orientation,
            center=config.center,
        )

    def _generate_dataparser_outputs(self, split: str = "train", **_: object) -> DataparserOutputs:
        scene = self.load(split)
        # Most warnings apply to all splits; print them once.
        for warning in scene.warnings:
            if warning not in self._told:
                CONSOLE.print(f"Warning: {warning}", style="bold yellow", markup=False)
        self._told.update(scene.warnings)
        return self.outputs(scene)

    def outputs(self, scene: Scene) -> DataparserOutputs:
        """Convert a loaded split to nerfstudio's data structures.

        Raises:
            SceneError: an image still has to be downscaled, and its reader does not do that.
        """
        frames = scene.frames
        if not _reads_frames.get():
            refuse_reduction(frames, int(self.config.downscale_factor or 1))

        def column(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor([getattr(frame, name) for frame in frames], dtype=dtype)[:, None]

        cameras = Cameras(
            camera_to_worlds=torch.stack([torch.from_numpy(frame.camera_to_world).float() for frame in frames]),
            fx=column("fx"),
            fy=column("fy"),
            cx=column("cx"),
            cy=column("cy"),
            width=column("width", torch.long),
            height=column("height", torch.long),
            # Undistortion costs time for every ray, so pinhole cameras get no parameters.
            distortion_params=torch.tensor([frame.distortion for frame in frames], dtype=torch.float32)
            if any(any(frame.distortion) for frame in frames)
            else None,
            metadata={},  # ns-export cameras requires some, even if empty
            camera_type=torch.tensor([[CAMERA_TYPES[frame.camera_model].value] for frame in frames]),
        )
        has_masks = all(frame.mask_path is not None for frame in frames)
        metadata: dict[str, object] = {
            "frames": frames,
            "bounded": scene.bounded,
            "near": scene.near,
            "far": scene.far,
        }
        if scene.points is not None and scene.colors is not None and len(scene.points):
            # Under these names, nerfstudio's pipeline passes the points to the model; splatfacto starts from them.
            metadata["points3D_xyz"] = torch.from_numpy(scene.points).float()
            metadata["points3D_rgb"] = torch.from_numpy(scene.colors)
        return DataparserOutputs(
            image_filenames=[frame.image_path for frame in frames],
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.from_numpy(scene.scene_box).float()),
            mask_filenames=[frame.mask_path for frame in frames if frame.mask_path] if has_masks else None,
            metadata=metadata,
            dataparser_transform=torch.from_numpy(scene.world_transform).float(),
            dataparser_scale=float(scene.world_scale),
        )


def _specification(layout: Layout, description: str) -> DataParserSpecification:
    return DataParserSpecification(config=SceneDataParserConfig(layout=layout), description=description)


eugen_scene = _specification("auto", "Any layout that eugen-nerf supports, detected from the folder.")
eugen_blender = _specification("blender", "transforms_train.json, _val and _test, as in NeRF synthetic.")
eugen_transforms = _specification("transforms", "One transforms.json, as written by nerfstudio or instant-ngp.")
eugen_colmap = _specification("colmap", "A COLMAP model in sparse/0 next to its images.")
eugen_llff = _specification("llff", "poses_bounds.npy next to images, as in LLFF.")
