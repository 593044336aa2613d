"""nerfstudio's data manager, reading pixels through our scene loaders."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import (
    VanillaDataManager,
    VanillaDataManagerConfig,
    variable_res_collate,
)
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler
from nerfstudio.data.utils.dataloaders import CacheDataloader
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.colors import get_color
from PIL import Image
from torch.utils.data import Dataset

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.dataparsers import reading_frames
from eugen_nerf.plugin.pixel_sampler import UniformPixelSampler
from eugen_nerf.plugin.rays import TabulatedRays
from eugen_nerf.scenes import Frame, read_image, read_mask

Background = Literal["white", "black"]


class SceneDataset(InputDataset):
    """Images of a scene; applies the loader's downscaling, names the file it cannot read.

    Frames of nerfstudio's own dataparsers are read as nerfstudio does.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        if dataparser_outputs.alpha_color is not None and _has_alpha(dataparser_outputs):
            # So nerfstudio's parsers of Blender scenes mark objects in front of nothing.
            self.metadata["bounded"] = True
        # The model is given the metadata too, and has no use for the frames. Points it is given apart.
        self.frames: tuple[Frame, ...] = self.metadata.pop("frames", ())
        for key in ("points3D_xyz", "points3D_rgb"):
            self.metadata.pop(key, None)
        self.has_masks = any(frame.mask_path is not None for frame in self.frames)

    def set_background(self, name: Background | None) -> None:
        """Blend images that have alpha with a colour from now on; None keeps their alpha."""
        color = None if name is None else get_color(name)
        self._dataparser_outputs = replace(self._dataparser_outputs, alpha_color=color)

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        if not self.frames:
            return super().get_numpy_image(image_idx)
        return self._scaled(read_image(self.frames[image_idx]), image_idx)

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict:
        if not self.frames:
            return super().get_data(image_idx, image_type)
        read = self.get_image_uint8 if image_type == "uint8" else self.get_image_float32
        data = {"image_idx": image_idx, "image": read(image_idx)}
        if self.has_masks:
            mask = np.where(read_mask(self.frames[image_idx]), np.uint8(255), np.uint8(0))
            # Whatever touches a masked pixel is masked.
            data["mask"] = torch.from_numpy(self._scaled(mask, image_idx) == 255)[..., None]
        return data

    def _scaled(self, pixels: npt.NDArray[np.uint8], image_idx: int) -> npt.NDArray[np.uint8]:
        """To the size of the camera, which nerfstudio's camera_res_scale_factor may have changed."""
        size = (int(self.cameras.width[image_idx]), int(self.cameras.height[image_idx]))
        if size == pixels.shape[1::-1]:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


class StoredPixels(Dataset):
    """A dataset's images as bytes, a quarter of the memory that nerfstudio's float32 takes."""

    def __init__(self, dataset: InputDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # nerfstudio paints masked pixels with a colour from 0 to 1.
        return self.dataset.get_data(index, "float32" if self.dataset.mask_color else "uint8")


def _has_alpha(outputs: DataparserOutputs) -> bool:
    with Image.open(outputs.image_filenames[0]) as image:
        return image.mode == "RGBA"


@dataclass
class SceneDataManagerConfig(VanillaDataManagerConfig):
    """Options of the data manager."""

    _target: type = field(default_factory=lambda: SceneDataManager)
    """Class to instantiate."""
    images_on_gpu: bool | None = None  # type: ignore[assignment]
    """Whether the training photos are kept on the GPU; None for where they take no more than a quarter of what is free
    there."""
    eval_background: Background = "white"
    """Behind the scene in pictures and metrics."""

    def validate(self) -> None:
        """Raises UserError that names the option which cannot work."""
        if not 0 < self.camera_res_scale_factor < math.inf:
            raise UserError(f"camera_res_scale_factor must be a positive number, not {self.camera_res_scale_factor}.")
        for name in ("train_num_images_to_sample_from", "eval_num_images_to_sample_from"):
            value = getattr(self, name)
            if value != -1 and value < 1:
                raise UserError(f"{name} must be -1, for all of them, or at least 1, not {value}.")


class SceneDataManager(VanillaDataManager[SceneDataset]):
    """Batches of rays from a `SceneDataset`."""

    config: SceneDataManagerConfig

    def __init__(self, config: SceneDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        self._images_on_gpu = config.images_on_gpu
        # nerfstudio would hand indices on the GPU to ray generators that look them up in main memory.
        config = replace(config, images_on_gpu=False)
        with reading_frames():
            super().__init__(config, *args, **kwargs)

    def create_train_dataset(self) -> SceneDataset:
        return self._on_background(super().create_train_dataset())

    def create_eval_dataset(self) -> SceneDataset:
        dataset = self._on_background(super().create_eval_dataset())
        # nerfstudio looks at the sizes of the training photos only, which are there before these.
        cameras = [each.cameras for each in (self.train_dataset, dataset)]
        sizes = torch.cat([torch.cat([camera.width, camera.height], dim=-1) for camera in cameras])
        if (sizes != sizes[0]).any():
            self.config.collate_fn = variable_res_collate
        return dataset

    def _on_background(self, dataset: SceneDataset) -> SceneDataset:
        dataset.set_background(self.config.eval_background)
        dataset.metadata["eval_background"] = self.config.eval_background
        return dataset

    def setup_train(self) -> None:
        # Only training knows what to do with alpha.
        self.train_dataset.set_background(None)
        config = self.config
        self.train_image_dataloader = CacheDataloader(
            StoredPixels(self.train_dataset),
            num_images_to_sample_from=config.train_num_images_to_sample_from,
            num_times_to_repeat_images=config.train_num_times_to_repeat_images,
            device=self.device,
            num_workers=self.world_size * 4,
            pin_memory=True,
            collate_fn=config.collate_fn,
            exclude_batch_keys_from_device=self.exclude_batch_keys_from_device,
        )
        self.iter_train_image_dataloader = iter(self.train_image_dataloader)
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, config.train_num_rays_per_batch)
        cameras = self.train_dataset.cameras.to(self.device)
        # A video's or a rig's cameras share their intrinsics; very many large different ones are left to nerfstudio.
        try:
            self.train_ray_generator = TabulatedRays(cameras)  # type: ignore[assignment]
        except ValueError:
            self.train_ray_generator = RayGenerator(cameras)

    def _get_pixel_sampler(self, dataset: SceneDataset, num_rays_per_batch: int) -> PixelSampler:
        sampler = super()._get_pixel_sampler(dataset, num_rays_per_batch)
        special = sampler.config.is_equirectangular or sampler.config.fisheye_crop_radius is not None
        place = self._place_of_photos(dataset)
        if type(sampler) is not PixelSampler or special:
            return sampler
        # nerfstudio's knows masks, but not of a single photo, nor such as leave less than a batch.
        simple = self.config.collate_fn is not variable_res_collate and not dataset.has_masks
        if place.type == "cpu" and simple:
            return sampler
        return UniformPixelSampler(sampler.config, place, num_rays_per_batch=num_rays_per_batch)

    def _place_of_photos(self, dataset: SceneDataset) -> torch.device:
        """Where the pixels that a dataset's batches draw from are kept."""
        gpu, wanted = torch.device(self.device), self._images_on_gpu
        if gpu.type != "cuda" or dataset is not self.train_dataset or wanted is False:
            return torch.device("cpu")
        if wanted is None:
            cameras = dataset.cameras
            # Four bytes for colour and alpha, or for colour and mask.
            wanted = 4 * int((cameras.width * cameras.height).sum()) <= torch.cuda.mem_get_info(gpu)[0] // 4
        return gpu if wanted else torch.device("cpu")

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays of random pixels, and their colours from 0 to 1."""
        rays, batch = super().next_train(step)
        if batch["image"].dtype == torch.uint8:
            batch["image"] = batch["image"].float() / 255.0
        return rays, batch
