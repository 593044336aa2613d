"""nerfstudio's data manager, reading pixels through our scene loaders."""

from dataclasses import dataclass, field
from typing import Dict, Literal, Type

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

from eugen_nerf.scenes import Frame, read_image, read_mask


class SceneDataset(InputDataset):
    """Images of a scene; keeps alpha, applies the loader's downscaling, names the file it cannot read.

    Frames of nerfstudio's own dataparsers are read as nerfstudio does.
    """

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        # The model is given the metadata too, and has no use for the frames.
        self.frames: tuple[Frame, ...] = self.metadata.pop("frames", ())

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        if not self.frames or self.scale_factor != 1.0:
            return super().get_numpy_image(image_idx)
        return read_image(self.frames[image_idx])

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> Dict:
        if not self.frames or self.scale_factor != 1.0 or self._dataparser_outputs.mask_filenames is None:
            return super().get_data(image_idx, image_type)
        image = self.get_image_float32(image_idx) if image_type == "float32" else self.get_image_uint8(image_idx)
        mask = torch.from_numpy(read_mask(self.frames[image_idx]))[..., None]
        return {"image_idx": image_idx, "image": image, "mask": mask}


@dataclass
class SceneDataManagerConfig(VanillaDataManagerConfig):
    """Options of the data manager."""

    _target: Type = field(default_factory=lambda: SceneDataManager)
    """Class to instantiate."""


class SceneDataManager(VanillaDataManager[SceneDataset]):
    """Batches of rays from a `SceneDataset`."""
