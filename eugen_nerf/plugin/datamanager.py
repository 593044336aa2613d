"""nerfstudio's data manager with pixels read by this package's scene loaders."""

import copy
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
from nerfstudio.data.utils.dataloaders import (
    CacheDataloader,
    FixedIndicesEvalDataloader,
    RandIndicesEvalDataloader,
)
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.colors import get_color
from PIL import Image
from torch.utils.data import Dataset

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.dataparsers import reading_frames
from eugen_nerf.plugin.drawn_ahead import DrawnAhead
from eugen_nerf.plugin.pixel_sampler import UniformPixelSampler
from eugen_nerf.plugin.rays import TabulatedRays
from eugen_nerf.scenes import Frame, read_image, read_mask

Background = Literal["white", "black"]


class SceneDataset(InputDataset):
    """Images of a scene. Applies the loader's downscaling; errors name the file that cannot be read.

    Images from nerfstudio's own dataparsers are read as nerfstudio reads them.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        if dataparser_outputs.alpha_color is not None and _has_alpha(dataparser_outputs):
            # nerfstudio's dataparsers of Blender scenes mark objects without a background this way.
            self.metadata["bounded"] = True
        # The model also receives the metadata. It does not need the frames, and receives the points separately.
        self.frames: tuple[Frame, ...] = self.metadata.pop("frames", ())
        for key in ("points3D_xyz", "points3D_rgb"):
            self.metadata.pop(key, None)
        masked = any(frame.mask_path is not None for frame in self.frames)
        self.has_masks = masked or dataparser_outputs.mask_filenames is not None

    def set_background(self, name: Background | None) -> None:
        """Set the color that images with alpha are blended with from now on; None keeps their alpha."""
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
            data["mask"] = self.get_mask(image_idx)[..., None]
        return data

    def get_mask(self, image_idx: int) -> torch.Tensor:
        """[H, W] bool: which pixels of an image may be trained on."""
        if not self.frames:
            mask: torch.Tensor = super().get_data(image_idx)["mask"]
            return mask[..., 0]
        usable = np.where(read_mask(self.frames[image_idx]), np.uint8(255), np.uint8(0))
        # A scaled pixel is masked if any pixel that contributes to it is masked.
        return torch.from_numpy(self._scaled(usable, image_idx) == 255)

    def _scaled(self, pixels: npt.NDArray[np.uint8], image_idx: int) -> npt.NDArray[np.uint8]:
        """Resize to the camera's size, which nerfstudio's camera_res_scale_factor may have changed."""
        size = (int(self.cameras.width[image_idx]), int(self.cameras.height[image_idx]))
        if size == pixels.shape[1::-1]:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


class StoredPixels(Dataset):
    """A dataset's images as bytes: a quarter of the memory of nerfstudio's float32 images."""

    def __init__(self, dataset: InputDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # nerfstudio fills masked pixels with a color in [0, 1].
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
    """Keep the training images on the GPU. None does so if they take at most a quarter of its free memory."""
    eval_background: Background = "white"
    """Background color in rendered images and metrics."""
    steps_drawn_at_once: int = 16
    """For how many steps training pixels are drawn at once, which costs less than drawing them in each step. With
    train_num_images_to_sample_from or a patch_size, they are drawn in each step."""

    def validate(self) -> None:
        """Check all options; raise a UserError that names the first invalid one."""
        if not 0 < self.camera_res_scale_factor < math.inf:
            raise UserError(f"camera_res_scale_factor must be a positive number, not {self.camera_res_scale_factor}.")
        color = getattr(self.dataparser, "alpha_color", "white")
        if color != "white":
            raise UserError(
                f"alpha_color must stay white, not {color}: training uses transparency itself, and the background of "
                "images and metrics is chosen with --pipeline.datamanager.eval-background."
            )
        for name in ("train_num_images_to_sample_from", "eval_num_images_to_sample_from"):
            value = getattr(self, name)
            if value != -1 and value < 1:
                raise UserError(f"{name} must be -1 (all images) or at least 1, not {value}.")
        if self.steps_drawn_at_once < 1:
            raise UserError(f"steps_drawn_at_once must be at least 1, not {self.steps_drawn_at_once}.")


class SceneDataManager(VanillaDataManager[SceneDataset]):
    """Batches of rays from a `SceneDataset`."""

    config: SceneDataManagerConfig

    def __init__(self, config: SceneDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        self._images_on_gpu = config.images_on_gpu
        # nerfstudio would pass indices on the GPU to ray generators that look them up in main memory.
        config = replace(config, images_on_gpu=False)
        with reading_frames():
            super().__init__(config, *args, **kwargs)

    def create_train_dataset(self) -> SceneDataset:
        return self._on_background(super().create_train_dataset())

    def create_eval_dataset(self) -> SceneDataset:
        dataset = self._on_background(super().create_eval_dataset())
        # nerfstudio checks only the sizes of the training images, which are loaded before these.
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
        # Only training uses alpha; the viewer shows the dataset's own images.
        with_alpha = copy.copy(self.train_dataset)
        with_alpha.set_background(None)
        config = self.config
        self.train_image_dataloader = self._cached(
            with_alpha, config.train_num_images_to_sample_from, config.train_num_times_to_repeat_images
        )
        self.iter_train_image_dataloader = iter(self.train_image_dataloader)
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, config.train_num_rays_per_batch)
        cameras = self.train_dataset.cameras.to(self.device)
        # The cameras of a video or a rig share their intrinsics. With too many different large cameras, nerfstudio
        # generates the rays.
        try:
            self.train_ray_generator = TabulatedRays(cameras)  # type: ignore[assignment]
        except ValueError:
            self.train_ray_generator = RayGenerator(cameras)
        # The samplers of patches and of pairs draw rays that belong together.
        independent = type(self.train_pixel_sampler) in (PixelSampler, UniformPixelSampler)
        same_images = config.train_num_images_to_sample_from == -1
        steps = config.steps_drawn_at_once if independent and same_images else 1
        self._drawn_ahead = DrawnAhead(self._draw, steps)

    def setup_eval(self) -> None:
        config, dataset = self.config, self.eval_dataset
        self.eval_image_dataloader = self._cached(
            dataset, config.eval_num_images_to_sample_from, config.eval_num_times_to_repeat_images
        )
        self.iter_eval_image_dataloader = iter(self.eval_image_dataloader)
        self.eval_pixel_sampler = self._get_pixel_sampler(dataset, config.eval_num_rays_per_batch)
        self.eval_ray_generator = RayGenerator(dataset.cameras.to(self.device))
        workers = self.world_size * 4
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(
            dataset, device=self.device, num_workers=workers
        )
        self.eval_dataloader = RandIndicesEvalDataloader(dataset, device=self.device, num_workers=workers)

    def _cached(self, dataset: SceneDataset, images: int, repeats: int) -> CacheDataloader:
        """Batches of images that stay in memory, as bytes."""
        return CacheDataloader(
            StoredPixels(dataset),
            num_images_to_sample_from=images,
            num_times_to_repeat_images=repeats,
            device=self.device,
            num_workers=self.world_size * 4,
            pin_memory=True,
            collate_fn=self.config.collate_fn,
            exclude_batch_keys_from_device=self.exclude_batch_keys_from_device,
        )

    def _get_pixel_sampler(self, dataset: SceneDataset, num_rays_per_batch: int) -> PixelSampler:
        sampler = super()._get_pixel_sampler(dataset, num_rays_per_batch)
        special = sampler.config.is_equirectangular or sampler.config.fisheye_crop_radius is not None
        place = self._place_of_photos(dataset)
        if type(sampler) is not PixelSampler or special:
            return sampler
        # nerfstudio's sampler does not support the mask of a single image, nor masks that leave less than a batch.
        simple = self.config.collate_fn is not variable_res_collate and not dataset.has_masks
        if place.type == "cpu" and simple:
            return sampler
        return UniformPixelSampler(sampler.config, place, num_rays_per_batch=num_rays_per_batch)

    def _place_of_photos(self, dataset: SceneDataset) -> torch.device:
        """Device on which the pixels of a dataset's batches are kept."""
        gpu, wanted = torch.device(self.device), self._images_on_gpu
        if gpu.type != "cuda" or dataset is not self.train_dataset or wanted is False:
            return torch.device("cpu")
        if wanted is None:
            cameras = dataset.cameras
            # Four bytes per pixel: color and alpha, or color and mask.
            wanted = 4 * int((cameras.width * cameras.height).sum()) <= torch.cuda.mem_get_info(gpu)[0] // 4
        return gpu if wanted else torch.device("cpu")

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays of random pixels and their colors in [0, 1]."""
        self.train_count += 1
        assert self.train_pixel_sampler is not None
        return self._drawn_ahead.take(self.train_pixel_sampler.num_rays_per_batch)

    def _draw(self, rays: int) -> tuple[RayBundle, dict[str, Any]]:
        """As `next_train`, with another number of rays than the next step has."""
        sampler, images = self.train_pixel_sampler, next(self.iter_train_image_dataloader)
        assert sampler is not None
        wanted = sampler.num_rays_per_batch
        sampler.set_num_rays_per_batch(rays)
        batch = sampler.sample(images)
        sampler.set_num_rays_per_batch(wanted)
        return self.train_ray_generator(batch["indices"]), self._with_colors(batch)

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays of random pixels of the evaluation images and their colors in [0, 1]."""
        rays, batch = super().next_eval(step)
        return rays, self._with_colors(batch)

    def _with_colors(self, batch: dict[str, Any]) -> dict[str, Any]:
        colors = batch["image"].to(self.device)
        batch["image"] = colors.float() / 255.0 if colors.dtype == torch.uint8 else colors
        return batch
