"""Sample training pixels from images of any sizes, on the device where the images are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from eugen_nerf.errors import UserError

# Usable pixels are counted in groups of this size: half a byte per pixel, and few pixels to search for the drawn one.
GROUP = 16

Images = Tensor | list[Tensor]  # [I, H, W, C], or [H, W, C] of different sizes


@dataclass(frozen=True, eq=False)
class _Usable:
    """Which of P pixels may be drawn."""

    groups: Tensor  # [ceil(P / GROUP), GROUP] bool
    before: Tensor  # [ceil(P / GROUP)] int64, those in earlier groups
    number: int

    @classmethod
    def of(cls, mask: Tensor) -> _Usable:
        """Of a mask [P] bool."""
        padded = mask.new_zeros(-(-len(mask) // GROUP) * GROUP)
        padded[: len(mask)] = mask
        groups = padded.view(-1, GROUP)
        counts = groups.sum(dim=1)
        return cls(groups, counts.cumsum(0) - counts, int(counts.sum()))

    def draw(self, number: int) -> Tensor:
        """Pixels [number], drawn uniformly from the usable ones.

        Redrawing until all are usable would wait for the device repeatedly.
        """
        rank = torch.randint(self.number, (number,), device=self.before.device)
        group = torch.searchsorted(self.before, rank, right=True) - 1
        upto = self.groups[group].cumsum(dim=1)  # usable pixels of the group, up to and including each pixel
        within = rank - self.before[group]
        return group * GROUP + torch.searchsorted(upto, within[:, None], right=True)[:, 0]


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Images row after row in one tensor."""

    source: Images  # the images; they share the memory of `values` if they stay on their device
    values: Tensor  # [P, C]
    cameras: Tensor  # [I] int64
    starts: Tensor  # [I + 1] int64, the first pixel of each image, and P
    widths: Tensor  # [I] int64
    usable: _Usable | None  # None: all

    @classmethod
    def of(cls, images: Images, masks: Images | None, cameras: Tensor, device: torch.device) -> _Pixels:
        """The images' pixels. Entries of lists are replaced by views, so that one device does not hold them twice."""
        values = _joined(images).to(device)
        usable = None if masks is None else _Usable.of(_joined(masks)[:, 0].bool().to(device))
        if usable is not None and not usable.number:
            raise UserError(
                "The masks of the training photos leave no pixel to train on. Training uses white pixels; the masks "
                "may have to be inverted. With train-num-images-to-sample-from this holds for the sampled photos alone."
            )
        starts = torch.tensor([0, *(image.shape[0] * image.shape[1] for image in images)]).cumsum(0).to(device)
        widths = torch.tensor([image.shape[1] for image in images], device=device)
        return cls(images, values, cameras.to(device), starts, widths, usable)

    def draw(self, number: int) -> Tensor:
        """Rows [number] of `values`, drawn uniformly from the usable ones."""
        if self.usable is not None:
            return self.usable.draw(number)
        return torch.randint(len(self.values), (number,), device=self.values.device)


def _joined(images: Images) -> Tensor:
    """All pixels, [P, C]."""
    if isinstance(images, Tensor):
        return images.flatten(0, 2)
    joined = torch.cat([image.flatten(0, 1) for image in images])
    begin = 0
    for index, image in enumerate(images):
        end = begin + image.shape[0] * image.shape[1]
        images[index] = joined[begin:end].view(image.shape)
        begin = end
    return joined


class UniformPixelSampler(PixelSampler):
    """Draws uniformly from all pixels of all images.

    If images differ in size, nerfstudio's own sampler gives each image the same even number of rays: most images get
    none if a step has few rays, and an odd number of rays raises an error. It does not support masks in such scenes. It
    also looks up pixels in main memory, which means waiting for the GPU in every step.

    Args:
        config: nerfstudio's configuration.
        device: where the images and the drawn pixels are kept.
    """

    _pixels: _Pixels | None = None

    def __init__(self, config: PixelSamplerConfig, device: torch.device | str, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.device = torch.device(device)

    def sample(self, image_batch: dict[str, Any]) -> dict[str, Any]:
        """A cached batch of images -> colors [R, C] of pixels, and their indices [R, 3]: camera, row, column."""
        if self._pixels is None or self._pixels.source is not image_batch["image"]:
            masks = None if self.config.ignore_mask else image_batch.get("mask")
            self._pixels = _Pixels.of(image_batch["image"], masks, image_batch["image_idx"], self.device)
        pixels = self._pixels
        rows = pixels.draw(self.num_rays_per_batch)
        image = torch.searchsorted(pixels.starts, rows, right=True) - 1
        local, width = rows - pixels.starts[image], pixels.widths[image]
        indices = torch.stack([pixels.cameras[image], local // width, local % width], dim=-1)
        drawn = {"image": pixels.values[rows], "indices": indices}
        return {**drawn, "full_image": image_batch["image"]} if self.config.keep_full_image else drawn
