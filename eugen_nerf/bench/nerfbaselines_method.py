"""Our methods with the interface of nerfbaselines (Kulhanek and Sattler, arXiv 2406.17345)."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from nerfbaselines import Method, camera_model_from_int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from PIL import Image

from eugen_nerf.bench.methods import apply_overrides, registered_config
from eugen_nerf.errors import UserError
from eugen_nerf.plugin.checkpoints import check_weights, latest_checkpoint, read_checkpoint
from eugen_nerf.plugin.dataparsers import CAMERA_TYPES
from eugen_nerf.plugin.run_config import read_config
from eugen_nerf.scenes.normalize import SimilarityTransform, faces_forward, near_depth_of_points, normalize
from eugen_nerf.scenes.scene import BLENDER_HALF_SIDE
from eugen_nerf.scenes.world import LEAST_DISTANCE, UNBOUNDED_FAR, bounded_range

# nerfbaselines: k1, k2, p1, p2, k3, k4. nerfstudio: k1, k2, k3, k4, p1, p2.
DISTORTION_ORDER = [0, 1, 4, 5, 2, 3]
WORLD, CONFIG, CHECKPOINTS, DATASET = "world.json", "config.yml", "nerfstudio_models", "dataset.pt"


def _parsed(key: str, value: str) -> Any:
    """The value of an option that is given as text."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"The value of {key} is not valid YAML: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class World:
    """The relation of a dataset's world to the training world; stored with every checkpoint."""

    transform: list[list[float]]
    scale: float
    half_side: float
    bounded: bool
    near: float
    far: float
    num_images: int

    @classmethod
    def of_dataset(cls, dataset: Mapping[str, Any]) -> World:
        """Choose the world as our scene loaders do: objects without background keep theirs, captures are normalized."""
        poses = opengl(dataset["cameras"].poses)
        if dataset["metadata"].get("background_color") is not None:
            change = SimilarityTransform(np.eye(4)[:3], 1.0)
            near, far = bounded_range(BLENDER_HALF_SIDE)
            return cls(change.transform.tolist(), 1.0, BLENDER_HALF_SIDE, True, near, far, len(poses))
        near_depth = None
        if dataset.get("points3D_xyz") is not None and faces_forward(poses):
            near_depth = near_depth_of_points(poses, dataset["points3D_xyz"])
        change = normalize(poses, near_depth=near_depth)
        return cls(change.transform.tolist(), change.scale, 1.0, False, LEAST_DISTANCE, UNBOUNDED_FAR, len(poses))

    @property
    def scene_box(self) -> SceneBox:
        return SceneBox(aabb=torch.tensor([[-self.half_side] * 3, [self.half_side] * 3]))

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for the model."""
        return {"bounded": self.bounded, "near": self.near, "far": self.far}

    def cameras(self, cameras: Any) -> Cameras:
        """Convert nerfbaselines' cameras to nerfstudio's, in the training world."""
        change = SimilarityTransform(np.array(self.transform), self.scale)
        distortion = np.zeros((len(cameras.poses), 6))
        given = cameras.distortion_parameters[:, :6]
        distortion[:, : given.shape[1]] = given
        intrinsics = torch.from_numpy(cameras.intrinsics).float()
        sizes = torch.from_numpy(cameras.image_sizes).long()
        types = [CAMERA_TYPES[camera_model_from_int(int(model))].value for model in cameras.camera_models]
        return Cameras(
            torch.from_numpy(change.poses(opengl(cameras.poses))).float(),
            fx=intrinsics[:, 0, None],
            fy=intrinsics[:, 1, None],
            cx=intrinsics[:, 2, None],
            cy=intrinsics[:, 3, None],
            width=sizes[:, 0, None],
            height=sizes[:, 1, None],
            distortion_params=torch.from_numpy(distortion[:, DISTORTION_ORDER]).float() if distortion.any() else None,
            camera_type=torch.tensor(types)[:, None],
        )


def opengl(poses: np.ndarray) -> np.ndarray:
    """Convert camera-to-world matrices [N, 3, 4] from OpenCV axes (y down, z forward) to OpenGL axes, in float64."""
    flipped = poses[:, :3, :4].astype(np.float64)
    flipped[:, :, 1:3] *= -1
    return flipped


@dataclass
class ArrayDataParserConfig(DataParserConfig):
    """A dataset loaded by nerfbaselines."""

    _target: type = field(default_factory=lambda: ArrayDataParser)
    """Class to instantiate."""


class ArrayDataParser(DataParser):
    """Passes the dataset to nerfstudio from a folder, where `EugenNerf` has written it.

    nerfbaselines evaluates, so the training views are used for every other split.
    """

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        outputs: DataparserOutputs = torch.load(self.config.data / DATASET, weights_only=False)
        return outputs


def write_pictures(images: Sequence[np.ndarray], folder: Path, prefix: str) -> list[Path]:
    """Write 8-bit images [H, W, C] or masks [H, W] to files.

    Raises:
        UserError: an image has another type.
    """
    paths = []
    for index, image in enumerate(images):
        image = np.asarray(image)
        if image.dtype == bool:
            image = np.where(image, np.uint8(255), np.uint8(0))
        if image.dtype != np.uint8:
            raise UserError(f"Image {index} is of type {image.dtype}; eugen-nerf trains on 8-bit images (sRGB).")
        paths.append(folder / f"{prefix}_{index:06d}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


class EugenNerf(Method):
    """The method `eugen-nerf`.

    Args:
        checkpoint: folder that `save` wrote.
        train_dataset: what to train on; None to render only.
        config_overrides: options of nerfstudio's configuration as paths with dots.

    Raises:
        UserError: an option that does not exist, or a dataset that cannot be trained on.
    """

    name: ClassVar[str] = "eugen-nerf"

    def __init__(
        self,
        *,
        checkpoint: str | None = None,
        train_dataset: Mapping[str, Any] | None = None,
        config_overrides: dict[str, Any] | None = None,
    ) -> None:
        if checkpoint is None and train_dataset is None:
            raise ValueError("either a checkpoint or a dataset is needed")
        self.checkpoint = checkpoint
        # nerfbaselines' command line passes all values as text.
        given = (config_overrides or {}).items()
        self.overrides = {key: _parsed(key, value) if isinstance(value, str) else value for key, value in given}
        self.config: Any = registered_config(self.name)
        self.loaded_step: int | None = None
        self.trainer: Any = None
        if checkpoint is not None:
            folder = Path(checkpoint)
            self.config = read_config(folder / CONFIG)
            try:
                self.world = World(**json.loads((folder / WORLD).read_text("utf8")))
            except (OSError, ValueError, TypeError) as error:
                raise UserError(f"{folder / WORLD}: is not what eugen-nerf writes there ({error}).") from error
            file = latest_checkpoint(folder / CONFIG, self.config)
            self.loaded_step = int(file.stem.removeprefix("step-"))
        else:
            assert train_dataset is not None
            self.world = World.of_dataset(train_dataset)
            self._choose_background(train_dataset["metadata"])
        apply_overrides(self.config, self.overrides)
        self.config.validate()
        self.config.set_schedules()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.config.machine.device_type = device
        self.step = self.loaded_step or 0
        self.model: Any
        if train_dataset is None:
            self.model = self._load_model(device)
        else:
            self.trainer = self._build_trainer(train_dataset)
            self.model = self.trainer.pipeline.model

    def _choose_background(self, metadata: Mapping[str, Any]) -> None:
        color = metadata.get("background_color")
        if metadata.get("color_space", "srgb") != "srgb":
            raise UserError(f"eugen-nerf trains on sRGB images, not on {metadata['color_space']}.")
        if color is not None:
            names = {(255, 255, 255): "white", (0, 0, 0): "black"}
            shade = tuple(int(value) for value in color)
            if shade not in names:
                raise UserError(f"The background {shade} of the dataset is neither white nor black.")
            self.config.pipeline.datamanager.eval_background = names[shade]

    def _load_model(self, device: str) -> Any:
        model = self.config.pipeline.model.setup(
            scene_box=self.world.scene_box,
            num_train_data=self.world.num_images,
            metadata={**self.world.metadata, "eval_background": self.config.pipeline.datamanager.eval_background},
            device=device,
            grad_scaler=None,
        ).to(device)
        assert self.checkpoint is not None
        path = Path(self.checkpoint) / CHECKPOINTS / f"step-{self.loaded_step:09d}.ckpt"
        check_weights(model, read_checkpoint(path)["pipeline"], path, self.name)
        return model.eval()

    def _build_trainer(self, dataset: Mapping[str, Any]) -> Any:
        self._folder = tempfile.TemporaryDirectory(prefix="eugen-nerf-")
        folder = Path(self._folder.name)
        masks = dataset.get("masks")
        outputs = DataparserOutputs(
            image_filenames=write_pictures(dataset["images"], folder, "image"),
            cameras=self.world.cameras(dataset["cameras"]),
            scene_box=self.world.scene_box,
            mask_filenames=None if masks is None else write_pictures(masks, folder, "mask"),
            metadata=self.world.metadata,
        )
        torch.save(outputs, folder / DATASET)
        config = self.config
        config.pipeline.datamanager.dataparser = ArrayDataParserConfig(data=folder)
        config.pipeline.datamanager.data = folder
        config.output_dir = folder
        config.experiment_name = "run"
        config.timestamp = "run"
        config.vis = "none"  # nerfbaselines keeps the log
        config.logging.local_writer.enable = False
        config.logging.profiler = "none"
        config.load_dir = None if self.checkpoint is None else Path(self.checkpoint) / CHECKPOINTS
        trainer: Any = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        # A resumed training continues to the same last step.
        trainer.pipeline.spent = lambda step: step / config.max_num_iterations
        return trainer

    @classmethod
    def get_method_info(cls) -> dict[str, Any]:
        """Method information that nerfbaselines needs before it loads a dataset."""
        return {
            "method_id": cls.name,
            "required_features": frozenset(("color",)),
            "supported_camera_models": frozenset(CAMERA_TYPES),
            "supported_outputs": ("color", "depth", "accumulation"),
            "can_resume_training": True,
        }

    def get_info(self) -> dict[str, Any]:
        """Information for nerfbaselines' results."""
        return {
            **self.get_method_info(),
            "num_iterations": self.config.max_num_iterations,
            "loaded_step": self.loaded_step,
            "loaded_checkpoint": self.checkpoint,
            "hparams": {key: str(value) for key, value in self.overrides.items()},
        }

    def train_iteration(self, step: int) -> dict[str, float]:
        """Run one step and return its losses and metrics."""
        if self.trainer is None:
            raise RuntimeError("a method without a dataset cannot train")
        trainer = self.trainer
        trainer.pipeline.train()
        rays = trainer.pipeline.datamanager.get_train_rays_per_batch()
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, location=TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        loss, losses, metrics = trainer.train_iteration(step)
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, location=TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        self.step = step + 1
        values = {"loss": loss, **losses, **metrics}
        return {"num_rays": rays, **{name: float(value.detach()) for name, value in values.items()}}

    @torch.no_grad()
    def render(self, camera: Any, *, options: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Render color [H, W, 3], depth [H, W] in the dataset's unit and accumulation [H, W, 1] for one camera."""
        cameras = self.world.cameras(camera.item()[None]).to(self.model.device)
        self.model.eval()
        outputs = self.model.get_outputs_for_camera(cameras)
        return {
            "color": outputs["rgb"].cpu().numpy(),
            "depth": outputs["depth"][..., 0].cpu().numpy() / self.world.scale,
            "accumulation": outputs["accumulation"].cpu().numpy(),
        }

    def save(self, path: str) -> None:
        """Write everything that the constructor's `checkpoint` needs to a folder."""
        if self.trainer is None:
            raise RuntimeError("a method without a dataset has nothing new to save")
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(yaml.dump(self.config), "utf8")
        (folder / WORLD).write_text(json.dumps(dataclasses.asdict(self.world)), "utf8")
        before, self.trainer.checkpoint_dir = self.trainer.checkpoint_dir, folder / CHECKPOINTS
        try:
            self.trainer.save_checkpoint(self.step)
        finally:
            self.trainer.checkpoint_dir = before


class EugenNerfMlp(EugenNerf):
    """The method `eugen-nerf-mlp`."""

    name: ClassVar[str] = "eugen-nerf-mlp"


class EugenNerfOrder2(EugenNerf):
    """The method `eugen-nerf-order2`."""

    name: ClassVar[str] = "eugen-nerf-order2"
